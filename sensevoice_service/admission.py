"""Who may come in and for how long: slots, a bounded line of those who wait, a memory guard."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from sensevoice_service.tasks import stop
from sensevoice_service.types import NotReady, Overloaded, ServiceError, TimedOut

LONGEST_RETRY_AFTER_S = 5

T = TypeVar("T")


@dataclass(frozen=True)
class Refusal:
    """For ``want`` of what somebody is turned away, one of ``metrics.SHED_REASONS``, and why."""

    want: str
    why: str


@dataclass(frozen=True)
class AdmissionStats:
    active: int
    waiting: int
    limit: int
    max_waiting: int


async def _first_of(*futures: asyncio.Future[Any], timeout_s: float | None = None) -> None:
    # asyncio.wait leaves the futures alone when time is up, where wait_for would cancel them and
    # could lose a slot that was handed over meanwhile.
    await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


class Place:
    """A slot, or a place in the line for one; leaving the ``with`` block gives up either.

    It is made by ``Admission.enter``. Whoever is cancelled while waiting leaves the block like
    anyone else, so that a slot handed over in that very moment goes to the next in line.
    """

    def __init__(self, admission: Admission, turn: asyncio.Future[None]) -> None:
        self._admission = admission
        self._turn = turn
        self._over: asyncio.Future[NoReturn] = turn.get_loop().create_future()

    @property
    def is_granted(self) -> bool:
        """Whether the slot is there, and the place has not ended."""
        return self._turn.done() and not self._over.done()

    async def granted(self) -> None:
        """Wait for the slot. Raises ``Overloaded`` when that takes too long, or as ``within``."""
        timeout_s = self._admission.queue_timeout_s
        await _first_of(self._turn, self._over, timeout_s=timeout_s)
        if self._over.done():
            self._over.result()
        if not self._turn.done():
            late = Refusal("timeout", f"no slot came free within {timeout_s:g} s")
            raise self._admission.overloaded(late)

    async def within(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``; it is cancelled, and waited for, when its time is over.

        Raises ``TimedOut`` then, or ``NotReady`` where the service ends.
        """
        working = asyncio.create_task(work)
        try:
            await _first_of(working, self._over)
            return working.result() if working.done() else self._over.result()
        finally:
            await stop(working)

    def end(self, error: ServiceError) -> None:
        """Make those who wait for the slot, or for work within it, raise ``error``."""
        if not self._over.done():
            self._over.set_exception(error)
            self._over.exception()  # nobody need be waiting: that is not worth a line in the log

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._admission._leave(self, self._turn)


class Admission:
    """First come, first served. All methods belong to one event loop's thread.

    ``memory_percent`` is asked once for each newcomer; work already let in goes on, for up to
    ``request_timeout_s`` from the moment it came where that is not 0.
    """

    def __init__(
        self,
        limit: int,
        max_waiting: int,
        queue_timeout_s: float,
        memory_percent: Callable[[], float],
        memory_limit_percent: float,
        jitter: random.Random | None = None,
        request_timeout_s: float = 0.0,
    ) -> None:
        self.queue_timeout_s = queue_timeout_s
        self._limit = limit
        self._max_waiting = max_waiting
        self._memory_percent = memory_percent
        self._memory_limit_percent = memory_limit_percent
        self._jitter = jitter or random.Random()
        self._request_timeout_s = request_timeout_s
        self._active = 0
        self._line: deque[asyncio.Future[None]] = deque()
        self._timers: dict[Place, asyncio.TimerHandle | None] = {}
        self._is_closed = False
        self._has_worked = False

    def refusal(self) -> Refusal | None:
        """What a newcomer would be told now; ``None`` where it would be let in."""
        if self._memory_percent() >= self._memory_limit_percent:
            return Refusal("memory", "the service is short of memory")
        if self._active >= self._limit and len(self._line) >= self._max_waiting:
            why = f"{self._active} requests are being worked on and {len(self._line)} are waiting"
            return Refusal("full", why)
        return None

    def require_place(self) -> None:
        """Raises ``Overloaded`` where there is neither a slot nor a place in the line."""
        if (refusal := self.refusal()) is not None:
            raise self.overloaded(refusal)

    def enter(self) -> Place:
        """Take a slot or a place in the line.

        Raises ``Overloaded`` where there is neither, and ``NotReady`` after ``close``.
        """
        if self._is_closed:
            raise self._closing()
        self.require_place()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._active < self._limit:
            self._active += 1
            turn.set_result(None)
        else:
            self._line.append(turn)
        place = Place(self, turn)
        self._timers[place] = self._limit_time(place)
        self._has_worked = True
        return place

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Place]:
        """Hold a slot for the length of the block. Raises as ``enter`` and ``Place.granted``."""
        with self.enter() as place:
            await place.granted()
            yield place

    def close(self) -> None:
        """End all that is waiting or being worked on with ``NotReady``, and let nobody in."""
        self._is_closed = True
        for place in self._timers:
            place.end(self._closing())

    async def tidy_when_idle(self, tidy: Callable[[], None], every_s: float) -> NoReturn:
        """Call ``tidy``, in a thread, when nobody is in and somebody has been since the last."""
        while True:
            await asyncio.sleep(every_s)
            if self._has_worked and not self._active:
                self._has_worked = False
                await asyncio.to_thread(tidy)

    def stats(self) -> AdmissionStats:
        return AdmissionStats(self._active, len(self._line), self._limit, self._max_waiting)

    def overloaded(self, refusal: Refusal) -> Overloaded:
        message = f"{refusal.why}; try again later"
        return Overloaded(message, param=refusal.want, retry_after_s=self._retry_after_s())

    def _closing(self) -> NotReady:
        message = "the service is stopping"
        return NotReady(message, param="stopping", retry_after_s=self._retry_after_s())

    def _retry_after_s(self) -> int:
        # Spread, so that those turned away together do not come back together.
        return self._jitter.randint(1, LONGEST_RETRY_AFTER_S)

    def _limit_time(self, place: Place) -> asyncio.TimerHandle | None:
        timeout_s = self._request_timeout_s
        if not timeout_s:
            return None
        error = TimedOut(f"the request took longer than {timeout_s:g} s")
        return asyncio.get_running_loop().call_later(timeout_s, place.end, error)

    def _leave(self, place: Place, turn: asyncio.Future[None]) -> None:
        if (timer := self._timers.pop(place)) is not None:
            timer.cancel()
        if not turn.done():
            self._line.remove(turn)
        elif self._line:
            self._line.popleft().set_result(None)  # the slot passes on, still taken
        else:
            self._active -= 1
