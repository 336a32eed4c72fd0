"""Frames of any rate, channels and sample format → mono float32 at 16 kHz."""

from __future__ import annotations

from collections.abc import Iterator

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.filter import Graph
from numpy.typing import NDArray

from sensevoice_service.types import SAMPLE_RATE_HZ, CorruptAudio

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 655_350  # the highest that FLAC can name
MAX_CHANNELS = 64
# A mixer takes milliseconds to build: a television recording needs a few, an attack any number.
MAX_MIXERS = 100
# Aliases stay below −90 dB, and up to 7.5 kHz it is flat; swresample's own 32 taps at 0.97 let
# frequencies just above 8 kHz through at −13 dB.
FILTER_TAPS = 128
CUTOFF = 0.96


def mono_16k(frames: Iterator[AudioFrame], block_s: float) -> Iterator[NDArray[np.float32]]:
    """Blocks of about ``block_s``; where rate, channels or sample format change, a new mixer.

    Raises ``CorruptAudio`` where they are out of range or change without end.
    """
    mixer: Mixer | None = None
    n_mixers = 0
    for frame in frames:
        if mixer is None or not mixer.takes(frame):
            if mixer is not None:
                yield from mixer.flush()
            mixer = Mixer(frame, block_s)
            n_mixers += 1
            if n_mixers > MAX_MIXERS:
                raise CorruptAudio("the audio changes its rate or channels too often")
        yield from mixer.push(frame)
    if mixer is not None:
        yield from mixer.flush()


class Mixer:
    """A libav graph from frames like ``first`` to the plain mean of their channels at 16 kHz.

    The mean is taken in the graph, not in numpy: ``pan`` has the gains it is told, and PyAV reads
    past the plane pointers of planar frames that have eight channels or more.
    """

    def __init__(self, first: AudioFrame, block_s: float) -> None:
        self._kind = self._kind_of(first)
        rate_hz, _, n_channels, _ = self._kind
        if not (MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ and 1 <= n_channels <= MAX_CHANNELS):
            raise CorruptAudio(f"the audio has {n_channels} channels at {rate_hz} Hz")
        self._wait_samples = max(1, int(block_s * rate_hz))
        self._n_waiting = self._n_in = self._n_out = 0
        self._graph = self._build(max(1, round(block_s * SAMPLE_RATE_HZ)))

    @staticmethod
    def _kind_of(frame: AudioFrame) -> tuple[int, str, int, str]:
        return frame.sample_rate, frame.format.name, frame.layout.nb_channels, frame.layout.name

    def _build(self, block_samples: int) -> Graph:
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
            graph.add("pan", f"mono|c0={mean}"),
            # Silence for the filter's far half: swresample drops what is shorter than its filter.
            graph.add("apad", pad_len=str(FILTER_TAPS * max(1, -(-rate_hz // SAMPLE_RATE_HZ)))),
            graph.add(
                "aresample",
                sample_rate=str(SAMPLE_RATE_HZ),
                filter_size=str(FILTER_TAPS),
                cutoff=str(CUTOFF),
            ),
            graph.add("aformat", sample_fmts="flt"),
            graph.add("abuffersink"),
        )
        graph.configure()
        graph.set_audio_frame_size(block_samples)
        return graph

    def takes(self, frame: AudioFrame) -> bool:
        return self._kind_of(frame) == self._kind

    def push(self, frame: AudioFrame) -> Iterator[NDArray[np.float32]]:
        """Queue a frame; the graph runs once a block's worth is waiting."""
        frame.pts = None  # it counts in the time base of its container
        self._graph.push(frame)
        self._n_in += frame.samples
        self._n_waiting += frame.samples
        if self._n_waiting >= self._wait_samples:
            self._n_waiting = 0
            yield from self._pull()

    def flush(self) -> Iterator[NDArray[np.float32]]:
        """The rest, as long as the frames were: ``round(n * 16000 / rate)`` samples in all."""
        self._graph.push(None)
        n_left = round(self._n_in * SAMPLE_RATE_HZ / self._kind[0]) - self._n_out
        for samples in self._pull():
            if n_left > 0:
                yield samples[:n_left]
            n_left -= len(samples)

    def _pull(self) -> Iterator[NDArray[np.float32]]:
        while True:
            try:
                frame = self._graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            samples = _checked(frame.to_ndarray()[0])
            self._n_out += len(samples)
            yield samples


def _checked(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Clip what a decoder or the resampler overshoots. Raises ``CorruptAudio`` on NaN and Inf."""
    if not np.isfinite(samples).all():
        raise CorruptAudio("the audio has samples that are not numbers")
    return np.clip(samples, -1.0, 1.0)
