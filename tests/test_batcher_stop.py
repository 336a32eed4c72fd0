from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from sensevoice_service.batcher import BatchLimits
from sensevoice_service.types import Chunk, DeviceOutOfMemory, Hypothesis, NotReady
from tests.echo import (
    ONE_BY_ONE,
    PATIENT_S,
    FakeClock,
    Gate,
    MakeBatcher,
    Recorder,
    batchers,
    chunk,
    echo,
    failure,
    heard,
)


@pytest.fixture
def make_batcher() -> Iterator[MakeBatcher]:
    with batchers() as make:
        yield make


def test_stop_ends_the_wait_for_company(make_batcher: MakeBatcher) -> None:
    forever = BatchLimits(max_items=16, max_padded_frames=2000, max_wait_s=1e6)
    clock = FakeClock()

    def slow(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        clock.now_s += 1e6
        return echo(chunks)

    batcher = make_batcher(slow, limits=forever, clock=clock, start=False)
    futures = [batcher.submit(chunk(i)) for i in range(3)]
    batcher.start()
    assert [heard(f) for f in futures] == [0, 1, 2]
    held = batcher.submit(chunk(3))
    batcher.stop(timeout_s=PATIENT_S)
    assert heard(held) == 3


def test_stop_with_drain_finishes_what_was_accepted(make_batcher: MakeBatcher) -> None:
    gate = Gate()
    batcher = make_batcher(gate, limits=ONE_BY_ONE)
    futures = [batcher.submit(chunk(i)) for i in range(5)]
    assert gate.entered.wait(PATIENT_S)
    gate.opened.set()
    batcher.stop(drain=True, timeout_s=PATIENT_S)
    assert all(f.done() for f in futures)
    assert [heard(f) for f in futures] == [0, 1, 2, 3, 4]


def test_stop_without_drain_fails_the_queue_and_lets_the_running_finish(
    make_batcher: MakeBatcher,
) -> None:
    gate = Gate()
    batcher = make_batcher(gate, limits=ONE_BY_ONE)
    running, queued = batcher.submit(chunk(0)), batcher.submit(chunk(1))
    assert gate.entered.wait(PATIENT_S)
    queued.add_done_callback(lambda _: gate.opened.set())
    batcher.stop(drain=False, timeout_s=PATIENT_S)
    assert heard(running) == 0
    assert isinstance(failure(queued), NotReady)
    assert gate.batches == [[0]]


@pytest.mark.parametrize("drain", [True, False])
def test_stop_while_a_worker_hangs_leaves_no_caller_waiting(
    make_batcher: MakeBatcher, drain: bool
) -> None:
    gate = Gate()
    batcher = make_batcher(gate, limits=ONE_BY_ONE)
    futures = [batcher.submit(chunk(i)) for i in range(3)]
    assert gate.entered.wait(PATIENT_S)
    cancelled = futures.pop()
    cancelled.cancel()
    batcher.stop(drain=drain, timeout_s=0)
    assert all(isinstance(failure(f), NotReady) for f in futures)
    gate.opened.set()
    batcher.stop(timeout_s=PATIENT_S)
    assert all(isinstance(failure(f), NotReady) for f in futures)
    assert gate.batches == [[0]]


def test_halves_of_a_failed_batch_do_not_run_after_stop_gave_up(
    make_batcher: MakeBatcher,
) -> None:
    gate = Gate(poison=frozenset({0}))
    batcher = make_batcher(gate, start=False)
    futures = [batcher.submit(chunk(i)) for i in range(4)]
    batcher.start()
    assert gate.entered.wait(PATIENT_S)
    batcher.stop(timeout_s=0)
    gate.opened.set()
    batcher.stop(timeout_s=PATIENT_S)
    assert all(isinstance(failure(f), NotReady) for f in futures)
    assert gate.batches == [[0, 1, 2, 3]]


def test_halves_given_up_make_no_failure_of_a_batch_that_did_not_fit(
    make_batcher: MakeBatcher,
) -> None:
    gate = Gate(poison=frozenset({0}), error=DeviceOutOfMemory())
    batcher = make_batcher(gate, start=False)
    futures = [batcher.submit(chunk(i)) for i in range(4)]
    batcher.start()
    assert gate.entered.wait(PATIENT_S)
    batcher.stop(timeout_s=0)
    gate.opened.set()
    batcher.stop(timeout_s=PATIENT_S)
    assert all(isinstance(failure(f), NotReady) for f in futures)
    stats = batcher.stats()
    assert (stats.out_of_memory, stats.failed_batches, stats.consecutive_failures) == (1, 0, 0)


def test_submit_after_stop_is_refused(make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(Recorder())
    batcher.stop()
    batcher.stop()
    with pytest.raises(NotReady):
        batcher.submit(chunk(0))


def test_stop_before_start_fails_what_was_queued(make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(Recorder(), start=False)
    future = batcher.submit(chunk(0))
    batcher.stop()
    assert isinstance(failure(future), NotReady)
    with pytest.raises(RuntimeError):
        batcher.start()


def test_it_is_healthy_while_its_threads_run(make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(Recorder(), Recorder(), start=False)
    assert not batcher.healthy
    batcher.start()
    assert batcher.healthy
    batcher.stop(timeout_s=PATIENT_S)
    assert not batcher.healthy
