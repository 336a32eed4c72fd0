"""What goes into a batch, and when it goes: the decisions of the batcher, without its threads.

What goes together. A call takes about ``a + b × rows × longest`` seconds, so it has an overhead of
``a / b`` frames however little is in it: tens of frames on a CPU, thousands on a GPU. Company is
worth having while the padding it brings is less than that, the price of a call of its own. The
overhead depends on the device and the precision, so it is learned from the calls themselves.

When it goes. At once, unless company is about to come. Clients in step with the service send their
next requests just after an answer; a thread that grabs the first of them runs batches of 1, n − 1,
1, … and pays the overhead twice. So it holds back after a batch, for as many chunks as were
answered or queued when it ended, but only where they have lately come back within a small share of
a batch's duration. A lone client is never held: there is nobody else to expect.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_FIRST_OVERHEAD_FRAMES = 40.0  # a CPU's, until there are calls to learn from
_MOST_OVERHEAD_FRAMES = 100_000.0  # more than a batch holds: any padding is worth it
_LEARNING_CALLS = 8
_PATIENCE_SHARE = 0.25  # of a batch's duration


@dataclass(frozen=True)
class BatchLimits:
    """``max_padded_frames`` bounds rows × longest row; a longer chunk than that runs alone."""

    max_items: int
    max_padded_frames: int
    max_wait_s: float


def pick_batch(lengths: Sequence[int], limits: BatchLimits, overhead_frames: float) -> list[int]:
    """Choose the next batch from frame counts in the order of turns; give indices in that order.

    Index 0 is always in it. The others are taken outwards from its length, least added padding
    first, while the budget holds and none adds more padding than ``overhead_frames``.
    """
    others = range(1, len(lengths))
    longer = [i for i in others if lengths[i] >= lengths[0]]
    shorter = [i for i in others if lengths[i] < lengths[0]]
    # Stable sorts, both ways: of equal lengths the first in turn comes first.
    sides = [
        deque(sorted(shorter, key=lengths.__getitem__, reverse=True)),
        deque(sorted(longer, key=lengths.__getitem__)),
    ]
    picked, longest = [0], lengths[0]

    def padding(side: deque[int]) -> int:
        length = lengths[side[0]]
        return max(longest - length, len(picked) * (length - longest))

    while len(picked) < limits.max_items and any(sides):
        side = min(filter(None, sides), key=padding)
        grown = max(longest, lengths[side[0]])
        over_budget = (len(picked) + 1) * grown > limits.max_padded_frames
        if over_budget or padding(side) > overhead_frames:
            side.clear()  # those behind it would cost more still
        else:
            picked.append(side.popleft())
            longest = grown
    return sorted(picked)


def is_full(lengths: Sequence[int], limits: BatchLimits) -> bool:
    """Whether a batch of these frame counts has no room for one more row."""
    rows = len(lengths) + 1
    return rows > limits.max_items or rows * max(lengths) > limits.max_padded_frames


def patience_s(
    queued: int, expected: int, refill_s: float, batch_s: float, max_wait_s: float
) -> float:
    """How long after the end of a batch the next one may wait for ``expected`` chunks.

    ``refill_s`` is how long as many chunks as were answered have lately taken to come back,
    ``batch_s`` how long a batch has lately taken.
    """
    longest_s = min(max_wait_s, _PATIENCE_SHARE * batch_s)
    return longest_s if queued < expected and refill_s <= longest_s else 0.0


def learned_overhead(calls: Sequence[tuple[int, float]], current_frames: float) -> float:
    """The overhead of a call in frames, from (padded frames, seconds) of recent calls.

    The intercept of a least-squares line over its slope. Calls of about one size say nothing about
    the slope and leave ``current_frames`` as it is.
    """
    if len(calls) < _LEARNING_CALLS:
        return current_frames
    frames, seconds = zip(*calls, strict=True)
    if max(frames) < 2 * min(frames):
        return current_frames
    slope, intercept = statistics.linear_regression(frames, seconds)
    if slope <= 0:
        return _MOST_OVERHEAD_FRAMES
    return min(max(0.0, intercept / slope), _MOST_OVERHEAD_FRAMES)


class Pace:
    """What batches have lately cost, and how soon their clients came back; the batcher locks it."""

    def __init__(self) -> None:
        self.overhead_frames = _FIRST_OVERHEAD_FRAMES
        self._calls: deque[tuple[int, float]] = deque(maxlen=64)
        self._batch_s = self._refill_s = self._ended_s = 0.0
        self._expected = self._missing = 0

    def arrived(self, now_s: float) -> None:
        """A chunk was queued."""
        self._missing -= 1
        if self._missing == 0:
            self._note_refill(now_s)

    def ended(self, now_s: float, infer_s: float, answered: int, queued: int) -> None:
        """A batch ended: clients of ``answered`` chunks may come back, ``queued`` ones wait."""
        if self._missing > 0:
            self._note_refill(now_s)
        self._batch_s = (self._batch_s + infer_s) / 2
        self._expected, self._missing, self._ended_s = answered + queued, answered, now_s

    def called(self, padded_frames: int, infer_s: float) -> None:
        """One call of the model, from which its overhead is learned."""
        self._calls.append((padded_frames, infer_s))
        self.overhead_frames = learned_overhead(self._calls, self.overhead_frames)

    def hold_s(self, now_s: float, queued: int, max_wait_s: float) -> float:
        """For how long from now the next batch should wait for company; 0 or less: not at all."""
        wait_s = patience_s(queued, self._expected, self._refill_s, self._batch_s, max_wait_s)
        return self._ended_s + wait_s - now_s

    def _note_refill(self, now_s: float) -> None:
        # No longer than a batch, so that one quiet hour is soon forgotten.
        self._refill_s = (self._refill_s + min(now_s - self._ended_s, self._batch_s)) / 2
