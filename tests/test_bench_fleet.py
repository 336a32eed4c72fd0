from __future__ import annotations

import pytest

from bench.fleet import Demand, Fleet, Worker, WorkerSpec, picker, simulate
from bench.report import median

# One file of a minute's audio every second on average.
MINUTES = Demand(audio_hours_a_day=1_440, peak=1, mean_file_s=60)
ENDLESS = 1_000_000


def one_worker(spec: WorkerSpec, audio_s: list[float], arrivals_s: list[float]) -> Fleet:
    fleet = Fleet([Worker(spec)], lambda workers: 0, audio_s)
    for request, at_s in enumerate(arrivals_s):
        fleet.arrive(at_s, request)
    fleet.finish()
    return fleet


def test_the_demand_of_a_day_is_that_of_its_busiest_hour() -> None:
    assert Demand(audio_hours_a_day=24, peak=3).rtfx == pytest.approx(3)
    assert MINUTES.files_per_s == pytest.approx(1)


def test_a_file_alone_has_the_worker_up_to_its_own_limit() -> None:
    spec = WorkerSpec(rtfx=100, alone_rtfx=50)
    assert one_worker(spec, [100], [3]).latencies_s == {0: pytest.approx(2)}


def test_files_in_slots_share_the_worker_alike() -> None:
    spec = WorkerSpec(rtfx=100, alone_rtfx=100)
    # The second comes when half of the first is done; both then take twice as long.
    found = one_worker(spec, [100, 100], [0, 0.5]).latencies_s
    assert found == {0: pytest.approx(1.5), 1: pytest.approx(1.5)}


def test_a_full_worker_lets_wait_and_then_refuses() -> None:
    spec = WorkerSpec(rtfx=10, alone_rtfx=10, slots=1, waiting=1)
    found = one_worker(spec, [10, 10, 10], [0, 0.1, 0.2]).latencies_s
    assert found == {0: pytest.approx(1), 1: pytest.approx(1.9)}


def test_who_waited_too_long_is_refused_for_the_next_in_line() -> None:
    spec = WorkerSpec(rtfx=10, alone_rtfx=10, slots=1, queue_timeout_s=5)
    found = one_worker(spec, [100, 10, 10], [0, 1, 6]).latencies_s
    assert found == {0: pytest.approx(10), 2: pytest.approx(5)}


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_the_mean_time_is_that_of_the_theory(load: float) -> None:
    # Processor sharing: a file takes 1 / (1 - load) of its time alone, whatever the lengths.
    spec = WorkerSpec(60 / load, 60 / load, slots=ENDLESS)
    outcome = simulate(MINUTES, spec, 1, "random", 40_000)
    assert outcome.load == pytest.approx(load)
    assert outcome.shed_percent == 0
    assert outcome.mean_slowdown == pytest.approx(1 / (1 - load), rel=0.05)


def test_a_fleet_that_is_half_as_fast_as_the_demand_refuses_half() -> None:
    spec = WorkerSpec(30, 30, slots=4, waiting=4)
    assert simulate(MINUTES, spec, 1, "random", 5_000).shed_percent == pytest.approx(50, abs=5)


def test_the_emptiest_worker_is_better_than_one_of_two_and_that_than_any() -> None:
    spec = WorkerSpec(10, 10)
    found = [simulate(MINUTES, spec, 7, policy, 5_000) for policy in ("least", "two", "random")]
    tails = [outcome.p95_slowdown for outcome in found]
    assert tails == sorted(tails)
    assert tails[0] < tails[-1] / 1.5
    assert median([outcome.load for outcome in found]) == pytest.approx(6 / 7)


def test_a_policy_without_a_name_is_refused() -> None:
    with pytest.raises(KeyError):
        picker("hope", None)  # type: ignore[arg-type]
