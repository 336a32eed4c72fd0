"""How far a file has been recognised, told while its end is not yet in sight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from sensevoice_service.types import Block, Progress, Upload


class Gauge:
    """Guesses how much audio a file has from where its decoder reads, block by block.

    What a decoder reads ahead, and what lies in front of the audio, cancels out: what counts is how
    many samples the bytes after the first block have given.
    """

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self._first: tuple[int, int] | None = None  # samples and bytes
        self._decoded_samples = 0
        self._read_bytes = 0
        self._is_ended = False

    def watch(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """The same blocks; the position of the file is read in the thread that decodes."""
        for block in blocks:
            self._decoded_samples = block.start_sample + len(block.samples)
            with suppress(OSError, ValueError):  # a file without a position, or closed
                self._read_bytes = self._upload.file.tell()
            if self._first is None:
                self._first = self._decoded_samples, self._read_bytes
            yield block
        self._is_ended = True

    @property
    def n_samples(self) -> float:
        """All samples of the file; never less than are decoded, and just those at its end."""
        if self._is_ended or self._first is None:
            return self._decoded_samples
        first_samples, first_bytes = self._first
        gained_bytes = self._read_bytes - first_bytes
        if gained_bytes <= 0:  # the decoder reads elsewhere, or has read everything at once
            return 2 * self._decoded_samples
        samples_per_byte = (self._decoded_samples - first_samples) / gained_bytes
        unread_bytes = max(0, self._upload.size_bytes - self._read_bytes)
        return self._decoded_samples + unread_bytes * samples_per_byte


class Teller:
    """Tells a listener of each gain of a transcript. The fractions never fall, 1 is the last."""

    def __init__(self, listener: Callable[[Progress], None], gauge: Gauge) -> None:
        self._listener = listener
        self._gauge = gauge
        self._fraction = 0.0
        self._n_told = 0

    def gained(self, text: str, recognised_samples: int) -> None:
        """``text`` follows the texts before it; ``recognised_samples`` are those of the file."""
        n_samples = max(1.0, self._gauge.n_samples)
        self._fraction = max(self._fraction, min(1.0, recognised_samples / n_samples))
        self._n_told += len(text)
        self._listener(Progress(self._fraction, text))

    def concluded(self, text: str) -> None:
        """``text`` is the whole transcript's: what has not been told of it is told now."""
        self._listener(Progress(1.0, text[self._n_told :]))
