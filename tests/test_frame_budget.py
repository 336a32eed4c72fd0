from __future__ import annotations

import pytest

from sensevoice_service.frame_budget import FORGET_S, GOOD_CALLS_A_STEP, FrameBudget
from tests.echo import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def budget(clock: FakeClock) -> FrameBudget:
    return FrameBudget(1000, clock)


def fill(budget: FrameBudget, steps: int = 1) -> None:
    """As many calls that fit, of ten rows and hardly any room for an eleventh, as make steps."""
    for _ in range(steps * GOOD_CALLS_A_STEP):
        budget.fitted(10, budget.limit_frames // 10)


def test_all_that_was_configured_may_be_used_at_first(budget: FrameBudget) -> None:
    assert budget.limit_frames == 1000
    fill(budget, steps=3)
    assert budget.limit_frames == 1000


def test_a_call_that_did_not_fit_halves_the_limit(budget: FrameBudget) -> None:
    budget.failed(10, 100)
    assert budget.limit_frames == 500
    budget.failed(5, 100)
    assert budget.limit_frames == 250


def test_the_limit_is_half_of_what_failed_and_not_of_what_was_allowed(budget: FrameBudget) -> None:
    budget.failed(6, 50)
    assert budget.limit_frames == 150


def test_calls_of_the_same_size_that_fail_side_by_side_halve_the_limit_once(
    budget: FrameBudget,
) -> None:
    budget.failed(10, 100)
    budget.failed(10, 100)
    assert budget.limit_frames == 500


def test_the_limit_has_room_for_the_longest_chunk_seen(budget: FrameBudget) -> None:
    budget.failed(2, 300)
    assert budget.limit_frames == 300
    budget.fitted(1, 200)
    budget.failed(2, 20)
    assert budget.limit_frames == 300


def test_a_chunk_that_fails_alone_lowers_the_limit_to_its_own_length(budget: FrameBudget) -> None:
    budget.failed(1, 400)
    assert budget.limit_frames == 400
    budget.failed(1, 700)
    assert budget.limit_frames == 400


def test_the_limit_grows_by_a_tenth_after_so_many_good_calls(budget: FrameBudget) -> None:
    budget.failed(10, 100)
    for _ in range(GOOD_CALLS_A_STEP - 1):
        budget.fitted(10, 50)
    assert budget.limit_frames == 500
    budget.fitted(10, 50)
    assert budget.limit_frames == 550
    fill(budget)
    assert budget.limit_frames == 605


def test_the_smallest_limit_grows_too(clock: FakeClock) -> None:
    budget = FrameBudget(10, clock)
    budget.failed(4, 1)
    for _ in range(GOOD_CALLS_A_STEP):
        budget.fitted(2, 1)
    assert budget.limit_frames == 3


def test_calls_that_left_room_for_one_more_row_prove_nothing(budget: FrameBudget) -> None:
    budget.failed(10, 100)
    for _ in range(2 * GOOD_CALLS_A_STEP):
        budget.fitted(9, 50)
    assert budget.limit_frames == 500


def test_a_chunk_over_the_limit_that_fits_proves_as_much(budget: FrameBudget) -> None:
    budget.failed(10, 40)
    for _ in range(GOOD_CALLS_A_STEP):
        budget.fitted(1, 300)
    assert budget.limit_frames == 220


def test_a_failure_starts_the_count_of_good_calls_anew(budget: FrameBudget) -> None:
    budget.failed(10, 100)
    for _ in range(GOOD_CALLS_A_STEP - 1):
        budget.fitted(10, 50)
    budget.failed(10, 100)
    budget.fitted(10, 50)
    assert budget.limit_frames == 500


def test_the_limit_stays_below_what_has_lately_failed(
    budget: FrameBudget, clock: FakeClock
) -> None:
    budget.failed(8, 100)
    clock.now_s = FORGET_S - 1
    fill(budget, steps=50)
    assert 720 < budget.limit_frames < 800
    clock.now_s = FORGET_S
    budget.fitted(10, budget.limit_frames // 10)
    assert budget.limit_frames >= 780
    fill(budget, steps=50)
    assert budget.limit_frames == 1000


def test_each_failure_renews_the_ban_on_the_smallest_that_failed(
    budget: FrameBudget, clock: FakeClock
) -> None:
    budget.failed(4, 100)
    clock.now_s = FORGET_S - 1
    budget.failed(8, 100)
    clock.now_s = FORGET_S + 1
    fill(budget, steps=50)
    assert budget.limit_frames < 400


def test_a_size_long_forgotten_bans_nothing(budget: FrameBudget, clock: FakeClock) -> None:
    budget.failed(4, 100)
    clock.now_s = FORGET_S
    budget.failed(8, 100)
    fill(budget, steps=50)
    assert 400 < budget.limit_frames < 800


def test_a_device_with_less_memory_than_configured_is_nearly_filled(clock: FakeClock) -> None:
    """The sawtooth: an hour of full batches on a device that has room for 700 of 1000 frames."""
    budget = FrameBudget(1000, clock)
    frames, failures = [], 0
    for _ in range(36_000):
        clock.now_s += 0.1
        rows = budget.limit_frames // 10
        if rows * 10 > 700:
            budget.failed(rows, 10)
            failures += 1
        else:
            budget.fitted(rows, 10)
            frames.append(rows * 10)
    assert sum(frames) / len(frames) > 0.85 * 700
    assert failures < 40
