"""The open-loop generator, and what the benchmarks make of what it saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.fairness import CLIP_S
from bench.load import LONGEST_S, Plan, Result, Sample, generate
from bench.overload import Level, Measured, Observed, _difference, _level, goals_of, goodput_hz
from bench.soak import Look, goals, kinds, panels
from config import load_settings
from tests.http_service import house, serving

MakeFile = Callable[[bytes], str]


@pytest.fixture
def file(tmp_path: Path) -> MakeFile:
    """A file that the fake pipeline hears as its words."""

    def make(words: bytes) -> str:
        path = tmp_path / "clip.wav"
        path.write_bytes(words)
        return str(path)

    return make


def sample(status: int = 200, began_s: float = 0.0, total_s: float = 1.0) -> Sample:
    return Sample(began_s, status, total_s, total_s)


def level(**changes: Any) -> Level:
    plan = Plan(1, 10.0, (), rate_hz=20.0)
    result = Result((sample(),), (sample(),), 0.0, 1.0)
    seen = Observed(result, Counter({200: 1}), 100.0, 0.1)
    return replace(_level(2.0, 10.0, plan, seen), **changes)


def test_an_open_loop_sends_on_though_nothing_comes_back(file: MakeFile) -> None:
    place = house(MAX_CONCURRENT_REQUESTS=1, MAX_WAITING_REQUESTS=100)
    with serving(place.app()) as port:
        plan = Plan(port, 0.5, (file(b"wait"),), rate_hz=40.0, patience_s=0.5)
        result = generate(plan)
    assert [one.status for one in result.requests] == [0] * 20


def test_each_request_has_the_status_and_the_phases_that_the_service_told(file: MakeFile) -> None:
    with serving(house().app()) as port:
        result = generate(Plan(port, 0.5, (file(b"hello"),), n_clients=2))
    assert {one.status for one in result.requests} == {200}
    assert all(0 <= one.wait_s <= one.served_s <= one.total_s for one in result.requests)
    assert {one.status for one in result.probes} == {200}


def test_a_service_that_is_not_there_gives_no_status(file: MakeFile) -> None:
    with serving(house().app()) as port:
        pass
    result = generate(Plan(port, 0.2, (file(b"hello"),), rate_hz=10.0))
    assert [one.status for one in result.requests] == [0, 0]


def test_it_does_not_go_on_for_hours(file: MakeFile) -> None:
    with pytest.raises(Exception, match="returned non-zero"):
        generate(Plan(1, LONGEST_S + 1, (file(b"hello"),), rate_hz=1.0))


def test_goodput_counts_the_answers_within_the_time_once_the_line_is_full() -> None:
    late, early, good = sample(total_s=11.0), sample(total_s=1.0), sample(total_s=5.0)
    assert goodput_hz([late, early, good, sample(503, total_s=5.0)], 10.0) == pytest.approx(1 / 7)


def test_outcomes_that_the_service_counted_otherwise_are_told() -> None:
    told = level(outcomes={200: 3, 503: 2}, counted={200: 3, 503: 1, 499: 1})
    assert _difference(told) == 2
    assert _difference(level(outcomes={200: 3}, counted={200: 3})) == 0


def test_promises_are_kept_or_missed_by_their_figures() -> None:
    slow = level(multiple=10.0, goodput_hz=8.9, shed_s=0.2, live_s=0.05, accepted_s=100.0)
    measured = Measured(
        0.1,
        100.0,
        109.0,
        (level(goodput_hz=10.0, accepted_s=0.2, service_s=0.1, shed_s=0.01, live_s=0.01), slow),
    )
    found = goals_of(measured, load_settings(), live_s=0.1, shed_s=0.1)
    missed = [goal.what for goal in found if not goal.met]
    assert missed == [
        "at 10×: goodput of the peak, or of what was asked for",
        "at 10×: accepted p99",
        "at 10×: shed p99",
    ]


def test_of_several_rounds_the_goodput_is_their_median_and_all_else_their_worst() -> None:
    levels = [level(goodput_hz=hz, shed_s=hz / 100, outcomes={200: 1}) for hz in (9.5, 2.0, 9.1)]
    found = goals_of(Measured(0.1, 1.0, 1.0, tuple(levels)), load_settings(), 0.1, 0.09)
    goodput, _, shed, *_ = found
    assert goodput.what.endswith(", median of 3 runs")
    assert goodput.measured == pytest.approx(91.0)
    assert shed.measured == pytest.approx(95.0)
    assert (goodput.met, shed.met) == (True, False)
    assert len(found) == 9


def test_a_soak_is_judged_from_the_time_that_it_is_warm() -> None:
    looks = [
        Look(n, rss, fds, 9, 50.0) for n, rss, fds in ((1, 50, 9), (10, 100, 14), (99, 103, 14))
    ]
    assert [goal.met for goal in goals(looks, Counter(), 10)] == [False, True, True, True]
    assert [goal.met for goal in goals(looks, Counter(), 50)] == [True, True, True, True]
    assert len(panels(looks)) == 2


def test_a_soak_has_good_requests_and_faults_of_each_end() -> None:
    statuses = {kind.status for kind in kinds(1)}
    assert statuses == {0, 200, 400, 415, 422}
    assert CLIP_S == 5.0
