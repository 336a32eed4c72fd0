from __future__ import annotations

import pytest

from sensevoice_service.routes.quota import Quota, Rate


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def quota(setting: str, clock: Clock, max_clients: int = 100) -> Quota:
    rate = Rate.of(setting)
    assert rate is not None
    return Quota(rate, clock, max_clients)


@pytest.mark.parametrize(
    ("setting", "rate"),
    [
        ("", None),
        ("5/second", Rate(5, 1)),
        ("60/minute", Rate(60, 60)),
        ("1/hour", Rate(1, 3600)),
        ("1000/day", Rate(1000, 86_400)),
    ],
)
def test_a_rate_is_read_from_its_setting(setting: str, rate: Rate | None) -> None:
    assert Rate.of(setting) == rate


@pytest.mark.parametrize("setting", ["1/minute", "2/second", "7/minute", "60/minute", "1000/day"])
def test_a_whole_rate_may_be_used_at_once_and_no_more(setting: str) -> None:
    rate = Rate.of(setting)
    assert rate is not None
    few = quota(setting, Clock())
    assert [few.take("a") for _ in range(rate.n_requests)] == [None] * rate.n_requests
    assert few.take("a") is not None


@pytest.mark.parametrize("setting", ["1/minute", "7/minute", "60/minute", "2/day"])
def test_after_the_time_told_a_request_may_come_and_only_one(setting: str) -> None:
    clock = Clock()
    few = quota(setting, clock)
    while (wait_s := few.take("a")) is None:
        pass
    clock.now_s += wait_s - 1
    assert few.take("a") is not None
    clock.now_s += 1
    assert few.take("a") is None
    assert few.take("a") is not None


def test_over_a_long_time_the_rate_is_kept() -> None:
    clock = Clock()
    few = quota("60/minute", clock)
    n_taken = 0
    for _ in range(10 * 600):  # ten minutes, ten requests a second
        n_taken += few.take("a") is None
        clock.now_s += 0.1
    assert 10 * 60 <= n_taken <= 11 * 60


def test_a_pause_restores_the_whole_rate_and_no_more_than_that() -> None:
    clock = Clock()
    few = quota("3/minute", clock)
    assert [few.take("a") is None for _ in range(4)] == [True, True, True, False]
    clock.now_s += 3600
    assert [few.take("a") is None for _ in range(4)] == [True, True, True, False]


def test_clients_do_not_use_up_the_rates_of_others() -> None:
    few = quota("1/minute", Clock())
    assert few.take("a") is None
    assert few.take("b") is None
    assert few.take("a") is not None


def test_no_more_clients_are_kept_in_mind_than_the_limit() -> None:
    few = quota("1/hour", Clock(), max_clients=10)
    for client in range(1000):
        assert few.take(client) is None
    assert len(few) == 10


def test_those_who_were_here_last_are_the_ones_remembered() -> None:
    few = quota("2/hour", Clock(), max_clients=2)
    for client in ("a", "b", "a", "c"):  # b is forgotten, and a is used up
        assert few.take(client) is None
    assert few.take("a") is not None
    assert few.take("b") is None
