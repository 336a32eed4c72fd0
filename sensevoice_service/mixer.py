"""Frames of any rate, channels and sample format → mono float32 at 16 kHz."""

from __future__ import annotations

from collections.abc import Iterator

import av
import numpy as np
import soxr
from av.audio.frame import AudioFrame
from av.filter import Graph
from numpy.typing import NDArray

from sensevoice_service.timeline import Gap
from sensevoice_service.types import SAMPLE_RATE_HZ, CorruptAudio

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 655_350  # the highest that FLAC can name
MAX_CHANNELS = 64
# A mixer takes milliseconds to build: a television recording needs a few, an attack any number.
MAX_MIXERS = 100
# Of soxr: flat up to 7.4 kHz, and what 16 kHz cannot hold is 130 dB down.
QUALITY = "HQ"


def mono_16k(frames: Iterator[AudioFrame | Gap], block_s: float) -> Iterator[NDArray[np.float32]]:
    """Blocks of about ``block_s``; where rate, channels or sample format change, a new mixer.

    A gap is silence, with a new mixer behind it: being as long as it is, none comes often. Raises
    ``CorruptAudio`` where rate or channels are out of range or change without end.
    """
    mixer: Mixer | None = None
    n_changes = 0
    for frame in frames:
        if isinstance(frame, Gap):
            if mixer is not None:
                yield from mixer.flush()
                mixer = None
            yield from _silence(frame.duration_s, block_s)
            continue
        if mixer is not None and not mixer.takes(frame):
            yield from mixer.flush()
            mixer = None
            n_changes += 1
            if n_changes == MAX_MIXERS:
                raise CorruptAudio("the audio changes its rate or channels too often")
        mixer = mixer or Mixer(frame, block_s)
        yield from mixer.push(frame)
    if mixer is not None:
        yield from mixer.flush()


def _silence(duration_s: float, block_s: float) -> Iterator[NDArray[np.float32]]:
    n_left = round(duration_s * SAMPLE_RATE_HZ)
    block_samples = max(1, round(block_s * SAMPLE_RATE_HZ))
    while n_left > 0:
        yield np.zeros(min(n_left, block_samples), np.float32)
        n_left -= block_samples


class Mixer:
    """From frames like ``first`` to the plain mean of their channels at 16 kHz.

    The mean is taken in a libav graph, not in numpy: ``pan`` has the gains it is told, and PyAV
    reads past the plane pointers of planar frames that have eight channels or more. soxr resamples:
    libav's resampler takes three times as long, and its aliases are at −90 dB.
    """

    def __init__(self, first: AudioFrame, block_s: float) -> None:
        self._kind = self._kind_of(first)
        rate_hz, _, n_channels, _ = self._kind
        if not (MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ and 1 <= n_channels <= MAX_CHANNELS):
            raise CorruptAudio(f"the audio has {n_channels} channels at {rate_hz} Hz")
        self._block_samples = max(1, round(block_s * rate_hz))
        self._n_waiting = 0
        self._graph = self._build()
        self._resampler = (
            None
            if rate_hz == SAMPLE_RATE_HZ
            else soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality=QUALITY)
        )

    @staticmethod
    def _kind_of(frame: AudioFrame) -> tuple[int, str, int, str]:
        return frame.sample_rate, frame.format.name, frame.layout.nb_channels, frame.layout.name

    def _build(self) -> Graph:
        rate_hz, sample_format, n_channels, layout = self._kind
        graph = Graph()
        graph.threads = 1
        mean = "+".join(f"{1 / n_channels!r}*c{channel}" for channel in range(n_channels))
        graph.link_nodes(
            graph.add(
                "abuffer",
                sample_rate=str(rate_hz),
                sample_fmt=sample_format,
                channel_layout=layout,
                time_base=f"1/{rate_hz}",
            ),
            graph.add("aformat", sample_fmts="fltp"),
            # Of one channel it would take half of the graph's time to no end.
            *([graph.add("pan", f"mono|c0={mean}")] if n_channels > 1 else []),
            graph.add("aformat", sample_fmts="flt"),
            graph.add("abuffersink"),
        )
        graph.configure()
        graph.set_audio_frame_size(self._block_samples)
        return graph

    def takes(self, frame: AudioFrame) -> bool:
        return self._kind_of(frame) == self._kind

    def push(self, frame: AudioFrame) -> Iterator[NDArray[np.float32]]:
        """Queue a frame; the graph runs once a block's worth is waiting."""
        frame.pts = None  # it counts in the time base of its container
        self._graph.push(frame)
        self._n_waiting += frame.samples
        if self._n_waiting >= self._block_samples:
            self._n_waiting = 0
            yield from self._pull()

    def flush(self) -> Iterator[NDArray[np.float32]]:
        """The rest: of ``n`` samples there are ``n * 16000 / rate`` in all, to the nearest."""
        self._graph.push(None)
        yield from self._pull()
        yield from self._resampled(np.empty(0, np.float32), is_last=True)

    def _pull(self) -> Iterator[NDArray[np.float32]]:
        while True:
            try:
                frame = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield from self._resampled(frame.to_ndarray()[0])

    def _resampled(
        self, samples: NDArray[np.float32], *, is_last: bool = False
    ) -> Iterator[NDArray[np.float32]]:
        """One block, or none where the resampler first wants to see more."""
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=is_last)
        if len(samples):
            yield _checked(samples)


def _checked(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Clip what a decoder or the resampler overshoots. Raises ``CorruptAudio`` on NaN and Inf."""
    if not np.isfinite(samples).all():
        raise CorruptAudio("the audio has samples that are not numbers")
    return np.clip(samples, -1.0, 1.0)
