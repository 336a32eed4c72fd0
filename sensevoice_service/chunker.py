"""Blocks of one file → chunks the model can take, cut at quiet points while the audio streams in.

A short file stays whole. A long one is cut in the middle of the longest pause of a search window
before the limit; where speech runs on without one, neighbours share a stretch around the quietest
point, and the seam is mended after recognition. Once the end of the file is in sight, the rest is
shared out so that all who recognise it have done at about the same time. Where the file's header
says that the end is far, nobody waits for the sight of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, count
from math import ceil

import numpy as np
from numpy.typing import NDArray

from sensevoice_service.types import (
    DECLARED_SLACK_S,
    SAMPLE_RATE_HZ,
    Block,
    Chunk,
    DecodeOptions,
)

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
_NEARER_WORTH_S = 0.5  # the same of a distance that leaves somebody idle
_PLACE_WORTH_POWER = 10 ** (1 / 10)
_DECLARED_SLACK_SAMPLES = round(DECLARED_SLACK_S * SAMPLE_RATE_HZ)


@dataclass(frozen=True)
class ChunkPolicy:
    """How long chunks may be, in seconds.

    A file of up to ``whole_s`` (at least ``chunk_s``) stays one chunk; the chunks of a longer one
    last at most ``chunk_s``, overlap included. A cut is searched in the last ``search_s`` (a third
    of ``chunk_s`` if ``None``), ``overlap_s`` is shared where there is no pause, and what follows
    a cut lasts at least ``tail_s``. The last three shrink with a small ``chunk_s``. ``n_lanes``
    chunks are recognised side by side: where there are several, the last chunks of a file are cut
    shorter, for all to be busy to its end.
    """

    whole_s: float
    chunk_s: float
    search_s: float | None = None
    overlap_s: float = 2.0
    tail_s: float = 1.0
    n_lanes: int = 1

    def __post_init__(self) -> None:
        if self.chunk_s < 1:
            raise ValueError("chunk_s must be at least 1 second")
        if min(self.whole_s, self.overlap_s, self.tail_s) < 0:
            raise ValueError("whole_s, overlap_s and tail_s must not be negative")
        if self.search_s is not None and self.search_s < 0.1:
            raise ValueError("search_s must be at least 0.1 seconds")
        if self.n_lanes < 1:
            raise ValueError("n_lanes must be at least 1")

    @property
    def whole_samples(self) -> int:
        return max(round(self.whole_s * SAMPLE_RATE_HZ), self.chunk_samples)

    @property
    def chunk_samples(self) -> int:
        return round(self.chunk_s * SAMPLE_RATE_HZ)

    @property
    def sight_samples(self) -> int:
        """How far behind a chunk's start the end of a file is looked for.

        Where there are several to share it out to, so far that a rest of two chunks is seen whole.
        """
        return max(self.whole_samples, min(self.n_lanes, 2) * self.chunk_samples)

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
    def earliest_aim_samples(self) -> int:
        """So that no sample falls into three chunks, wherever in its window a cut is made."""
        first = self.overlap_samples + max(self.overlap_samples // 2, self.tail_samples)
        return first + self.search_samples // 2

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
    divided into blocks, nor on a header that tells the truth; each chunk owns its samples, and no
    more than ``sight_samples``, a tail and a block are held at a time. Nothing is yielded where
    there are no samples.
    """
    limit = policy.chunk_samples if is_large else policy.whole_samples
    in_sight = policy.sight_samples + policy.tail_samples
    window = _Window(blocks, in_sight)
    lanes = _Lanes(policy)
    overlap = 0
    for index in count():
        window.fill(policy.chunk_samples + policy.tail_samples)
        if window.declared_samples <= in_sight + _DECLARED_SLACK_SAMPLES:
            window.fill(in_sight)
        if index == 0 and window.is_ended and len(window.samples) <= limit:
            break
        aim = lanes.aim(len(window.samples)) if window.is_ended else None
        if aim == len(window.samples):
            break
        end, next_start = _seam(window.samples, policy, aim)
        samples = window.samples[:end].copy()
        yield Chunk(samples, window.start_sample, index, options, overlap, has_followers=True)
        lanes.give(end)
        window.drop(next_start)
        overlap = end - next_start
    if len(window.samples):  # nothing writes over them any more
        yield Chunk(window.samples, window.start_sample, index, options, overlap)


class _Lanes:
    """How much each of those who work side by side was given, as if the file were alone."""

    def __init__(self, policy: ChunkPolicy) -> None:
        self._policy = policy
        self._given = [0] * policy.n_lanes  # the least first: it takes the next chunk

    def give(self, n_samples: int) -> None:
        self._given[0] += n_samples
        self._given.sort()

    def aim(self, rest_samples: int) -> int | None:
        """About where the next chunk should end, for all lanes to end at once with few chunks.

        ``rest_samples`` is all that is left of the file. ``None`` leaves it to the pauses.
        """
        policy = self._policy
        if len(self._given) == 1:
            return rest_samples if rest_samples <= policy.chunk_samples else None
        half = policy.search_samples // 2
        most = policy.chunk_samples - half
        earliest = policy.earliest_aim_samples
        latest = min(most, rest_samples - half - policy.tail_samples)
        # Then what is behind a cut would end no sooner for being a chunk of its own.
        is_next_busy = self._given[1] - self._given[0] > latest - policy.tail_samples
        if rest_samples <= policy.chunk_samples and (latest < earliest or is_next_busy):
            return rest_samples
        share = self._level(rest_samples) - self._given[0]
        aim = round(share / ceil(share / most))
        return min(max(aim, earliest), latest)

    def _level(self, rest_samples: int) -> float:
        """What each has in the end if the rest goes to those who have least."""
        levels = accumulate(self._given, initial=rest_samples)
        shared = [total / n for n, total in enumerate(levels) if n]
        return min(shared)


class _Window:
    """The samples of a stream that are not yet cut, in a buffer of fixed capacity."""

    def __init__(self, blocks: Iterable[Block], capacity_samples: int) -> None:
        self._blocks = iter(blocks)
        self._pending = np.empty(0, np.float32)
        self._buffer = np.empty(capacity_samples, np.float32)
        self._filled = 0
        self._declared_end = 0
        self.start_sample = 0
        self.is_ended = False

    @property
    def samples(self) -> Samples:
        """A view; ``fill`` and ``drop`` write over it."""
        return self._buffer[: self._filled]

    @property
    def declared_samples(self) -> int:
        """How many there are from ``start_sample`` on by the word of the file's header."""
        return self._declared_end - self.start_sample

    def fill(self, n_samples: int) -> None:
        """Take blocks until there are so many samples or the stream ends."""
        while self._filled < n_samples:
            if not len(self._pending):
                block = next(self._blocks, None)
                if block is None:
                    self.is_ended = True
                    return
                if not self._filled:
                    self.start_sample = block.start_sample
                self._pending = block.samples
                self._declared_end = block.declared_samples
            taken = self._pending[: len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            self._pending = self._pending[len(taken) :]

    def drop(self, n_samples: int) -> None:
        kept = self._filled - n_samples
        self._buffer[:kept] = self._buffer[n_samples : self._filled]
        self._filled = kept
        self.start_sample += n_samples


def _seam(samples: Samples, policy: ChunkPolicy, aim: int | None) -> tuple[int, int]:
    """Where the first chunk of ``samples`` ends, near ``aim``, and where the next one starts.

    The tail is kept behind the cut whether or not the stream goes on: behind a later cut there is
    always more, so the last chunk is never shorter than the tail.
    """
    last = min(policy.chunk_samples, len(samples) - policy.tail_samples)
    if aim is not None:
        last = min(last, aim + policy.search_samples // 2)
    first = last - policy.search_samples
    levels, loud = _levels(samples, first, last)
    places = _later(len(levels)) if aim is None else _nearer(len(levels))
    worth_s = _LATER_WORTH_S if aim is None else _NEARER_WORTH_S
    pause = _pause(levels, loud, worth_s * places)
    if pause is not None:
        point = first + pause * _CELL_SAMPLES
        return point, point
    half = policy.overlap_samples // 2
    n_points = (last - half - first) // _CELL_SAMPLES + 1
    point = first + _quietest(levels[:n_points], places[:n_points]) * _CELL_SAMPLES
    return point + half, point - half


def _later(n: int) -> Powers:
    """How good the places of a search window are: the later, the fewer chunks there will be."""
    return np.linspace(0, 1, n)


def _nearer(n: int) -> Powers:
    """The same where an even share is the aim: it is in the middle."""
    return 1 - np.abs(np.linspace(-1, 1, n))


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


def _pause(levels: Powers, loud: float, worth_s: Powers) -> int | None:
    """The middle of the best pause, or ``None`` where nothing is clearly quieter than ``loud``."""
    quietest = float(levels.min())
    ceiling = max(_SILENCE_POWER, loud * _PAUSE_BELOW_LOUD)
    if not quietest <= ceiling:
        return None
    is_quiet = levels <= max(_SILENCE_POWER, min(ceiling, quietest * _SAME_QUIET))
    edges = np.flatnonzero(np.diff(is_quiet, prepend=False, append=False))
    starts, stops = edges[::2], edges[1::2]
    lengths_s = (stops - starts) * (_CELL_SAMPLES / SAMPLE_RATE_HZ)
    middles = (starts + stops - 1) // 2
    best = int(np.argmax(np.minimum(lengths_s, _PAUSE_ENOUGH_S) + worth_s[middles]))
    return int(middles[best])


def _quietest(levels: Powers, places: Powers) -> int:
    """The index of the lowest level, a little for good places."""
    return int(np.argmin(levels * (_PLACE_WORTH_POWER - (_PLACE_WORTH_POWER - 1) * places)))
