"""The client's end of one request: the body it sends, and whether it is still there."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, NoReturn, TypeVar

import anyio
from starlette.types import Receive, Scope

from sensevoice_service.routes.errors import ClientGone, UploadStalled
from sensevoice_service.routes.headers import header_of
from sensevoice_service.tasks import stop

READ_AHEAD_BYTES = 512 * 1024
STALL_TIMEOUT_S = 30.0
# Behind that first time: a recording at 6 kbit/s that is sent as it is made is faster.
LEAST_BYTES_PER_S = 500

T = TypeVar("T")


def waits_for_leave(scope: Scope) -> bool:
    """Whether the client holds its body back until the server asks for it."""
    is_old = scope.get("http_version") == "1.0"  # which knows no such thing
    return header_of(scope, b"expect").lower() == b"100-continue" and not is_old


class Client:
    """Reads the body when asked to, and before and after that watches for a hang-up.

    A server tells of a hang-up only to those who wait for the next message, so watching before
    the body is read means reading a little of it. That little is kept for ``body``.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        stall_timeout_s: float = STALL_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._receive = receive
        self._stall_timeout_s = stall_timeout_s
        self._clock = clock
        self._ahead: deque[bytes] = deque()
        self._ahead_bytes = 0
        self._is_complete = False
        # Waiting for a message would tell such a client to go on and send its body.
        self._may_read_ahead = not waits_for_leave(scope)

    async def body(self) -> AsyncGenerator[bytes, None]:
        """The body in pieces, once. Raises ``ClientGone`` and ``UploadStalled``."""
        began_s, n_bytes = self._clock(), 0
        while True:
            while self._ahead:
                n_bytes += len(self._ahead[0])
                yield self._ahead.popleft()
            if self._is_complete:
                return
            allowed_s = self._stall_timeout_s + n_bytes / LEAST_BYTES_PER_S
            left_s = allowed_s - (self._clock() - began_s)
            with anyio.move_on_after(min(self._stall_timeout_s, left_s)) as waiting:
                await self._pull()
            spent_s = self._clock() - began_s
            if waiting.cancelled_caught or spent_s > allowed_s:
                raise UploadStalled(f"{n_bytes} bytes of the body came in {spent_s:.0f} s")

    async def unless_gone(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``; it is cancelled, and waited for, when the client hangs up.

        Raises ``ClientGone`` then. Not to be used while ``body`` is being read.
        """
        working, watching = asyncio.create_task(work), asyncio.create_task(self._gone())
        try:
            await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else watching.result()
        finally:
            await stop(working, watching)

    async def _gone(self) -> NoReturn:
        """Ends only by raising ``ClientGone``, or what the reading of the body raises."""
        while self._is_complete or (self._may_read_ahead and self._ahead_bytes < READ_AHEAD_BYTES):
            await self._pull()
        await asyncio.get_running_loop().create_future()
        raise AssertionError("unreachable")

    async def _pull(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        if self._is_complete:
            return
        piece = message.get("body", b"")
        if piece:
            self._ahead.append(piece)
            self._ahead_bytes += len(piece)
        self._is_complete = not message.get("more_body", False)
