from __future__ import annotations

import pytest

from sensevoice_service.callers import Callers, Threads


def test_a_lone_caller_is_told_so_and_the_second_is_not() -> None:
    callers = Callers()
    with callers.enter(has_followers=False) as first, callers.enter(has_followers=False) as second:
        assert first
        assert not second
    with callers.enter(has_followers=False) as alone:
        assert alone


def test_a_caller_that_others_will_follow_is_not_alone() -> None:
    callers = Callers()
    with callers.enter(has_followers=True) as followed:
        assert not followed
    with callers.enter(has_followers=False) as last:
        assert last


def test_a_caller_that_failed_is_no_longer_counted() -> None:
    callers = Callers()
    with pytest.raises(ValueError, match="broken"), callers.enter(has_followers=False):
        raise ValueError("broken")
    with callers.enter(has_followers=False) as alone:
        assert alone


@pytest.mark.parametrize(
    ("threads", "n"), [(Threads(1, 8), 8), (Threads(3, 8), 2), (Threads(8, 8), 1)]
)
def test_shares_are_what_fits_into_all_cores(threads: Threads, n: int) -> None:
    assert threads.n_shares == n
