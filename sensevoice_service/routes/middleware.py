"""What surrounds every route, as plain ASGI: log line, errors, body limit, orderly refusal."""

from __future__ import annotations

import time
from collections.abc import Mapping

import anyio
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sensevoice_service.routes.client import waits_for_leave
from sensevoice_service.routes.errors import (
    CLIENT_GONE_STATUS,
    ClientGone,
    error_response,
    unforeseen,
)
from sensevoice_service.routes.headers import header_of
from sensevoice_service.routes.ledger import Ledger
from sensevoice_service.routes.trace import RequestTrace, attach, request_id_of, trace_of
from sensevoice_service.types import Overloaded, ServiceError, UploadTooLarge

LONGEST_DRAIN_S = 10.0
# For the first byte of a client that waits for leave to send its body and gets an answer instead:
# curl sends after a second of waiting all the same.
HELD_BACK_DRAIN_S = 2.0


class RequestContext:
    """Gives each request its id and its entry in the ledger, and answers their common headers."""

    def __init__(self, app: ASGIApp, ledger: Ledger) -> None:
        self._app = app
        self._ledger = ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = RequestTrace(request_id_of(scope))
        attach(scope, trace)
        began_s = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [(b"x-request-id", trace.request_id.encode())]
                if phases_s := trace.phases_s:
                    total_s = time.perf_counter() - began_s
                    timing = _server_timing({**phases_s, "total": total_s})
                    headers.append((b"server-timing", timing.encode()))
                message["headers"] = [*message.get("headers", ()), *headers]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except BaseException:
            trace.outcome = "aborted"
            raise
        finally:
            self._ledger.enter(scope, status, trace, time.perf_counter() - began_s)


def _server_timing(phases_s: Mapping[str, float]) -> str:
    """The value of the header ``Server-Timing``, whose durations are in milliseconds."""
    return ", ".join(f"{phase};dur={spent_s * 1000:.1f}" for phase, spent_s in phases_s.items())


class OrderlyRefusal:
    """Lets a client that sends its whole body first read an answer that came before the end of it.

    A server that closes a connection with unread data in it makes the client's system drop the
    answer. So an early answer is sent whole, with ``connection: close``, and what the client still
    sends is thrown away, up to ``drain_bytes`` and ``LONGEST_DRAIN_S``, before the connection ends.
    """

    def __init__(self, app: ASGIApp, drain_bytes: int) -> None:
        self._app = app
        self._drain_bytes = drain_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        body = _BodyWatch(scope, receive)
        early = False

        async def send_then_drain(message: Message) -> None:
            nonlocal early
            if message["type"] == "http.response.start" and not body.is_complete:
                early = True
                MutableHeaders(scope=message)["connection"] = "close"
            elif early and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await body.drain(self._drain_bytes)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self._app(scope, body.receive, send_then_drain)


def _has_body(scope: Scope) -> bool:
    if header_of(scope, b"transfer-encoding"):
        return True
    return header_of(scope, b"content-length") not in (b"", b"0")


class _BodyWatch:
    """Knows whether the end of a request's body has been received."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._is_held_back = waits_for_leave(scope)
        self.is_complete = False

    async def receive(self) -> Message:
        self._is_held_back = False
        message = await self._receive()
        self.is_complete = self.is_complete or not message.get("more_body", False)
        return message

    async def drain(self, limit_bytes: int) -> None:
        """Throw away the rest, where there comes any."""
        end_s = anyio.current_time() + LONGEST_DRAIN_S
        first_s = HELD_BACK_DRAIN_S if self._is_held_back else LONGEST_DRAIN_S
        n_bytes = 0
        with anyio.move_on_after(first_s) as patience:
            while not self.is_complete and n_bytes <= limit_bytes:
                n_bytes += len((await self.receive()).get("body", b""))
                patience.deadline = end_s


class ErrorBoundary:
    """Turns what a route raises into an answer; only the unforeseen is logged with a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_started = False

        async def send_and_note(message: Message) -> None:
            nonlocal is_started
            is_started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception as error:
            if is_started:  # too late for an answer: the server logs it and cuts the connection
                raise
            await _answer(error, scope)(scope, receive, send)


def _answer(error: Exception, scope: Scope) -> Response:
    trace = trace_of(scope)
    if isinstance(error, ClientGone):
        trace.outcome = "disconnected"
        return Response(status_code=CLIENT_GONE_STATUS)
    if not isinstance(error, ServiceError):
        error = unforeseen(error, trace.request_id)
    trace.outcome = error.code
    if isinstance(error, Overloaded):
        trace.shed = error.param
    return error_response(error, scope)


class BodyLimit:
    """Refuses a body over ``max_bytes``: by its declared length, or as soon as that much came."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = header_of(scope, b"content-length")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise self._too_large()
        n_bytes = 0

        async def receive_and_count() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, receive_and_count, send)

    def _too_large(self) -> UploadTooLarge:
        return UploadTooLarge(f"the body is larger than {self._max_bytes / 2**20:g} MiB")
