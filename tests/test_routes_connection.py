"""What the connection makes of bytes that are, or are not quite, HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from sensevoice_service.logs import FIELDS
from sensevoice_service.routes.connection import MAX_HEADER_BYTES, MAX_PIPELINED
from tests.hostile import connect, raw, read_all
from tests.http_service import PATIENCE_S, serving

GET = b"GET /one HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
CHUNKED = b"POST /one HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
DEADLINE_S = 0.2


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers what it was asked: path, headers and body."""
    assert scope["type"] == "http"  # it knows of no start and no end
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    told = {"path": scope["path"], "headers": headers, "body": body.decode()}
    content = json.dumps(told).encode()
    length = (b"content-length", str(len(content)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": content})


@dataclass
class Held:
    """Answers no request before it may, and tells when the first came and whether it left."""

    may_go: threading.Event = field(default_factory=threading.Event)
    has_come: threading.Event = field(default_factory=threading.Event)
    has_left: threading.Event = field(default_factory=threading.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        self.has_come.set()
        watching = asyncio.create_task(self._watch(receive))
        await asyncio.to_thread(self.may_go.wait, PATIENCE_S)
        watching.cancel()
        await echo(scope, self._nothing, send)

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.has_left.set()
        self.may_go.set()

    async def _nothing(self) -> dict[str, Any]:
        return {"type": "http.request"}


def answers(data: bytes) -> list[dict[str, Any]]:
    """Of one connection, all that there were until the server closed it."""
    with serving(echo) as port:
        _, received = raw(port, data)
    bodies = [part.partition(b"\r\n\r\n")[2] for part in received.split(b"HTTP/1.1 200 OK")[1:]]
    return [json.loads(body) for body in bodies]


def status_of(data: bytes) -> int:
    with serving(echo) as port:
        return raw(port, data)[0]


def test_requests_that_come_together_are_answered_in_turn() -> None:
    assert [answer["path"] for answer in answers(GET + b"\r\n" + GET + LAST)] == [
        "/one",
        "/one",
        "/last",
    ]


def test_a_request_that_comes_byte_by_byte_is_read() -> None:
    body = b"X: y\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"
    with serving(echo) as port, connect(port) as connection:
        for byte in CHUNKED + b"Connection: close\r\n" + body:
            connection.sendall(bytes([byte]))
        answer = json.loads(read_all(connection).partition(b"\r\n\r\n")[2])
    assert (answer["body"], answer["headers"]["x"]) == ("hello!", "y")


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
@pytest.mark.parametrize("length", ["Content-Length: 5", "Transfer-Encoding: chunked"])
def test_who_asks_for_another_protocol_is_served_in_this_one(protocol: str, length: str) -> None:
    wish = f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: AA"
    body = b"hello" if "5" in length else b"5\r\nhello\r\n0\r\n\r\n"
    head = f"POST /one HTTP/1.1\r\nHost: x\r\n{wish}\r\n{length}\r\n\r\n".encode()
    first, second, last = answers(head + body + head + body + LAST)
    assert first == second
    assert first["body"] == "hello"
    assert "upgrade" not in first["headers"]
    assert first["headers"]["http2-settings"] == "AA"
    assert last["path"] == "/last"


def test_a_body_that_comes_after_the_wish_for_another_protocol_is_read() -> None:
    head = b"POST /one HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n"
    with serving(echo) as port, connect(port) as connection:
        connection.sendall(head + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"hello")
        answer = json.loads(read_all(connection).partition(b"\r\n\r\n")[2])
    assert answer["body"] == "hello"


def test_a_client_of_http_1_0_gets_no_interim_answer() -> None:
    head = b"POST /one HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
    with serving(echo) as port, connect(port) as connection:
        connection.sendall(head)
        connection.sendall(b"hello")
        received = read_all(connection)
    assert received.count(b"HTTP/1.1 ") == 1
    assert json.loads(received.partition(b"\r\n\r\n")[2])["body"] == "hello"


@pytest.mark.parametrize("path", ["/one", "/v1/audio/transcriptions"])
def test_a_body_that_is_none_is_told_of_in_the_words_of_its_path(path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine-1\r\n".encode()
    data = head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nZZ\r\n"
    with serving(echo) as port:
        status, received = raw(port, data)
    fields, _, body = received.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (400, "malformed_body")
    assert b"x-request-id: mine-1" in fields
    assert error.get("request_id") == ("mine-1" if path == "/one" else None)


def test_headers_behind_a_body_are_not_the_requests() -> None:
    trailers = b"X-Api-Key: stolen\r\nHost: y\r\n\r\n"
    first, _ = answers(CHUNKED + b"\r\n5\r\nhello\r\n0\r\n" + trailers + LAST)
    assert (first["body"], first["headers"]["host"]) == ("hello", "x")
    assert "x-api-key" not in first["headers"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX : y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(head: bytes) -> None:
    assert status_of(head) == 400


def test_a_request_of_http_1_0_needs_no_host() -> None:
    assert status_of(b"GET / HTTP/1.0\r\n\r\n") == 200


def test_a_request_that_is_none_is_told_so_in_the_shape_of_all_errors(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "sensevoice_service.requests")
    with serving(echo) as port:
        _, answer = raw(port, b"GET / HTTP/1.1\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "malformed_body")
    lines = head.lower().split(b"\r\n")
    assert f"x-request-id: {error['request_id']}".encode() in lines
    (line,) = (record for record in caplog.records if record.msg == "no request")
    assert getattr(line, FIELDS)["id"] == error["request_id"]
    assert b"content-length: %d" % len(body) in lines
    assert {b"connection: close", b"x-content-type-options: nosniff"} <= set(lines)


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_to_http_1_0_a_body_of_unknown_length_is_sent_as_it_is(method: bytes) -> None:
    async def tell(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for piece in (b"one", b"", b"two"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    with serving(tell) as port:
        _, answer = raw(port, method + b" / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert body == (b"onetwo" if method == b"GET" else b"")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param(b"GET /" + b"x" * 2 * MAX_HEADER_BYTES, id="path"),
        pytest.param(b"GET / HTTP/1.1\r\nX: " + b"x" * 2 * MAX_HEADER_BYTES, id="header"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * MAX_HEADER_BYTES, id="headers"),
        pytest.param(b"\r\n" * MAX_HEADER_BYTES, id="line ends"),
    ],
)
def test_what_leads_to_no_request_is_bounded(flood: bytes) -> None:
    assert status_of(flood) == 400


@pytest.mark.parametrize(
    "flood",
    [
        pytest.param(b"5;" + b"x" * 9 * MAX_HEADER_BYTES, id="chunk's extension"),
        pytest.param(b"0\r\nX: " + b"x" * 9 * MAX_HEADER_BYTES, id="trailer"),
        pytest.param(b"0\r\n" + b"X: y\r\n" * 9 * MAX_HEADER_BYTES, id="trailers"),
    ],
)
def test_what_leads_to_no_body_is_bounded_and_the_application_hears_of_it(flood: bytes) -> None:
    held = Held()
    with serving(held) as port, connect(port) as connection:
        connection.sendall(CHUNKED + b"\r\n")
        assert held.has_come.wait(PATIENCE_S)
        with suppress(ConnectionError):
            connection.sendall(flood)
        assert held.has_left.wait(PATIENCE_S)
        assert read_all(connection)[:12] in (b"HTTP/1.1 400", b"")


def test_a_client_that_does_not_await_its_answers_is_sent_away() -> None:
    held = Held()
    with serving(held) as port, connect(port) as connection:
        with suppress(ConnectionError):
            connection.sendall(GET * (MAX_PIPELINED + 2))
        assert held.has_come.wait(PATIENCE_S)
        received = read_all(connection)
        held.may_go.set()
    assert received.startswith(b"HTTP/1.1 400 ")


def test_what_is_no_request_breaks_off_the_answer_under_way() -> None:
    has_left = threading.Event()

    async def begin_and_wait(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        has_left.set()

    with serving(begin_and_wait) as port, connect(port) as connection:
        connection.sendall(GET)
        received = b""
        while b"begun" not in received:
            received += connection.recv(65_536)
        connection.sendall(GET + b"no request\r\n\r\n")
        assert has_left.wait(PATIENCE_S)
        assert read_all(connection) == b""


def test_the_request_in_hand_hears_of_a_hang_up_though_others_came_behind_it() -> None:
    held = Held()
    with serving(held) as port:
        with connect(port) as connection:
            connection.sendall(GET + GET)
            assert held.has_come.wait(PATIENCE_S)
        assert held.has_left.wait(PATIENCE_S)


@pytest.mark.parametrize("beginning", [b"GET", b"\r\n"])
def test_what_comes_behind_a_request_has_a_deadline_too(beginning: bytes) -> None:
    with serving(echo, header_timeout_s=DEADLINE_S) as port, connect(port) as connection:
        connection.sendall(GET)
        response = http.client.HTTPResponse(connection)
        response.begin()
        response.read()
        connection.sendall(beginning)
        assert read_all(connection) == b""


def test_the_deadline_of_the_next_request_costs_no_answer_of_the_one_before() -> None:
    held = Held()
    with serving(held, header_timeout_s=DEADLINE_S) as port, connect(port) as connection:
        connection.sendall(GET + b"GET /never")
        assert held.has_come.wait(PATIENCE_S)
        with connect(port) as silent:
            assert read_all(silent) == b""  # its deadline was later
        held.may_go.set()
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")
