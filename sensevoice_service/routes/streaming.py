"""Server-sent events: an answer that begins while its files are still worked on.

``work.answer`` does first all that can be refused, then gives what it holds to ``start_stream``.

``work(report)`` is a coroutine function. It calls ``report(index_of_file, progress)``, on the event
loop, fills in the trace, and returns the events that end the stream; where it fails it raises
``ServiceError``. The ``Dialect`` says how a route words its progress and its errors.

What the work raises before anything was reported is raised by ``start_stream``, for an answer with
a status of its own. Later it becomes an event, and the stream ends as it should. What is held is
given up when the work ends, as it is for any other answer: nobody who reads slowly keeps a slot.
Progress that such a reader leaves waiting is joined, one ``Progress`` a file, so that no text is
lost. A client that goes away cancels the work.

The format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sensevoice_service.routes.client import Client
from sensevoice_service.routes.errors import ClientGone, unforeseen
from sensevoice_service.routes.trace import RequestTrace
from sensevoice_service.tasks import stop
from sensevoice_service.types import Progress, ServiceError

KEEP_ALIVE_S = 15.0

_LINE_END = re.compile(r"\r\n|\r|\n")
_COMMENT = b": still at work\n\n"


@dataclass(frozen=True)
class Event:
    """``data`` is text; without a name (one line) clients take the event for a ``message``."""

    data: str
    name: str | None = None

    @classmethod
    def of(cls, value: Any, name: str | None = None) -> Event:
        """With a JSON value as its data."""
        return cls(json.dumps(value, ensure_ascii=False, separators=(",", ":")), name)

    def encode(self) -> bytes:
        lines = [] if self.name is None else [f"event: {self.name}"]
        lines += [f"data: {line}" for line in _LINE_END.split(self.data)]
        return "".join(f"{line}\n" for line in [*lines, ""]).encode()


OnFileProgress = Callable[[int, Progress], None]
Work = Callable[[OnFileProgress], Coroutine[Any, Any, Iterable[Event]]]


@dataclass(frozen=True)
class Dialect:
    """What a route says, in as many events as it likes, none among them.

    ``progress`` gets the index of a file and what is new of it, ``error`` what ended the request.
    """

    progress: Callable[[int, Progress], Iterable[Event]]
    error: Callable[[ServiceError], Iterable[Event]]


async def start_stream(
    work: Work,
    dialect: Dialect,
    client: Client,
    trace: RequestTrace,
    held: AsyncExitStack,
    keep_alive_s: float = KEEP_ALIVE_S,
) -> Response:
    """Begin the work; the answer is to be given back once there is something to tell.

    That is the first progress or the end, but after ``keep_alive_s`` it is that work goes on.
    Raises what the work raised by then, and ``ClientGone``; ``held`` is given up in any case.
    """
    news = _News()
    working = asyncio.create_task(_holding(held, work, news.report))
    working.add_done_callback(lambda _: news.wake())
    stream = EventStream(working, news, dialect, client, trace, keep_alive_s)
    try:
        await client.unless_gone(news.wait(keep_alive_s))
        if working.done():
            working.result()
    except BaseException:
        await stream.end()
        raise
    return stream


async def _holding(held: AsyncExitStack, work: Work, report: OnFileProgress) -> list[Event]:
    async with held:
        return list(await work(report))


class _News:
    """What has been reported and not yet been told: one ``Progress`` a file."""

    def __init__(self) -> None:
        self._untold: dict[int, Progress] = {}
        self._has_come = asyncio.Event()

    def report(self, index: int, progress: Progress) -> None:
        if earlier := self._untold.get(index):
            progress = Progress(progress.fraction, earlier.text + progress.text)
        self._untold[index] = progress
        self.wake()

    def wake(self) -> None:
        self._has_come.set()

    async def wait(self, timeout_s: float) -> bool:
        """Until there is news; whether there is."""
        with anyio.move_on_after(timeout_s):
            await self._has_come.wait()
        return self._has_come.is_set()

    def take(self) -> dict[int, Progress]:
        untold, self._untold = self._untold, {}
        self._has_come.clear()
        return untold


class EventStream(Response):
    """Made by ``start_stream``. Tells of ``working`` until it is done, and how it ended."""

    media_type = "text/event-stream"

    def __init__(
        self,
        working: asyncio.Task[list[Event]],
        news: _News,
        dialect: Dialect,
        client: Client,
        trace: RequestTrace,
        keep_alive_s: float,
    ) -> None:
        # The last one is for nginx, which would keep the events until its buffer is full.
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._working = working
        self._news = news
        self._dialect = dialect
        self._client = client
        self._trace = trace
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._client.unless_gone(self._tell(send))
        except (ClientGone, OSError):  # servers tell of a hang-up by either
            self._trace.outcome = "disconnected"
        finally:
            await self.end()

    async def end(self) -> None:
        """Cancel the work, where it still goes on, and wait until it has given up all it held."""
        await stop(self._working)

    async def _tell(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        is_done = False
        while not is_done:
            if await self._news.wait(self._keep_alive_s):
                is_done = self._working.done()
                piece = b"".join(event.encode() for event in self._events(is_done))
            else:
                piece = _COMMENT
            if piece:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _events(self, is_done: bool) -> Iterator[Event]:
        for index, progress in self._news.take().items():
            yield from self._dialect.progress(index, progress)
        if is_done:
            yield from self._ending()

    def _ending(self) -> Iterable[Event]:
        working = self._working
        error = asyncio.CancelledError() if working.cancelled() else working.exception()
        if error is None:
            return working.result()
        if not isinstance(error, ServiceError):
            error = unforeseen(error, self._trace.request_id)
        self._trace.outcome = error.code
        return self._dialect.error(error)
