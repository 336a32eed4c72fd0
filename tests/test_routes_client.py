from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.types import Message

from sensevoice_service.routes.client import LEAST_BYTES_PER_S, READ_AHEAD_BYTES, Client
from sensevoice_service.routes.errors import ClientGone, UploadStalled


class Wire:
    """What a server's ``receive`` gives: messages as they are put, then silence."""

    def __init__(self, *messages: Message) -> None:
        self.queue: asyncio.Queue[Message] = asyncio.Queue()
        for message in messages:
            self.queue.put_nowait(message)

    def client(self, *headers: tuple[bytes, bytes], **settings: Any) -> Client:
        return Client({"type": "http", "headers": list(headers)}, self.queue.get, **settings)


def piece(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


GONE: Message = {"type": "http.disconnect"}


async def all_of(pieces: AsyncIterator[bytes]) -> list[bytes]:
    return [piece async for piece in pieces]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_body_comes_in_its_pieces() -> None:
    client = Wire(piece(b"ab"), piece(b""), piece(b"c", more=False)).client()
    assert await all_of(client.body()) == [b"ab", b"c"]


async def test_what_was_read_while_watching_is_not_lost() -> None:
    wire = Wire(piece(b"ab"), piece(b"c"))
    client = wire.client()

    async def work() -> str:
        await settle()
        wire.queue.put_nowait(piece(b"d", more=False))
        return "done"

    assert await client.unless_gone(work()) == "done"
    assert await all_of(client.body()) == [b"ab", b"c", b"d"]


async def test_watching_reads_no_more_than_a_little_ahead() -> None:
    big = bytes(READ_AHEAD_BYTES)
    wire = Wire(piece(big), piece(big), piece(b"", more=False))
    client = wire.client()
    await client.unless_gone(settle())
    assert wire.queue.qsize() == 2
    assert b"".join(await all_of(client.body())) == big + big


async def test_a_client_that_waits_for_leave_is_given_none_by_watching() -> None:
    wire = Wire(piece(b"x", more=False))
    client = wire.client((b"expect", b"100-Continue"))
    await client.unless_gone(settle())
    assert wire.queue.qsize() == 1


@pytest.mark.parametrize("messages", [[GONE], [piece(b"a"), GONE], [piece(b"", more=False), GONE]])
async def test_work_is_cancelled_and_awaited_when_the_client_goes(messages: list[Message]) -> None:
    has_ended = False

    async def work() -> None:
        nonlocal has_ended
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await settle()
            has_ended = True

    with pytest.raises(ClientGone):
        await Wire(*messages).client().unless_gone(work())
    assert has_ended


async def test_an_error_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await Wire().client().unless_gone(work())


async def test_cancelling_the_wait_cancels_the_work() -> None:
    was_cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            was_cancelled.set()
            raise

    waiting = asyncio.create_task(Wire().client().unless_gone(work()))
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert was_cancelled.is_set()


async def test_a_hang_up_within_the_body_is_raised() -> None:
    with pytest.raises(ClientGone):
        await all_of(Wire(piece(b"a"), GONE).client().body())


async def test_a_body_that_stands_still_is_given_up() -> None:
    with pytest.raises(UploadStalled, match="1 bytes of the body came in") as caught:
        await all_of(Wire(piece(b"a")).client(stall_timeout_s=0.01).body())
    assert caught.value.status == 408


class Trickle:
    """A body of equal pieces, ten seconds apart by a clock of its own."""

    def __init__(self, body: bytes, n_pieces: int) -> None:
        self._pieces = [piece(body)] * n_pieces
        self._now_s = 0.0

    async def receive(self) -> Message:
        self._now_s += 10.0
        return self._pieces.pop() if self._pieces else piece(b"", more=False)

    def client(self) -> Client:
        scope = {"type": "http", "headers": []}
        return Client(scope, self.receive, stall_timeout_s=30.0, clock=lambda: self._now_s)


async def test_a_byte_now_and_then_is_too_slow() -> None:
    with pytest.raises(UploadStalled, match="3 bytes of the body came in 40 s"):
        await all_of(Trickle(b"a", n_pieces=100).client().body())


async def test_a_slow_body_is_taken() -> None:
    body = bytes(10 * LEAST_BYTES_PER_S)
    assert len(await all_of(Trickle(body, n_pieces=100).client().body())) == 100
