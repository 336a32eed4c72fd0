from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from sensevoice_service.batcher import BatchLimits
from sensevoice_service.types import Chunk, Hypothesis
from tests.echo import (
    NO_WAIT,
    ONE_BY_ONE,
    PATIENT_S,
    FakeClock,
    Gate,
    MakeBatcher,
    Recorder,
    batchers,
    chunk,
    echo,
    heard,
)


@pytest.fixture
def make_batcher() -> Iterator[MakeBatcher]:
    with batchers() as make:
        yield make


def test_each_result_belongs_to_its_chunk_from_many_threads(make_batcher: MakeBatcher) -> None:
    recorders = [Recorder(), Recorder()]
    batcher = make_batcher(*recorders)

    def client(number: int) -> None:
        rng = random.Random(number)
        chunks = [chunk(number * 1000 + i, rng.randint(5, 600)) for i in range(400)]
        for c, future in [(c, batcher.submit(c)) for c in chunks]:
            ids = future.result(PATIENT_S).hypothesis.token_ids
            assert ids.tolist() == [c.index, len(c.samples)]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(client, range(8)))

    batches = [frames for r in recorders for frames in r.frames]
    assert sum(map(len, batches)) == 8 * 400
    assert max(map(len, batches)) > 1
    for frames in batches:
        assert len(frames) <= NO_WAIT.max_items
        assert len(frames) * max(frames) <= NO_WAIT.max_padded_frames


def test_a_chunk_over_the_budget_runs_alone(make_batcher: MakeBatcher) -> None:
    recorder = Recorder()
    batcher = make_batcher(recorder, start=False)
    futures = [batcher.submit(chunk(i, n)) for i, n in enumerate([2001, 2001, 2000])]
    batcher.start()
    assert [heard(f) for f in futures] == [0, 1, 2]
    assert recorder.batches == [[0], [1], [2]]


def test_chunks_of_different_requests_share_a_batch(make_batcher: MakeBatcher) -> None:
    recorder = Recorder()
    batcher = make_batcher(recorder, start=False)
    futures = [batcher.submit(chunk(i)) for i in range(5)]
    batcher.start()
    assert [heard(f) for f in futures] == list(range(5))
    assert recorder.batches == [[0, 1, 2, 3, 4]]


def test_a_batch_is_told_whether_more_is_queued_behind_it(make_batcher: MakeBatcher) -> None:
    told: list[tuple[int, bool]] = []

    def worker(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        told.extend((c.index, c.has_followers) for c in chunks)
        return echo(chunks)

    batcher = make_batcher(worker, limits=ONE_BY_ONE, start=False)
    futures = [batcher.submit(chunk(i)) for i in range(3)]
    batcher.start()
    assert [heard(f) for f in futures] == [0, 1, 2]
    assert told == [(0, True), (1, True), (2, False)]


def test_a_long_chunk_is_not_starved_by_an_endless_supply_of_short_ones(
    make_batcher: MakeBatcher,
) -> None:
    order: list[int] = []

    def worker(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        order.extend(c.index for c in chunks)
        if 999 not in order and len(order) < 500:
            for i in range(len(chunks)):
                batcher.submit(chunk(i, 10))
        return echo(chunks)

    batcher = make_batcher(worker, start=False)
    for i in range(40):
        batcher.submit(chunk(i, 10))
    long = batcher.submit(chunk(999, 500))
    batcher.start()
    assert heard(long) == 999
    assert order.index(999) == 48  # three batches of sixteen, the third begun by an older chunk


def test_a_lone_request_is_not_held_back(make_batcher: MakeBatcher) -> None:
    forever = BatchLimits(max_items=16, max_padded_frames=2000, max_wait_s=1e6)
    clock = FakeClock()

    def slow(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        clock.now_s += 1e6
        return echo(chunks)

    batcher = make_batcher(slow, limits=forever, clock=clock)
    assert [heard(batcher.submit(chunk(i))) for i in range(5)] == [0, 1, 2, 3, 4]


def test_the_first_to_come_back_after_a_batch_waits_for_the_others(
    make_batcher: MakeBatcher,
) -> None:
    forever = BatchLimits(max_items=16, max_padded_frames=2000, max_wait_s=1e6)
    recorder = Recorder()
    considered = threading.Event()

    class WatchedClock(FakeClock):
        def __call__(self) -> float:
            if threading.current_thread().name == "inference-0":
                considered.set()
            return self.now_s

    clock = WatchedClock()

    def slow(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        clock.now_s += 1e6
        return recorder(chunks)

    batcher = make_batcher(slow, limits=forever, clock=clock, start=False)
    futures = [batcher.submit(chunk(i)) for i in range(3)]
    batcher.start()
    assert [heard(f) for f in futures] == [0, 1, 2]
    considered.clear()
    first = batcher.submit(chunk(10))
    assert considered.wait(PATIENT_S)
    assert batcher.stats().queued == 1  # seen by the thread, and left where it is
    others = [batcher.submit(chunk(i)) for i in (11, 12)]
    assert [heard(f) for f in (first, *others)] == [10, 11, 12]
    assert recorder.batches == [[0, 1, 2], [10, 11, 12]]


def test_a_full_batch_does_not_wait(make_batcher: MakeBatcher) -> None:
    forever = BatchLimits(max_items=2, max_padded_frames=2000, max_wait_s=1e6)
    clock = FakeClock()
    gate = Gate()

    def slow(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        clock.now_s += 1e6
        return gate(chunks)

    batcher = make_batcher(slow, limits=forever, clock=clock, start=False)
    futures = [batcher.submit(chunk(i)) for i in range(4)]
    batcher.start()
    gate.opened.set()
    assert [heard(f) for f in futures] == [0, 1, 2, 3]


def test_a_chunk_cancelled_in_the_queue_never_runs(make_batcher: MakeBatcher) -> None:
    gate = Gate()
    batcher = make_batcher(gate, limits=BatchLimits(2, 2000, 0))
    first = batcher.submit(chunk(0))
    assert gate.entered.wait(PATIENT_S)
    gone, *stay = [batcher.submit(chunk(i)) for i in (1, 2, 3)]
    assert gone.cancel()
    assert batcher.stats().queued == 2
    gate.opened.set()
    assert [heard(f) for f in (first, *stay)] == [0, 2, 3]
    assert gate.batches == [[0], [2, 3]]


def test_a_running_chunk_cannot_be_cancelled(make_batcher: MakeBatcher) -> None:
    gate = Gate()
    batcher = make_batcher(gate)
    future = batcher.submit(chunk(7))
    assert gate.entered.wait(PATIENT_S)
    assert not future.cancel()
    gate.opened.set()
    assert heard(future) == 7


def test_two_workers_run_at_the_same_time(make_batcher: MakeBatcher) -> None:
    barrier = threading.Barrier(2)

    def meet(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        barrier.wait(PATIENT_S)
        return echo(chunks)

    batcher = make_batcher(meet, meet, limits=ONE_BY_ONE)
    futures = [batcher.submit(chunk(i)) for i in range(10)]
    assert [heard(f) for f in futures] == list(range(10))


def test_a_worker_runs_one_batch_at_a_time(make_batcher: MakeBatcher) -> None:
    busy = threading.Lock()

    def alone(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        assert busy.acquire(blocking=False)
        try:
            return echo(chunks)
        finally:
            busy.release()

    batcher = make_batcher(alone, limits=ONE_BY_ONE)
    futures = [batcher.submit(chunk(i)) for i in range(200)]
    assert [heard(f) for f in futures] == list(range(200))


def test_an_idle_thread_holds_on_to_no_chunk(make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(echo)
    freed = threading.Event()
    last = chunk(0)
    weakref.finalize(last, freed.set)
    future = batcher.submit(last)
    del last
    assert heard(future) == 0
    assert freed.wait(PATIENT_S)


def test_threads_are_named_daemons(make_batcher: MakeBatcher) -> None:
    threads: list[threading.Thread] = []

    def look(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        threads.append(threading.current_thread())
        return echo(chunks)

    heard(make_batcher(look).submit(chunk(0)))
    assert (threads[0].name, threads[0].daemon) == ("inference-0", True)
