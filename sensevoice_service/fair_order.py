"""Whose turn it is: requests share the device, however many chunks of theirs wait.

Start-time fair queueing (Goyal, Vin and Cheng, 1996), in frames. A chunk's turn is where its
request's chunk before it ended, or the virtual clock if that is later; the clock shows the latest
turn that has been served. So a newcomer is next, and the sixteenth chunk of a long file is not.

Newcomers alone would leave that clock where it is, and if they came without end a long file would
wait for ever. So each of them moves it on, by a share of its length.
"""

from __future__ import annotations

NEWCOMER_SHARE = 1 / 8  # a long file keeps a ninth of the device whoever comes


class FairOrder:
    """Requests are told apart by the identity of an object that their chunks share."""

    def __init__(self) -> None:
        self._now = 0.0
        # With the object itself, so that no other gets its id meanwhile.
        self._ends: dict[int, tuple[object, float]] = {}

    def join(self, request: object, n_frames: int) -> float:
        """The turn of a chunk; smaller ones come first, equal ones as they came."""
        _, end = self._ends.get(id(request), (request, 0.0))
        turn = max(self._now, end)
        self._ends[id(request)] = request, turn + n_frames
        if not end:
            self._now += n_frames * NEWCOMER_SHARE
        return turn

    def serve(self, turn: float) -> None:
        """The chunk of that turn is served."""
        self._now = max(self._now, turn)
        self._ends = {key: known for key, known in self._ends.items() if known[1] > self._now}
