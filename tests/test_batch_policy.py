from __future__ import annotations

import random

import pytest

from sensevoice_service.batch_policy import (
    BatchLimits,
    Pace,
    is_full,
    learned_overhead,
    patience_s,
    pick_batch,
)

LIMITS = BatchLimits(max_items=8, max_padded_frames=1000, max_wait_s=0.02)
ANY_PADDING = 1e9


def padded(lengths: list[int], picked: list[int]) -> int:
    return len(picked) * max(lengths[i] for i in picked)


def test_a_lone_chunk_is_a_batch() -> None:
    assert pick_batch([50], LIMITS, 0) == [0]


def test_a_chunk_over_the_budget_runs_alone() -> None:
    assert pick_batch([1001, 1001, 5], LIMITS, ANY_PADDING) == [0]


def test_the_budget_holds_and_the_oldest_is_in_for_any_queue() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        lengths = [rng.randint(1, 600) for _ in range(rng.randint(1, 40))]
        limits = BatchLimits(rng.randint(1, 12), rng.randint(600, 3000), 0)
        picked = pick_batch(lengths, limits, rng.choice([0, 40, ANY_PADDING]))
        assert picked[0] == 0
        assert picked == sorted(set(picked))
        assert len(picked) <= limits.max_items
        assert padded(lengths, picked) <= limits.max_padded_frames


def test_a_batch_may_use_the_budget_to_the_last_frame() -> None:
    assert pick_batch([250] * 5, LIMITS, 0) == [0, 1, 2, 3]


def test_no_batch_has_more_items_than_the_limit() -> None:
    assert pick_batch([1] * 20, LIMITS, 0) == list(range(8))


def test_company_is_nearest_in_length_on_both_sides() -> None:
    limits = BatchLimits(3, 10_000, 0)
    assert pick_batch([100, 300, 90, 20, 105], limits, ANY_PADDING) == [0, 2, 4]


def test_of_equal_lengths_the_oldest_go_first() -> None:
    limits = BatchLimits(3, 10_000, 0)
    assert pick_batch([100, 90, 100, 90, 90], limits, ANY_PADDING) == [0, 1, 2]
    assert pick_batch([80, 90, 90, 90], limits, ANY_PADDING) == [0, 1, 2]


def test_a_batch_that_equal_lengths_fill_has_no_padding() -> None:
    queue = [100, 99, 101, *[100] * 9, 99]
    assert pick_batch(queue, LIMITS, ANY_PADDING) == [0, *range(3, 10)]
    assert pick_batch([100, 99, 100, 101], LIMITS, 0) == [0, 2]


def test_a_longer_neighbour_is_charged_for_the_padding_of_every_row() -> None:
    # 110 would pad three rows by 10 frames each.
    assert pick_batch([100, 100, 100, 110], LIMITS, 29) == [0, 1, 2]
    assert pick_batch([100, 100, 100, 110], LIMITS, 30) == [0, 1, 2, 3]


def test_a_shorter_neighbour_is_charged_for_its_own_padding() -> None:
    assert pick_batch([100, 100, 60], LIMITS, 39) == [0, 1]
    assert pick_batch([100, 100, 60], LIMITS, 40) == [0, 1, 2]


def test_where_a_longer_one_does_not_fit_a_shorter_one_still_may() -> None:
    assert pick_batch([400, 520, 200], LIMITS, ANY_PADDING) == [0, 2]


def test_a_long_chunk_among_endless_short_ones_goes_once_it_is_the_oldest() -> None:
    queue = [10] * 50 + [900]
    batches: list[list[int]] = []
    while len(batches) < 100 and 900 in queue:
        picked = pick_batch(queue, LIMITS, 40)
        batches.append([queue[i] for i in picked])
        queue = [n for i, n in enumerate(queue) if i not in picked] + [10] * 8
    # The 50 ahead of it start seven batches, the last of them filled up with newer ones.
    assert len(batches) == 8
    assert batches[-1] == [900]


@pytest.mark.parametrize(
    ("lengths", "full"),
    [([10] * 7, False), ([10] * 8, True), ([334] * 2, True), ([333] * 2, False), ([2000], True)],
)
def test_a_batch_is_full_when_one_more_row_breaks_a_limit(lengths: list[int], full: bool) -> None:
    assert is_full(lengths, LIMITS) is full


def test_there_is_no_wait_when_all_who_are_expected_are_there() -> None:
    assert patience_s(queued=1, expected=1, refill_s=0, batch_s=1, max_wait_s=1) == 0
    assert patience_s(queued=3, expected=2, refill_s=0, batch_s=1, max_wait_s=1) == 0


def test_the_wait_is_a_share_of_a_batch_and_no_longer_than_the_setting() -> None:
    assert patience_s(queued=1, expected=4, refill_s=0, batch_s=0.04, max_wait_s=0.02) == 0.01
    assert patience_s(queued=1, expected=4, refill_s=0, batch_s=4, max_wait_s=0.02) == 0.02
    assert patience_s(queued=1, expected=4, refill_s=0, batch_s=4, max_wait_s=0) == 0


def test_there_is_no_wait_for_company_that_has_lately_come_too_late() -> None:
    assert patience_s(queued=1, expected=4, refill_s=0.011, batch_s=0.04, max_wait_s=0.02) == 0
    assert patience_s(queued=1, expected=4, refill_s=0.009, batch_s=0.04, max_wait_s=0.02) > 0


def test_the_overhead_is_learned_from_calls_of_different_sizes() -> None:
    calls = [(n, 0.012 + 3e-6 * n) for n in range(100, 2100, 100)]
    assert learned_overhead(calls, 40.0) == pytest.approx(4000)


def test_the_overhead_stays_as_it_is_where_calls_tell_nothing() -> None:
    assert learned_overhead([(100, 1.0), (900, 2.0)], 40.0) == 40.0
    assert learned_overhead([(100 + n, 1.0) for n in range(50)], 40.0) == 40.0
    assert learned_overhead([(100, 1.0)] * 50, 40.0) == 40.0


def test_the_overhead_is_finite_and_not_negative_whatever_the_calls() -> None:
    flat = [(n, 0.01) for n in range(100, 2100, 100)]
    falling = [(n, 1 / n) for n in range(100, 2100, 100)]
    steep = [(n, 1e-6 * n**2) for n in range(100, 2100, 100)]
    assert learned_overhead(flat, 40.0) == learned_overhead(falling, 40.0) == 100_000
    assert learned_overhead(steep, 40.0) == 0


def paced(answered: int, queued: int, *, back_after_s: float) -> Pace:
    """After batches of a second, the clients of each back so long after its end."""
    pace = Pace()
    for batch in range(20):
        pace.ended(batch * 10.0, infer_s=1.0, answered=answered, queued=queued)
        for _ in range(answered):
            pace.arrived(batch * 10.0 + back_after_s)
    pace.ended(200.0, infer_s=1.0, answered=answered, queued=queued)
    return pace


def test_nothing_is_held_before_the_first_batch() -> None:
    pace = Pace()
    pace.arrived(5.0)
    assert pace.hold_s(5.0, queued=1, max_wait_s=60) <= 0


def test_a_batch_is_held_for_those_just_answered_where_they_come_back_soon() -> None:
    pace = paced(answered=7, queued=1, back_after_s=0.1)
    assert pace.hold_s(200.1, queued=1, max_wait_s=60) == pytest.approx(0.15, abs=1e-3)
    assert pace.hold_s(200.1, queued=7, max_wait_s=60) > 0
    assert pace.hold_s(200.1, queued=8, max_wait_s=60) <= 0
    assert pace.hold_s(200.3, queued=1, max_wait_s=60) <= 0


def test_a_batch_is_not_held_where_clients_take_their_time() -> None:
    pace = paced(answered=7, queued=1, back_after_s=0.6)
    assert pace.hold_s(200.0, queued=1, max_wait_s=60) <= 0


def test_a_batch_is_not_held_where_clients_do_not_come_back() -> None:
    pace = Pace()
    for batch in range(5):
        pace.ended(batch * 1.0, infer_s=1.0, answered=4, queued=0)
    assert pace.hold_s(4.0, queued=1, max_wait_s=60) <= 0


def test_a_lone_client_is_never_held() -> None:
    pace = paced(answered=1, queued=0, back_after_s=0.01)
    assert pace.hold_s(200.01, queued=1, max_wait_s=60) <= 0


def test_a_quiet_hour_is_soon_forgotten() -> None:
    pace = paced(answered=4, queued=0, back_after_s=0.01)
    for _ in range(4):
        pace.arrived(3800.0)
    assert pace.hold_s(200.0, queued=1, max_wait_s=60) <= 0
    for batch in range(2):
        pace.ended(3801.0 + batch, infer_s=1.0, answered=4, queued=0)
        for _ in range(4):
            pace.arrived(3801.01 + batch)
    pace.ended(3803.0, infer_s=1.0, answered=4, queued=0)
    assert pace.hold_s(3803.0, queued=1, max_wait_s=60) > 0
