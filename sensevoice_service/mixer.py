"""Frames of any rate, channels and sample format → mono float32 at 16 kHz."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

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
# PyAV reads past the plane pointers of planar frames that have eight channels or more.
MAX_PLANES = 7
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


class Mean(Protocol):
    """The plain mean of the channels of frames of one kind."""

    def push(self, frame: AudioFrame) -> None: ...

    def pull(self) -> Iterator[NDArray[np.float32]]:
        """Of the frames since the last time."""
        ...

    def flush(self) -> Iterator[NDArray[np.float32]]:
        """The same, and what was held back. It is the last call."""
        ...


class PlanesMean:
    """Of planar floats, which most decoders of compressed audio give: nothing is converted."""

    def __init__(self, n_channels: int) -> None:
        self._n_channels = n_channels
        self._frames: list[AudioFrame] = []

    def push(self, frame: AudioFrame) -> None:
        self._frames.append(frame)

    def pull(self) -> Iterator[NDArray[np.float32]]:
        if not self._frames:
            return
        mean = self._joined(0)
        for channel in range(1, self._n_channels):
            mean += self._joined(channel)
        if self._n_channels > 1:
            mean *= 1 / self._n_channels
        self._frames.clear()
        yield mean

    def flush(self) -> Iterator[NDArray[np.float32]]:
        return self.pull()

    def _joined(self, channel: int) -> NDArray[np.float32]:
        """A plane may have room behind its samples."""
        return np.concatenate(
            [
                np.frombuffer(memoryview(one.planes[channel]), np.float32, one.samples)
                for one in self._frames
            ]
        )


class GraphMean:
    """The mean of any sample format and number of channels, by a libav graph.

    Its ``pan`` is told each gain: libav's own downmix weighs channels unequally.
    """

    def __init__(
        self, rate_hz: int, sample_format: str, n_channels: int, layout: str, block_samples: int
    ) -> None:
        self._graph = graph = Graph()
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
        graph.set_audio_frame_size(block_samples)

    def push(self, frame: AudioFrame) -> None:
        frame.pts = None  # it counts in the time base of its container
        self._graph.push(frame)

    def pull(self) -> Iterator[NDArray[np.float32]]:
        while True:
            try:
                frame = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            yield frame.to_ndarray()[0]

    def flush(self) -> Iterator[NDArray[np.float32]]:
        self._graph.push(None)
        return self.pull()


class Mixer:
    """From frames like ``first`` to the plain mean of their channels at 16 kHz.

    soxr resamples: libav's resampler takes three times as long, and its aliases are at −90 dB.
    """

    def __init__(self, first: AudioFrame, block_s: float) -> None:
        self._kind = self._kind_of(first)
        rate_hz, sample_format, n_channels, layout = self._kind
        if not (MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ and 1 <= n_channels <= MAX_CHANNELS):
            raise CorruptAudio(f"the audio has {n_channels} channels at {rate_hz} Hz")
        self._block_samples = max(1, round(block_s * rate_hz))
        self._n_waiting = 0
        self._mean: Mean = (
            PlanesMean(n_channels)
            if sample_format == "fltp" and n_channels <= MAX_PLANES
            else GraphMean(rate_hz, sample_format, n_channels, layout, self._block_samples)
        )
        self._resampler = (
            None
            if rate_hz == SAMPLE_RATE_HZ
            else soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality=QUALITY)
        )

    @staticmethod
    def _kind_of(frame: AudioFrame) -> tuple[int, str, int, str]:
        return frame.sample_rate, frame.format.name, frame.layout.nb_channels, frame.layout.name

    def takes(self, frame: AudioFrame) -> bool:
        return self._kind_of(frame) == self._kind

    def push(self, frame: AudioFrame) -> Iterable[NDArray[np.float32]]:
        """Queue a frame; nothing comes of it before a block's worth is waiting."""
        self._mean.push(frame)
        self._n_waiting += frame.samples
        if self._n_waiting < self._block_samples:
            return ()
        self._n_waiting = 0
        return self._resampled(self._mean.pull())

    def flush(self) -> Iterator[NDArray[np.float32]]:
        """The rest: of ``n`` samples there are ``n * 16000 / rate`` in all, to the nearest."""
        yield from self._resampled(self._mean.flush())
        if self._resampler is not None:
            yield from _checked(self._resampler.resample_chunk(np.empty(0, np.float32), last=True))

    def _resampled(self, blocks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        for samples in blocks:
            if self._resampler is not None:
                samples = self._resampler.resample_chunk(samples)
            yield from _checked(samples)


def _checked(samples: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """One block, or none where the resampler first wants to see more.

    Clips what a decoder or the resampler overshoots. Raises ``CorruptAudio`` on NaN and Inf.
    """
    if not len(samples):
        return
    if not np.isfinite(samples).all():
        raise CorruptAudio("the audio has samples that are not numbers")
    yield np.clip(samples, -1.0, 1.0)
