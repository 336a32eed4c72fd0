"""Who may come in: a fixed number of slots, a bounded line of those who wait, a memory guard."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType

from sensevoice_service.types import Overloaded

LONGEST_RETRY_AFTER_S = 5


@dataclass(frozen=True)
class AdmissionStats:
    active: int
    waiting: int
    limit: int
    max_waiting: int


class Place:
    """A slot, or a place in the line for one; leaving the ``with`` block gives up either.

    It is made by ``Admission.enter``. Whoever is cancelled while waiting leaves the block like
    anyone else, so that a slot handed over in that very moment goes to the next in line.
    """

    def __init__(self, admission: Admission, turn: asyncio.Future[None]) -> None:
        self._admission = admission
        self._turn = turn

    async def granted(self) -> None:
        """Wait for the slot. Raises ``Overloaded`` when the waiting time is over."""
        await self._admission._wait(self._turn)

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._admission._leave(self._turn)


class Admission:
    """First come, first served. All methods belong to one event loop's thread.

    ``memory_percent`` is asked once for each newcomer; work already let in goes on.
    """

    def __init__(
        self,
        limit: int,
        max_waiting: int,
        queue_timeout_s: float,
        memory_percent: Callable[[], float],
        memory_limit_percent: float,
        jitter: random.Random | None = None,
    ) -> None:
        self._limit = limit
        self._max_waiting = max_waiting
        self._queue_timeout_s = queue_timeout_s
        self._memory_percent = memory_percent
        self._memory_limit_percent = memory_limit_percent
        self._jitter = jitter or random.Random()
        self._active = 0
        self._line: deque[asyncio.Future[None]] = deque()

    def refusal(self) -> str | None:
        """Why a newcomer would be turned away now, or ``None``."""
        if self._memory_percent() >= self._memory_limit_percent:
            return "the service is short of memory"
        if self._active >= self._limit and len(self._line) >= self._max_waiting:
            return f"{self._active} requests are being worked on and {len(self._line)} are waiting"
        return None

    def enter(self) -> Place:
        """Take a slot or a place in the line. Raises ``Overloaded`` where there is neither."""
        reason = self.refusal()
        if reason is not None:
            raise self._overloaded(reason)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._active < self._limit:
            self._active += 1
            turn.set_result(None)
        else:
            self._line.append(turn)
        return Place(self, turn)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a slot for the length of the block. Raises ``Overloaded``."""
        with self.enter() as place:
            await place.granted()
            yield

    def stats(self) -> AdmissionStats:
        return AdmissionStats(self._active, len(self._line), self._limit, self._max_waiting)

    async def _wait(self, turn: asyncio.Future[None]) -> None:
        # asyncio.wait leaves the future alone when time is up, where wait_for would cancel it
        # and could lose a slot that was handed over meanwhile.
        await asyncio.wait({turn}, timeout=self._queue_timeout_s)
        if not turn.done():
            raise self._overloaded(f"no slot came free within {self._queue_timeout_s:g} s")

    def _leave(self, turn: asyncio.Future[None]) -> None:
        if not turn.done():
            self._line.remove(turn)
        elif self._line:
            self._line.popleft().set_result(None)  # the slot passes on, still taken
        else:
            self._active -= 1

    def _overloaded(self, reason: str) -> Overloaded:
        # Spread, so that those turned away together do not come back together.
        retry_after_s = self._jitter.randint(1, LONGEST_RETRY_AFTER_S)
        return Overloaded(f"{reason}; try again later", retry_after_s=retry_after_s)
