from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from sensevoice_service.tasks import stop


async def fail() -> None:
    raise ValueError("nobody asks")


def test_what_runs_is_cancelled_and_waited_for() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("worked")

    async def run() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        await stop(task)
        assert task.cancelled()

    asyncio.run(run())
    assert ended == ["worked"]


def test_what_has_ended_costs_no_turn_of_the_loop() -> None:
    async def run() -> None:
        task = asyncio.create_task(asyncio.sleep(0, "done"))
        assert await task == "done"
        turns: list[int] = []
        asyncio.get_running_loop().call_soon(turns.append, 1)
        await stop(task)
        assert turns == []

    asyncio.run(run())


@pytest.mark.parametrize("is_awaited", [False, True])
def test_errors_are_not_reported(is_awaited: bool) -> None:
    reported: list[dict[str, Any]] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: reported.append(context))
        task = asyncio.create_task(fail())
        if is_awaited:
            await asyncio.wait([task])
        await stop(task)
        del task
        gc.collect()

    asyncio.run(run())
    assert reported == []
