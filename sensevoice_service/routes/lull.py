"""A full service looks at its sockets every few milliseconds instead of at each event.

Where the model runs on the same cores, whoever is to be turned away interrupts it several times:
the loop's thread is woken, finds the caches full of the model's weights, does little, and sleeps
again. The same events in groups cost less, of its own time and of the model's.
"""

from __future__ import annotations

import time
from asyncio import AbstractEventLoop
from collections.abc import Callable

LULL_S = 0.02
# A connection is accepted in one turn of the loop, and read in the next.
QUIET_TURNS = 3


class Lull:
    """Holds up the loop's thread for ``LULL_S`` once a group of refusals is over.

    Those who were let in wait for the loop too, so the model must have enough to do meanwhile:
    ``backlog_s`` tells for how long it is busy with what it has got.
    """

    def __init__(
        self, backlog_s: Callable[[], float], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._backlog_s = backlog_s
        self._sleep = sleep
        self._n_refused = 0
        self._is_watching = False

    def after_refusal(self, loop: AbstractEventLoop) -> None:
        """To be called in the loop's thread."""
        self._n_refused += 1
        if not self._is_watching:
            self._is_watching = True
            loop.call_soon(self._watch, loop, self._n_refused, QUIET_TURNS)

    def _watch(self, loop: AbstractEventLoop, n_refused: int, turns: int) -> None:
        """A turn of the loop; ``turns`` more without a refusal are waited for."""
        if n_refused != self._n_refused:
            turns = QUIET_TURNS
        if turns:
            loop.call_soon(self._watch, loop, self._n_refused, turns - 1)
            return
        self._is_watching = False
        if self._backlog_s() >= 2 * LULL_S:
            self._sleep(LULL_S)
