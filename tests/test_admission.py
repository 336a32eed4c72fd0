from __future__ import annotations

import asyncio

import pytest

from sensevoice_service.admission import LONGEST_RETRY_AFTER_S, Admission, AdmissionStats, Refusal
from sensevoice_service.types import NotReady, Overloaded, TimedOut


def admission(
    limit: int = 1,
    max_waiting: int = 10,
    queue_timeout_s: float = 5.0,
    percent: float = 10.0,
    request_timeout_s: float = 0.0,
) -> Admission:
    return Admission(
        limit,
        max_waiting,
        queue_timeout_s,
        lambda: percent,
        90.0,
        request_timeout_s=request_timeout_s,
    )


async def settle() -> None:
    """Let all that can go on go on."""
    for _ in range(10):
        await asyncio.sleep(0)


class Guest:
    """Holds a slot, once it has one, until told to go."""

    def __init__(self, door: Admission) -> None:
        self.is_in = False
        self.may_leave = asyncio.Event()
        self.task = asyncio.create_task(self._visit(door))

    async def _visit(self, door: Admission) -> None:
        async with door.slot():
            self.is_in = True
            await self.may_leave.wait()

    async def leave(self) -> None:
        self.may_leave.set()
        await self.task


async def test_no_more_than_the_limit_hold_a_slot_at_once() -> None:
    door = admission(limit=2)
    guests = [Guest(door) for _ in range(3)]
    await settle()
    assert [guest.is_in for guest in guests] == [True, True, False]
    assert door.stats() == AdmissionStats(active=2, waiting=1, limit=2, max_waiting=10)
    for guest in guests:
        await guest.leave()
    assert door.stats() == AdmissionStats(active=0, waiting=0, limit=2, max_waiting=10)


async def test_those_who_wait_come_in_by_the_order_of_their_coming() -> None:
    door = admission()
    guests = [Guest(door) for _ in range(4)]
    await settle()
    for position, guest in enumerate(guests):
        assert [other.is_in for other in guests].count(True) == position + 1
        assert guest.is_in
        await guest.leave()
        await settle()


async def test_a_place_tells_whether_it_has_its_slot() -> None:
    door = admission(limit=1)
    with door.enter() as first, door.enter() as second:
        assert (first.is_granted, second.is_granted) == (True, False)
        first.end(TimedOut("over"))
        assert not first.is_granted


async def test_a_newcomer_does_not_overtake_one_who_was_just_let_in() -> None:
    door = admission()
    first, second = Guest(door), Guest(door)
    await settle()
    first.may_leave.set()
    await first.task  # the slot is the second's now, though its task has not run yet
    third = Guest(door)
    await settle()
    assert second.is_in
    assert not third.is_in
    await second.leave()
    await third.leave()


async def test_a_full_line_turns_newcomers_away_at_once() -> None:
    door = admission(max_waiting=1)
    guests = [Guest(door), Guest(door)]
    await settle()
    with pytest.raises(
        Overloaded, match="1 requests are being worked on and 1 are waiting"
    ) as caught:
        door.enter()
    assert caught.value.retry_after_s in range(1, LONGEST_RETRY_AFTER_S + 1)
    assert door.stats().waiting == 1
    for guest in guests:
        await guest.leave()


async def test_without_a_line_only_free_slots_are_given() -> None:
    door = admission(max_waiting=0)
    async with door.slot():
        with pytest.raises(Overloaded):
            door.enter()
    async with door.slot():
        assert door.stats().active == 1


async def test_waiting_ends_when_its_time_is_over() -> None:
    door = admission(queue_timeout_s=0.01)
    async with door.slot():
        with pytest.raises(Overloaded, match=r"within 0\.01 s"):
            async with door.slot():
                pytest.fail("there was no second slot")
        assert door.stats().waiting == 0
    assert door.stats().active == 0


async def test_high_memory_refuses_new_work_and_leaves_old_work_alone() -> None:
    percent = [89.9]
    door = Admission(2, 10, 5.0, lambda: percent[0], 90.0)
    guest = Guest(door)
    await settle()
    percent[0] = 90.0
    with pytest.raises(Overloaded, match="short of memory"):
        door.enter()
    assert guest.is_in
    await guest.leave()
    percent[0] = 89.9
    async with door.slot():
        assert door.stats().active == 1


async def test_a_cancelled_waiter_leaves_the_line() -> None:
    door = admission()
    holder, waiter, last = Guest(door), Guest(door), Guest(door)
    await settle()
    waiter.task.cancel()
    await settle()
    assert door.stats().waiting == 1
    await holder.leave()
    await settle()
    assert last.is_in
    await last.leave()
    assert door.stats().active == 0


async def test_a_waiter_cancelled_as_its_slot_arrives_passes_the_slot_on() -> None:
    door = admission()
    holder, waiter, last = Guest(door), Guest(door), Guest(door)
    await settle()
    holder.may_leave.set()
    await holder.task  # hands the slot to the waiter, whose task has not run yet
    waiter.task.cancel()
    await settle()
    assert not waiter.is_in
    assert last.is_in
    await last.leave()
    assert door.stats() == AdmissionStats(active=0, waiting=0, limit=1, max_waiting=10)


async def test_an_error_inside_gives_the_slot_back() -> None:
    door = admission()
    with pytest.raises(ZeroDivisionError):
        async with door.slot():
            raise ZeroDivisionError
    assert door.stats().active == 0


async def test_refusal_says_what_a_newcomer_would_be_told() -> None:
    door = admission(max_waiting=0)
    assert door.refusal() is None
    async with door.slot():
        full = Refusal("full", "1 requests are being worked on and 0 are waiting")
        assert door.refusal() == full
    short = Refusal("memory", "the service is short of memory")
    assert admission(percent=95.0).refusal() == short


class Work:
    """Goes on until it is cancelled, and then takes a while to end."""

    def __init__(self) -> None:
        self.has_ended = False

    async def __call__(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            self.has_ended = True


async def test_work_that_takes_too_long_is_ended_and_waited_for() -> None:
    door, work = admission(request_timeout_s=0.01), Work()
    with pytest.raises(TimedOut, match=r"longer than 0\.01 s"):
        async with door.slot() as place:
            await place.within(work())
    assert work.has_ended
    assert door.stats().active == 0


async def test_the_wait_for_a_slot_is_part_of_a_request_s_time() -> None:
    door = admission(request_timeout_s=0.01)
    with door.enter() as place:
        await place.granted()
        with pytest.raises(TimedOut):
            async with door.slot():
                pytest.fail("there was no second slot")
    assert door.stats() == AdmissionStats(active=0, waiting=0, limit=1, max_waiting=10)


async def test_work_within_its_time_gives_its_result_or_error() -> None:
    async def result() -> int:
        return 7

    async def fail() -> None:
        raise ZeroDivisionError

    async with admission(request_timeout_s=60.0).slot() as place:
        assert await place.within(result()) == 7
        with pytest.raises(ZeroDivisionError):
            await place.within(fail())


async def test_a_request_that_is_over_leaves_no_timer_behind() -> None:
    door = admission(limit=2, request_timeout_s=60.0)
    with door.enter(), door.enter():
        assert len(door._timers) == 2
    assert door._timers == {}


async def test_work_is_cancelled_with_its_client() -> None:
    work = Work()
    async with admission().slot() as place:
        task = asyncio.create_task(place.within(work()))
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert work.has_ended


async def test_closing_ends_those_who_work_and_wait_and_lets_nobody_in() -> None:
    door, work = admission(), Work()

    async def visit() -> None:
        async with door.slot() as place:
            await place.within(work())

    working = asyncio.create_task(visit())
    waiting = asyncio.create_task(visit())
    await settle()
    assert (door.stats().active, door.stats().waiting) == (1, 1)
    door.close()
    for task in (working, waiting):
        with pytest.raises(NotReady, match="stopping") as caught:
            await task
        assert caught.value.retry_after_s in range(1, LONGEST_RETRY_AFTER_S + 1)
    with pytest.raises(NotReady):
        door.enter()
    assert (door.stats().active, door.stats().waiting) == (0, 0)


async def test_it_is_tidied_up_once_after_the_last_has_gone() -> None:
    door, tidied = admission(), asyncio.Event()
    n_calls = 0
    loop = asyncio.get_running_loop()

    def tidy() -> None:
        nonlocal n_calls
        n_calls += 1
        assert door.stats().active == 0
        loop.call_soon_threadsafe(tidied.set)

    tidying = asyncio.create_task(door.tidy_when_idle(tidy, every_s=0.001))
    async with door.slot():
        await asyncio.sleep(0.02)  # it would be called by now
        assert n_calls == 0
    await asyncio.wait_for(tidied.wait(), 10)
    await asyncio.sleep(0.02)
    assert n_calls == 1
    tidying.cancel()
