"""The pauses of a full service's event loop, on a real loop with a sleep that is only noted."""

from __future__ import annotations

import asyncio

from sensevoice_service.routes.lull import LULL_S, QUIET_TURNS, Lull

BUSY_S, IDLE_S = 10 * LULL_S, LULL_S


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_a_group_of_refusals_is_followed_by_one_lull() -> None:
    slept_s: list[float] = []
    lull, loop = Lull(lambda: BUSY_S, slept_s.append), asyncio.get_running_loop()
    for _ in range(5):
        lull.after_refusal(loop)
        lull.after_refusal(loop)
        await turns(QUIET_TURNS)
        assert slept_s == []  # the next of them may be about to be read
    await turns(QUIET_TURNS + 2)
    assert slept_s == [LULL_S]
    await turns(3 * QUIET_TURNS)
    assert slept_s == [LULL_S]


async def test_each_group_has_its_own() -> None:
    slept_s: list[float] = []
    lull, loop = Lull(lambda: BUSY_S, slept_s.append), asyncio.get_running_loop()
    for _ in range(3):
        lull.after_refusal(loop)
        await turns(QUIET_TURNS + 2)
    assert slept_s == [LULL_S] * 3


async def test_there_is_none_where_the_model_would_run_out_of_work() -> None:
    slept_s: list[float] = []
    lull, loop = Lull(lambda: IDLE_S, slept_s.append), asyncio.get_running_loop()
    lull.after_refusal(loop)
    await turns(2 * QUIET_TURNS)
    assert slept_s == []
