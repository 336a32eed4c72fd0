from __future__ import annotations

import asyncio
import logging
from typing import Any

import anyio
import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sensevoice_service.logs import FIELDS
from sensevoice_service.routes import middleware
from sensevoice_service.routes.middleware import BodyLimit, OrderlyRefusal
from sensevoice_service.types import UploadTooLarge
from tests.http_service import house


def scope(**headers: str) -> Scope:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "headers": raw}


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers without a look at the body."""
    await send({"type": "http.response.start", "status": 503, "headers": []})
    await send({"type": "http.response.body", "body": b"no"})


async def read_then_answer(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body", False):
        pass
    await refuse(scope, receive, send)


class Wire:
    """A client that sends 1000 bytes with each message, without end or up to a number of them."""

    def __init__(self, n_messages: int | None = None) -> None:
        self.n_received = 0
        self.sent: list[Message] = []
        self._n_messages = n_messages

    async def receive(self) -> Message:
        self.n_received += 1
        more = self._n_messages is None or self.n_received < self._n_messages
        return {"type": "http.request", "body": bytes(1000), "more_body": more}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def run(self, app: ASGIApp, **headers: str) -> None:
        await app(scope(**headers), self.receive, self.send)

    @property
    def closes(self) -> bool:
        return (b"connection", b"close") in self.sent[0]["headers"]


async def test_an_early_answer_is_sent_whole_before_the_rest_is_thrown_away() -> None:
    wire = Wire(n_messages=5)
    received_at: list[int] = []

    async def send(message: Message) -> None:
        received_at.append(wire.n_received)
        await wire.send(message)

    await OrderlyRefusal(refuse, 10_000)(scope(content_length="5000"), wire.receive, send)
    assert received_at == [0, 0, 5]
    assert [message.get("body") for message in wire.sent] == [None, b"no", b""]
    assert [message.get("more_body") for message in wire.sent] == [None, True, False]
    assert wire.closes


async def test_no_more_is_thrown_away_than_the_limit() -> None:
    wire = Wire()
    await wire.run(OrderlyRefusal(refuse, 3_000), transfer_encoding="chunked")
    assert wire.n_received == 4
    assert wire.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


@pytest.mark.parametrize(
    ("longest", "headers"),
    [("LONGEST_DRAIN_S", {}), ("HELD_BACK_DRAIN_S", {"expect": "100-continue"})],
)
async def test_a_silent_client_is_not_waited_for_for_ever(
    longest: str, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, longest, 0.01)
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("unreachable")

    async def send(message: Message) -> None:
        sent.append(message)

    await OrderlyRefusal(refuse, 3_000)(scope(content_length="9", **headers), receive, send)
    assert sent[-1]["more_body"] is False


async def test_a_client_that_sends_without_the_leave_it_asked_for_is_read_too() -> None:
    wire = Wire(n_messages=5)
    deadlines_s: list[float] = []

    async def receive() -> Message:
        deadlines_s.append(anyio.current_effective_deadline() - anyio.current_time())
        return await wire.receive()

    asked = scope(content_length="5000", expect="100-continue")
    await OrderlyRefusal(refuse, 10_000)(asked, receive, wire.send)
    assert wire.n_received == 5
    assert wire.closes
    assert deadlines_s[0] <= middleware.HELD_BACK_DRAIN_S < min(deadlines_s[1:])


@pytest.mark.parametrize("headers", [{}, {"content_length": "0"}])
async def test_a_request_without_a_body_is_answered_as_it_is(headers: dict[str, str]) -> None:
    wire = Wire()
    await wire.run(OrderlyRefusal(refuse, 3_000), **headers)
    assert wire.n_received == 0
    assert len(wire.sent) == 2
    assert not wire.closes


async def test_an_answer_after_the_whole_body_keeps_the_connection() -> None:
    wire = Wire(n_messages=3)
    await wire.run(OrderlyRefusal(read_then_answer, 3_000), content_length="3000")
    assert len(wire.sent) == 2
    assert not wire.closes


async def test_a_body_of_just_the_limit_is_taken() -> None:
    wire = Wire(n_messages=3)
    await wire.run(BodyLimit(read_then_answer, 3_000), content_length="3000")
    assert wire.sent[0]["status"] == 503


async def test_a_declared_length_over_the_limit_is_refused_unread() -> None:
    wire = Wire()
    with pytest.raises(UploadTooLarge):
        await wire.run(BodyLimit(read_then_answer, 3_000), content_length="3001")
    assert wire.n_received == 0


async def test_an_undeclared_length_is_refused_once_over_the_limit() -> None:
    wire = Wire()
    with pytest.raises(UploadTooLarge, match="larger than"):
        await wire.run(BodyLimit(read_then_answer, 3_000))
    assert wire.n_received == 4


@pytest.mark.parametrize(
    ("content", "level"), [(b"hello", "INFO"), (b"noise", "INFO"), (b"break", "ERROR")]
)
def test_the_level_of_a_line_follows_the_outcome(
    content: bytes, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sensevoice_service.requests")
    sent: Any = {"files": ("x.wav", content)}
    TestClient(house().app()).post("/transcribe", files=sent)
    lines = [line for line in caplog.records if line.name == "sensevoice_service.requests"]
    assert [line.levelname for line in lines] == [level]


def test_turning_work_away_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    place = house(MEMORY_LIMIT_PERCENT=1.0)
    TestClient(place.app()).post("/transcribe", files={"files": b"hello"})
    (line,) = caplog.records
    assert (line.levelname, getattr(line, FIELDS)["shed"]) == ("WARNING", "memory")


@pytest.mark.parametrize(
    ("path", "level"),
    [
        ("/", logging.INFO),
        ("/page/favicon.svg", logging.DEBUG),
        ("/docs/assets/page.css", logging.DEBUG),
        ("/page/none.js", logging.INFO),
        ("/docs/assets/none.js", logging.INFO),
    ],
)
def test_the_files_of_a_page_are_logged_for_debugging_only(
    path: str, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "sensevoice_service.requests")
    TestClient(house().app()).get(path)
    assert [line.levelno for line in caplog.records if hasattr(line, FIELDS)] == [level]
