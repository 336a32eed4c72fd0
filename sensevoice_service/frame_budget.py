"""How many padded frames a batch may have: fewer once one did not fit the device, more by and by.

What a batch takes of a device's memory grows with its padded frames. What there is to take only
trying tells, since other processes use the device too and free memory may be in pieces. So the
limit is sought as TCP seeks its window, by additive increase and multiplicative decrease (AIMD;
Chiu and Jain 1989, RFC 5681): down to half at a failure, up in small steps while all is well, and
only on the evidence of calls that left no room (RFC 7661). A step is a tenth of the limit and not
a constant, since a limit may have been halved many times and has no other sender to be fair to.

A size that failed may be tried again after five minutes without a failure. Where the device has
less room than configured, full batches then take nine tenths of it on average, and one in a
thousand fails. The limit climbs to just below the failed size without waiting.
"""

from __future__ import annotations

import math
from collections.abc import Callable

GOOD_CALLS_A_STEP = 64
STEP_SHARE = 0.1
FORGET_S = 300.0


class FrameBudget:
    """The limit of padded frames in force, up to ``most_frames``; the batcher locks it.

    ``clock`` counts seconds. A call is told by its rows and its longest row.
    """

    def __init__(self, most_frames: int, clock: Callable[[], float]) -> None:
        self.limit_frames = most_frames
        self._most_frames = most_frames
        self._clock = clock
        self._longest_frames = 0  # of any chunk so far: less than one chunk is no batch
        self._failed_frames = math.inf  # the smallest call that has lately failed
        self._failed_s = -math.inf
        self._good_calls = 0  # at the limit, since it last changed

    def fitted(self, rows: int, longest_frames: int) -> None:
        """Note a call that fitted; it counts if one more row would have broken the limit."""
        self._longest_frames = max(self._longest_frames, longest_frames)
        if self.limit_frames < self._most_frames and self._is_full(rows, longest_frames):
            self._good_calls += 1
            if self._good_calls >= GOOD_CALLS_A_STEP:
                self._grow()

    def failed(self, rows: int, longest_frames: int) -> None:
        """Note a call that did not fit."""
        self._longest_frames = max(self._longest_frames, longest_frames)
        padded_frames, now_s = rows * longest_frames, self._clock()
        if now_s - self._failed_s >= FORGET_S:
            self._failed_frames = math.inf
        self._failed_frames = min(self._failed_frames, padded_frames)
        self._failed_s = now_s
        self._good_calls = 0
        self.limit_frames = min(self.limit_frames, max(padded_frames // 2, self._longest_frames))

    def _is_full(self, rows: int, longest_frames: int) -> bool:
        return (rows + 1) * longest_frames > self.limit_frames

    def _grow(self) -> None:
        step_frames = max(1, round(self.limit_frames * STEP_SHARE))
        grown_frames = min(self.limit_frames + step_frames, self._most_frames)
        has_failed = grown_frames >= self._failed_frames
        if not has_failed or self._clock() - self._failed_s >= FORGET_S:
            self.limit_frames = grown_frames
            self._good_calls = 0
