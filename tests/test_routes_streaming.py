from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from starlette.responses import Response
from starlette.types import Message

from sensevoice_service.routes.client import Client
from sensevoice_service.routes.errors import ClientGone
from sensevoice_service.routes.streaming import (
    Dialect,
    Event,
    OnFileProgress,
    Work,
    start_stream,
)
from sensevoice_service.routes.trace import RequestTrace
from sensevoice_service.types import CorruptAudio, Progress, ServiceError
from tests.http_service import PATIENCE_S, log_lines

DONE = Event("the end", "done")
GONE: Message = {"type": "http.disconnect"}


def progress_events(index: int, progress: Progress) -> Iterable[Event]:
    return [Event.of([index, progress.fraction, progress.text], "progress")]


def error_events(error: ServiceError) -> Iterable[Event]:
    return [Event.of(error.message, "error")]


class Stage:
    """One request whose body has been read, and all that is sent as its answer."""

    def __init__(self, keep_alive_s: float = PATIENCE_S) -> None:
        self.wire: asyncio.Queue[Message] = asyncio.Queue()
        self.client = Client({"type": "http", "headers": []}, self.wire.get)
        self.trace = RequestTrace("id-1")
        self.sent: list[Message] = []
        self.has_sent = asyncio.Condition()
        self.may_send = asyncio.Event()
        self.may_send.set()
        self.is_held = True
        self.keep_alive_s = keep_alive_s

    async def start(self, work: Work, dialect: Dialect | None = None) -> Response:
        held = AsyncExitStack()
        held.callback(self._let_go)
        dialect = dialect or Dialect(progress_events, error_events)
        return await start_stream(
            work, dialect, self.client, self.trace, held, keep_alive_s=self.keep_alive_s
        )

    async def play(self, work: Work, dialect: Dialect | None = None) -> str:
        """The whole stream, which must have ended as it should."""
        await (await self.start(work, dialect))({}, self.wire.get, self.send)
        assert self.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
        return self.text

    def _let_go(self) -> None:
        self.is_held = False

    async def send(self, message: Message) -> None:
        await self.may_send.wait()
        async with self.has_sent:
            self.sent.append(message)
            self.has_sent.notify_all()

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with self.has_sent:
            await asyncio.wait_for(self.has_sent.wait_for(is_so), PATIENCE_S)

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    def told(self, name: str) -> list[Any]:
        """The data of the events of one name."""
        blocks = [block.split("\n", 1) for block in self.text.split("\n\n") if block]
        return [
            json.loads(rest[0].removeprefix("data: "))
            for first, *rest in blocks
            if first == f"event: {name}"
        ]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize(
    ("event", "written"),
    [
        (Event("x"), "data: x\n\n"),
        (Event("x", "progress"), "event: progress\ndata: x\n\n"),
        (Event("a\nb\r\nc\rd\n"), "data: a\ndata: b\ndata: c\ndata: d\ndata: \n\n"),
        (Event("a\x0bb\u2028c"), "data: a\x0bb\u2028c\n\n"),
        (Event.of({"text": "早\n\n上"}), 'data: {"text":"早\\n\\n上"}\n\n'),
        (Event("[DONE]"), "data: [DONE]\n\n"),
    ],
)
def test_an_event_is_written_in_lines_that_end_with_an_empty_one(
    event: Event, written: str
) -> None:
    assert event.encode().decode() == written


async def test_the_answer_begins_while_the_work_goes_on() -> None:
    stage, may_end = Stage(), asyncio.Event()

    async def work(report: OnFileProgress) -> Iterable[Event]:
        report(0, Progress(0.5, "good "))
        await may_end.wait()
        report(0, Progress(1.0, "morning"))
        return [DONE]

    response = await stage.start(work)
    telling = asyncio.create_task(response({}, stage.wire.get, stage.send))
    await stage.until(lambda: stage.told("progress") == [[0, 0.5, "good "]])
    assert stage.sent[0]["status"] == 200
    assert stage.is_held
    may_end.set()
    await telling
    assert stage.text.endswith(
        'event: progress\ndata: [0,1.0,"morning"]\n\nevent: done\ndata: the end\n\n'
    )
    assert not stage.is_held
    assert stage.trace.outcome == "ok"


async def test_the_answer_is_an_event_stream_that_nobody_keeps_back() -> None:
    stage = Stage()

    async def work(_: OnFileProgress) -> Iterable[Event]:
        return [DONE]

    await stage.play(work)
    assert dict(stage.sent[0]["headers"]) == {
        b"content-type": b"text/event-stream; charset=utf-8",
        b"cache-control": b"no-cache",
        b"x-accel-buffering": b"no",
    }


async def test_what_fails_before_any_progress_is_raised() -> None:
    stage = Stage()

    async def work(_: OnFileProgress) -> Iterable[Event]:
        raise CorruptAudio("torn")

    with pytest.raises(CorruptAudio):
        await stage.start(work)
    assert not stage.is_held


async def test_what_fails_later_is_an_event_behind_all_progress() -> None:
    stage, may_fail = Stage(), asyncio.Event()

    async def work(report: OnFileProgress) -> Iterable[Event]:
        report(0, Progress(0.5, "good "))
        await may_fail.wait()
        report(0, Progress(0.7, "mor"))
        raise CorruptAudio("torn")

    response = await stage.start(work)
    may_fail.set()
    await response({}, stage.wire.get, stage.send)
    assert stage.text == (
        'event: progress\ndata: [0,0.7,"good mor"]\n\nevent: error\ndata: "torn"\n\n'
    )
    assert stage.sent[-1]["more_body"] is False
    assert stage.trace.outcome == "corrupt_audio"
    assert not stage.is_held


@pytest.mark.parametrize("failure", [RuntimeError("secret of the house"), asyncio.CancelledError()])
async def test_the_unforeseen_is_logged_and_told_without_its_words(failure: BaseException) -> None:
    stage, may_fail = Stage(), asyncio.Event()

    async def work(report: OnFileProgress) -> Iterable[Event]:
        report(0, Progress(0.5, "good "))
        await may_fail.wait()
        raise failure

    response = await stage.start(work)
    may_fail.set()
    with log_lines("sensevoice_service.routes", "ERROR") as lines:
        await response({}, stage.wire.get, stage.send)
        assert lines.next() == {"id": "id-1"}
    assert stage.told("error") == ["an unexpected error occurred; its request_id is in the log"]
    assert "secret" not in stage.text
    assert stage.trace.outcome == "internal_error"


async def test_a_client_that_goes_away_ends_the_work() -> None:
    stage, was_cancelled = Stage(), asyncio.Event()

    async def work(report: OnFileProgress) -> Iterable[Event]:
        report(0, Progress(0.5, "good "))
        try:
            await for_ever()
        finally:
            assert stage.is_held
            was_cancelled.set()
        return []

    response = await stage.start(work)
    telling = asyncio.create_task(response({}, stage.wire.get, stage.send))
    await stage.until(lambda: "good" in stage.text)
    stage.wire.put_nowait(GONE)
    await asyncio.wait_for(telling, PATIENCE_S)
    assert was_cancelled.is_set()
    assert not stage.is_held
    assert stage.trace.outcome == "disconnected"


async def test_a_server_that_fails_to_send_ends_the_work_too() -> None:
    stage = Stage()

    async def work(report: OnFileProgress) -> Iterable[Event]:
        report(0, Progress(0.5, "good "))
        await for_ever()
        return []

    async def refuse(_: Message) -> None:
        raise BrokenPipeError

    await (await stage.start(work))({}, stage.wire.get, refuse)
    assert not stage.is_held
    assert stage.trace.outcome == "disconnected"


async def test_a_client_that_goes_before_the_start_ends_the_work() -> None:
    stage = Stage()

    async def work(_: OnFileProgress) -> Iterable[Event]:
        await for_ever()
        return []

    stage.wire.put_nowait(GONE)
    with pytest.raises(ClientGone):
        await stage.start(work)
    assert not stage.is_held


async def test_a_request_that_is_cancelled_holds_nothing() -> None:
    stage = Stage()

    async def work(_: OnFileProgress) -> Iterable[Event]:
        await for_ever()
        return []

    starting = asyncio.create_task(stage.start(work))
    asyncio.get_running_loop().call_soon(starting.cancel)
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not stage.is_held


async def test_progress_that_waits_for_a_slow_reader_is_joined_and_none_of_it_lost() -> None:
    stage, may_end = Stage(), asyncio.Event()
    words = [f"{number} " for number in range(100)]

    async def work(report: OnFileProgress) -> Iterable[Event]:
        report(1, Progress(0.01, "first "))
        await settle()
        for number, word in enumerate(words, 1):
            report(number % 2, Progress(number / 100, word))
        may_end.set()
        return [DONE]

    response = await stage.start(work)
    stage.may_send.clear()
    telling = asyncio.create_task(response({}, stage.wire.get, stage.send))
    await may_end.wait()
    await settle()
    assert stage.sent == []
    assert not stage.is_held
    stage.may_send.set()
    await telling
    told = stage.told("progress")
    assert len(told) <= 4
    for index in (0, 1):
        of_file = [one for one in told if one[0] == index]
        text = "".join(text for _, _, text in of_file)
        assert text == ("first " if index else "") + "".join(words[1 - index :: 2])
        assert [fraction for _, fraction, _ in of_file] == sorted(one[1] for one in of_file)
    assert [fraction for index, fraction, _ in told if index == 0][-1] == 1.0


async def test_silence_is_filled_with_comments() -> None:
    stage, may_end = Stage(keep_alive_s=0.01), asyncio.Event()

    async def work(report: OnFileProgress) -> Iterable[Event]:
        await may_end.wait()
        return [DONE]

    response = await stage.start(work)
    telling = asyncio.create_task(response({}, stage.wire.get, stage.send))
    await stage.until(lambda: stage.text.count(": still at work\n\n") == 2)
    may_end.set()
    await telling
    assert stage.text.endswith("event: done\ndata: the end\n\n")


async def test_a_route_may_leave_progress_untold() -> None:
    stage = Stage()

    async def work(report: OnFileProgress) -> Iterable[Event]:
        report(0, Progress(0.5, ""))
        return [DONE, Event("[DONE]")]

    text = await stage.play(work, Dialect(lambda index, progress: [], error_events))
    assert text == "event: done\ndata: the end\n\ndata: [DONE]\n\n"
