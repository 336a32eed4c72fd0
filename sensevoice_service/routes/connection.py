"""The HTTP connection itself: uvicorn's, with a deadline and a bound for what leads to no body.

httptools reads the bytes, in C. It is more lenient than a service behind a proxy may be, since the
two must never see different requests in the same bytes (request smuggling, RFC 9112 section 11.2).
"""

from __future__ import annotations

import asyncio
import logging
import math
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from sensevoice_service.logs import FIELDS
from sensevoice_service.routes.errors import not_http
from sensevoice_service.routes.headers import header_of
from sensevoice_service.routes.middleware import HELD_BACK_DRAIN_S, LONGEST_DRAIN_S
from sensevoice_service.routes.trace import new_request_id, request_id_of

if TYPE_CHECKING:
    from starlette.responses import Response

MAX_HEADER_BYTES = 32 * 1024
MAX_PIPELINED = 32
CLOSE = (b"connection", b"close")

_log = logging.getLogger("sensevoice_service.requests")

TurnAway = Callable[[Any], "Response | None"]
AfterRefusal = Callable[[asyncio.AbstractEventLoop], None]


def let_in(_scope: Any) -> None:
    """Turns nobody away."""


def go_on(_loop: asyncio.AbstractEventLoop) -> None:
    """As if nothing had been."""


def connection_with(
    header_timeout_s: float, turn_away: TurnAway = let_in, after_refusal: AfterRefusal = go_on
) -> type[HttpToolsProtocol]:
    """The protocol for uvicorn's ``http`` setting, which it makes a connection of by itself.

    ``turn_away`` is asked with each request's scope before the application is; where it has an
    answer, that is the end of the connection, and ``after_refusal`` is told.
    """
    given = {
        "header_timeout_s": header_timeout_s,
        "turn_away": staticmethod(turn_away),
        "after_refusal": staticmethod(after_refusal),
    }
    return type("Connection", (Connection,), given)


class Connection(HttpToolsProtocol):
    """Ends when a request's headers are not there ``header_timeout_s`` after its first byte.

    The first request's time counts from the connection's start. Each byte sent in time is no reason
    to wait for longer; a client that keeps a connection without a request is uvicorn's to end.
    """

    header_timeout_s: ClassVar[float] = 10.0
    turn_away: ClassVar[staticmethod[[Any], Response | None]] = staticmethod(let_in)
    after_refusal: ClassVar[staticmethod[[asyncio.AbstractEventLoop], None]] = staticmethod(go_on)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = _Parser(self)
        self._deadline: asyncio.TimerHandle | None = None
        self._has_headers = False
        self._head_bytes = 0
        self._idle_bytes = 0  # since the last that were of a body, or ended the headers
        self._unread_bytes: float | None = None  # of who has been turned away
        self._waits_for_leave = False  # who has been turned away, to send its body
        self._latest: RequestResponseCycle | None = None  # the last whose answer has been begun

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        if self._is_turned_away:
            self._throw_away(len(data))
            return
        self._idle_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            self._end_wait()
        elif self._idle_bytes > MAX_HEADER_BYTES:
            self.send_400_response("Too much that is no body.")
        elif self._deadline is None and not (self._has_headers and self._in_hand):
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_wait()
        self._tell_of_hang_up()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._has_headers = False
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        if not self._has_headers:  # or else behind the body, when nobody asks for headers any more
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._idle_bytes = 0
        if self.parser.should_upgrade():
            return  # it comes once more: see _Parser
        if self._is_turned_away:
            return  # it follows one that was
        version = self.parser.get_http_version()
        _require_one_meaning(version, self.headers)
        if version == "1.0":
            self.expect_100_continue = False  # it knows no interim answers (RFC 9110 10.1.1)
        self._end_wait()
        super().on_headers_complete()
        self._has_headers = True
        if len(self.pipeline) > MAX_PIPELINED:
            raise ValueError("more requests than a connection may have waiting")

    def on_body(self, body: bytes) -> None:
        if self._is_turned_away:
            self._throw_away(len(body))
            return
        self._idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_turned_away:
            self.transport.close()
        elif self._has_headers:
            super().on_message_complete()

    def head_without_upgrade(self) -> bytes:
        """The request line and the headers just read, less the wish for another protocol.

        Raises ``httptools.HttpParserError`` where that is all that the request is about.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if method == b"CONNECT":
            raise httptools.HttpParserError("no tunnels")
        lines = [b"%b %b HTTP/%b" % (method, self.url, version.encode())]
        lines += [b"%b: %b" % (name, value) for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def send_400_response(self, msg: str) -> None:
        """Where an answer is under way already, the connection just ends.

        For the application, which may be at work on the request, the client has hung up.
        """
        cycle = self._in_hand
        if not (self._is_turned_away or (cycle is not None and cycle.response_started)):
            scope: Any = None if cycle is None else cycle.scope
            request_id = new_request_id() if scope is None else request_id_of(scope)
            _log.info("no request", extra={FIELDS: {"id": request_id, "reason": msg}})
            self._write(not_http(request_id, scope))
        self.transport.close()
        self._tell_of_hang_up()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._latest = cycle
        refusal = self.turn_away(cycle.scope)
        if refusal is None:
            is_old = cycle.scope["http_version"] == "1.0"
            super()._start_asgi_task(cycle, _without_chunks(app, cycle) if is_old else app)
        else:
            self._refuse(cycle, refusal)

    def _refuse(self, cycle: RequestResponseCycle, refusal: Response) -> None:
        """Answer, and throw away what the client still sends: some read nothing until all is sent.

        If a connection is closed with unread data in it, the client's system drops the answer.
        """
        self._write(refusal)
        cycle.response_started = cycle.response_complete = True
        self.server_state.total_requests += 1
        self._unread_bytes = _length_of(cycle.scope)
        self._waits_for_leave = cycle.waiting_for_100_continue
        self._abort_after(HELD_BACK_DRAIN_S if self._waits_for_leave else LONGEST_DRAIN_S)
        self._throw_away(len(cycle.body))
        self.after_refusal(self.loop)

    def _write(self, response: Response) -> None:
        """The last one of a connection."""
        headers = [*self.server_state.default_headers, *response.raw_headers, CLOSE]
        lines = [b"%b: %b\r\n" % header for header in dict.fromkeys(headers)]
        head = [STATUS_LINE[response.status_code], *lines, b"\r\n"]
        self.transport.write(b"".join([*head, response.body]))

    def _throw_away(self, n_bytes: int) -> None:
        assert self._unread_bytes is not None
        self._unread_bytes -= n_bytes
        if n_bytes and self._waits_for_leave:  # no longer
            self._waits_for_leave = False
            self._abort_after(LONGEST_DRAIN_S)
        if self._unread_bytes <= 0:
            self.transport.close()

    @property
    def _is_turned_away(self) -> bool:
        return self._unread_bytes is not None

    @property
    def _in_hand(self) -> RequestResponseCycle | None:
        """What is being answered, where several came together not ``cycle``, the last read."""
        latest = self._latest
        return None if latest is None or latest.response_complete else latest

    def _tell_of_hang_up(self) -> None:
        if (cycle := self._in_hand) is not None:
            cycle.disconnected = True
            cycle.message_event.set()

    def _count_head(self, n_bytes: int) -> None:
        self._head_bytes += n_bytes
        if self._head_bytes > MAX_HEADER_BYTES:
            raise ValueError("more headers than may be")

    def _abort_after(self, seconds: float) -> None:
        self._end_wait()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _await_headers(self) -> None:
        self._deadline = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def _end_wait(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self._in_hand:  # an earlier request, whose answer must not be lost
            self._await_headers()
        else:
            self.transport.abort()


class _Parser(httptools.HttpRequestParser):
    """Reads a request that asks for another protocol as one that does not.

    This service speaks HTTP/1.1 alone, and may say so by going on (RFC 9110 section 7.8). Java's
    client asks for HTTP/2 in this way, with a body, for which httptools would not look.
    """

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._connection = connection

    def feed_data(self, data: bytes | bytearray | memoryview[int] | array[int]) -> None:
        parser, rest = self, memoryview(data)
        while True:
            try:
                super(_Parser, parser).feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                head = self._connection.head_without_upgrade()
                # A new one: where the connection is to close, this one looks at nothing more.
                parser = self._connection.parser = _Parser(self._connection)
                super(_Parser, parser).feed_data(head)


def _without_chunks(app: Any, cycle: RequestResponseCycle) -> Any:
    """To a client of HTTP/1.0 a body of unknown length ends with the connection (RFC 9112 6.3).

    uvicorn would send it in chunks, which such a client takes for part of the body.
    """

    async def run(scope: Any, receive: Any, send: Any) -> None:
        has_length = False

        async def send_plain(message: Any) -> None:
            nonlocal has_length
            if message["type"] == "http.response.start":
                headers = message.get("headers", ())
                has_length = any(name.lower() == b"content-length" for name, _ in headers)
                cycle.chunked_encoding = None if has_length else False
            elif not has_length:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)

    return run


def _length_of(scope: Any) -> float:
    """Of the body, in bytes; that of one in chunks is not known."""
    if header_of(scope, b"transfer-encoding"):
        return math.inf
    return int(header_of(scope, b"content-length") or 0)


def _require_one_meaning(version: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Raises ``ValueError`` where a proxy could believe in another end or host of the request."""
    if version not in ("1.0", "1.1"):
        raise ValueError("another version of HTTP")
    n_hosts = sum(name == b"host" for name, _ in headers)
    if n_hosts > 1 or (n_hosts == 0 and version == "1.1"):
        raise ValueError("not one Host")
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if codings and (codings != [b"chunked"] or version == "1.0"):
        raise ValueError("an encoding that is not known")
    if codings and any(name == b"content-length" for name, _ in headers):
        raise ValueError("both Content-Length and Transfer-Encoding")
