"""Blocks of one file → chunks the model can take, cut at quiet points while the audio streams in.

A short file stays whole. A long one is cut in the middle of the longest pause of a search window
before the limit; where speech runs on without one, neighbours share a stretch around the quietest
point, and the seam is mended after recognition.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from sensevoice_service.types import SAMPLE_RATE_HZ, Block, Chunk, DecodeOptions

Samples = NDArray[np.float32]
Powers = NDArray[np.float64]

_CELL_SAMPLES = SAMPLE_RATE_HZ // 100  # the resolution of a cut: 10 ms
_SMOOTH_CELLS = 20  # 0.2 s: longer than the closure of a stop consonant, shorter than a pause
_REACH_SAMPLES = _SMOOTH_CELLS * _CELL_SAMPLES // 2
_LOUD_PERCENTILE = 95  # of 10 ms powers: the speech level, even if little of the window is speech
_PAUSE_BELOW_LOUD = 10 ** (-20 / 10)
_SILENCE_POWER = 10 ** (-70 / 10)  # about 10 steps of 16 bits, whatever the speech level
_SAME_QUIET = 10 ** (6 / 10)  # a pause reaches as far as the level stays this near its minimum
_PAUSE_ENOUGH_S = 1.0  # beyond this a longer pause is no better than a later one
_LATER_WORTH_S = 0.1  # pause length that the whole window's distance outweighs
_LATER_WORTH_POWER = 10 ** (1 / 10)


@dataclass(frozen=True)
class ChunkPolicy:
    """How long chunks may be, in seconds.

    A file of up to ``whole_s`` (at least ``chunk_s``) stays one chunk; the chunks of a longer one
    last at most ``chunk_s``, overlap included. A cut is searched in the last ``search_s`` (a third
    of ``chunk_s`` if ``None``), ``overlap_s`` is shared where there is no pause, and what follows
    a cut lasts at least ``tail_s``. The last three shrink with a small ``chunk_s``.
    """

    whole_s: float
    chunk_s: float
    search_s: float | None = None
    overlap_s: float = 2.0
    tail_s: float = 1.0

    def __post_init__(self) -> None:
        if self.chunk_s < 1:
            raise ValueError("chunk_s must be at least 1 second")
        if min(self.whole_s, self.overlap_s, self.tail_s) < 0:
            raise ValueError("whole_s, overlap_s and tail_s must not be negative")
        if self.search_s is not None and self.search_s < 0.1:
            raise ValueError("search_s must be at least 0.1 seconds")

    @property
    def whole_samples(self) -> int:
        return max(round(self.whole_s * SAMPLE_RATE_HZ), self.chunk_samples)

    @property
    def chunk_samples(self) -> int:
        return round(self.chunk_s * SAMPLE_RATE_HZ)

    @property
    def search_samples(self) -> int:
        wanted_s = self.chunk_s / 3 if self.search_s is None else self.search_s
        return min(round(wanted_s * SAMPLE_RATE_HZ), self.chunk_samples // 2)

    @property
    def overlap_samples(self) -> int:
        """Even, and so short that no sample falls into three chunks."""
        most = min(self.chunk_samples // 4, self.search_samples)
        return min(round(self.overlap_s * SAMPLE_RATE_HZ), most) // 2 * 2

    @property
    def tail_samples(self) -> int:
        """Never less than the smoothed level needs to see behind a cut."""
        wanted = min(round(self.tail_s * SAMPLE_RATE_HZ), self.chunk_samples // 8)
        return max(wanted, _REACH_SAMPLES)


def cut(
    blocks: Iterable[Block], options: DecodeOptions, policy: ChunkPolicy, *, is_large: bool = False
) -> Iterator[Chunk]:
    """Yield the chunks of consecutive ``blocks``, in order; together they hold every sample.

    ``is_large`` applies ``chunk_s`` from the start. The cuts do not depend on how the audio is
    divided into blocks, each chunk owns its samples, and no more than the longest chunk, its tail
    and a block are held at a time. Nothing is yielded where there are no samples.
    """
    limit = policy.chunk_samples if is_large else policy.whole_samples
    window = _Window(blocks, limit + policy.tail_samples)
    overlap = 0
    for index in count():
        window.fill()
        if len(window.samples) <= limit:
            break
        limit = policy.chunk_samples
        end, next_start = _seam(window.samples, policy)
        yield Chunk(window.samples[:end].copy(), window.start_sample, index, options, overlap)
        window.drop(next_start)
        overlap = end - next_start
    if len(window.samples):
        yield Chunk(window.samples.copy(), window.start_sample, index, options, overlap)


class _Window:
    """The samples of a stream that are not yet cut, in a buffer of fixed capacity."""

    def __init__(self, blocks: Iterable[Block], capacity_samples: int) -> None:
        self._blocks = iter(blocks)
        self._pending = np.empty(0, np.float32)
        self._buffer = np.empty(capacity_samples, np.float32)
        self._filled = 0
        self.start_sample = 0

    @property
    def samples(self) -> Samples:
        """A view; ``fill`` and ``drop`` write over it."""
        return self._buffer[: self._filled]

    def fill(self) -> None:
        """Take blocks until the buffer is full or the stream ends."""
        while self._filled < len(self._buffer):
            if not len(self._pending):
                block = next(self._blocks, None)
                if block is None:
                    return
                if not self._filled:
                    self.start_sample = block.start_sample
                self._pending = block.samples
            taken = self._pending[: len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            self._pending = self._pending[len(taken) :]

    def drop(self, n_samples: int) -> None:
        kept = self._filled - n_samples
        self._buffer[:kept] = self._buffer[n_samples : self._filled]
        self._filled = kept
        self.start_sample += n_samples


def _seam(samples: Samples, policy: ChunkPolicy) -> tuple[int, int]:
    """Where the first chunk of ``samples`` ends, and where the next one starts.

    The tail is kept behind the cut whether or not the stream goes on: behind a later cut there is
    always more, so the last chunk is never shorter than the tail.
    """
    last = min(policy.chunk_samples, len(samples) - policy.tail_samples)
    first = last - policy.search_samples
    levels, loud = _levels(samples, first, last)
    pause = _pause(levels, loud)
    if pause is not None:
        point = first + pause * _CELL_SAMPLES
        return point, point
    half = policy.overlap_samples // 2
    n_points = (last - half - first) // _CELL_SAMPLES + 1
    point = first + _quietest(levels[:n_points]) * _CELL_SAMPLES
    return point + half, point - half


def _levels(samples: Samples, first: int, last: int) -> tuple[Powers, float]:
    """Mean power of the 0.2 s around each 10 ms step ``first``…``last``, and the loud level."""
    n_points = (last - first) // _CELL_SAMPLES + 1
    start = first - _REACH_SAMPLES
    stop = start + (n_points - 1 + _SMOOTH_CELLS) * _CELL_SAMPLES
    cells = samples[start:stop].reshape(-1, _CELL_SAMPLES)
    squares = np.einsum("ij,ij->i", cells, cells, dtype=np.float64) / _CELL_SAMPLES
    # A recorder's constant offset is no loudness: it would hide every pause.
    powers = np.maximum(squares - cells.mean(axis=1, dtype=np.float64) ** 2, 0.0)
    levels = np.convolve(powers, np.full(_SMOOTH_CELLS, 1 / _SMOOTH_CELLS), "valid")
    return levels, float(np.percentile(powers, _LOUD_PERCENTILE))


def _pause(levels: Powers, loud: float) -> int | None:
    """The middle of the best pause, or ``None`` where nothing is clearly quieter than ``loud``."""
    quietest = float(levels.min())
    ceiling = max(_SILENCE_POWER, loud * _PAUSE_BELOW_LOUD)
    if not quietest <= ceiling:
        return None
    is_quiet = levels <= max(_SILENCE_POWER, min(ceiling, quietest * _SAME_QUIET))
    edges = np.flatnonzero(np.diff(is_quiet, prepend=False, append=False))
    starts, stops = edges[::2], edges[1::2]
    lengths_s = (stops - starts) * (_CELL_SAMPLES / SAMPLE_RATE_HZ)
    later = stops / len(levels)
    best = int(np.argmax(np.minimum(lengths_s, _PAUSE_ENOUGH_S) + later * _LATER_WORTH_S))
    return int(starts[best] + stops[best] - 1) // 2


def _quietest(levels: Powers) -> int:
    """The index of the lowest level, a little for later ones."""
    return int(np.argmin(levels * np.linspace(_LATER_WORTH_POWER, 1, len(levels))))
