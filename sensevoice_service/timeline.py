"""Frames of a track on its file's clock: what is missing ahead of them and between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from av.audio.frame import AudioFrame

# Containers whose timestamps a recorder or an editor set. The others count samples or guess.
TIMED_DEMUXERS = frozenset({"matroska", "mov"})
# Less is a clock in whole milliseconds, an encoder's delay, or too short to be seen in subtitles.
LEAST_GAP_S = 0.1


@dataclass(frozen=True)
class Gap:
    """A time in which the track has nothing."""

    duration_s: float


def on_the_clock(frames: Iterable[AudioFrame], start_s: float) -> Iterator[AudioFrame | Gap]:
    """Tell of each gap of 0.1 s or more: ahead of the first frame, from ``start_s`` on, too.

    Frames that overlap are kept as they are; a gap behind them is the shorter for it. Those without
    a timestamp follow the one before.
    """
    at_s = start_s
    for frame in frames:
        time_s = frame.time
        gap_s = 0.0 if time_s is None else time_s - at_s
        if gap_s >= LEAST_GAP_S:
            yield Gap(gap_s)
            at_s += gap_s
        yield frame
        at_s += frame.samples / frame.sample_rate
