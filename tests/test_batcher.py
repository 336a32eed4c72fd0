from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest

from sensevoice_service.batcher import Batcher, BatchLimits, Completion, Worker
from sensevoice_service.types import (
    FRAME_SAMPLES,
    Chunk,
    DecodeOptions,
    Hypothesis,
    InferenceFailed,
    NotReady,
)

PATIENT_S = 30  # only a hang takes that long
NO_WAIT = BatchLimits(max_items=16, max_padded_frames=2000, max_wait_s=0)
ONE_BY_ONE = BatchLimits(max_items=1, max_padded_frames=2000, max_wait_s=0)


def chunk(index: int, n_frames: int = 20) -> Chunk:
    samples = np.broadcast_to(np.float32(0), ((n_frames - 4) * FRAME_SAMPLES,))
    return Chunk(samples, start_sample=0, index=index, options=DecodeOptions())


def echo(chunks: Sequence[Chunk]) -> list[Hypothesis]:
    """An inference that hears each chunk's index and length."""
    none = np.empty(0, np.int32)
    return [
        Hypothesis(np.array([c.index, len(c.samples)], np.int32), none, none, ()) for c in chunks
    ]


@dataclass
class Recorder:
    """Echoes, and keeps the indices and frames of every batch; ``poison`` is what it fails on."""

    poison: frozenset[int] = frozenset()
    error: BaseException = field(default_factory=lambda: RuntimeError("poisoned"))
    batches: list[list[int]] = field(default_factory=list)
    frames: list[list[int]] = field(default_factory=list)

    def __call__(self, chunks: Sequence[Chunk]) -> list[Hypothesis]:
        self.batches.append([c.index for c in chunks])
        self.frames.append([c.n_frames for c in chunks])
        if self.poison & {c.index for c in chunks}:
            raise self.error
        return echo(chunks)


@dataclass
class Gate(Recorder):
    """A recorder that says when it was entered and goes on when it is opened."""

    entered: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def __call__(self, chunks: Sequence[Chunk]) -> list[Hypothesis]:
        self.entered.set()
        assert self.opened.wait(PATIENT_S)
        return super().__call__(chunks)


class FakeClock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


MakeBatcher = Callable[..., Batcher]


@pytest.fixture
def make_batcher() -> Iterator[MakeBatcher]:
    made: list[tuple[Batcher, tuple[Worker, ...]]] = []

    def make(
        *workers: Worker,
        limits: BatchLimits = NO_WAIT,
        clock: Callable[[], float] | None = None,
        start: bool = True,
    ) -> Batcher:
        batcher = Batcher(workers, limits, clock) if clock else Batcher(workers, limits)
        made.append((batcher, workers))
        if start:
            batcher.start()
        return batcher

    yield make
    for batcher, workers in made:
        for worker in workers:
            if isinstance(worker, Gate):
                worker.opened.set()
        batcher.stop(drain=False)


def heard(future: Future[Completion]) -> int:
    return int(future.result(PATIENT_S).hypothesis.token_ids[0])


def failure(future: Future[Completion]) -> BaseException | None:
    return future.exception(PATIENT_S)


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
    assert [f.result(PATIENT_S).batch_size for f in futures] == [5] * 5
    assert recorder.batches == [[0, 1, 2, 3, 4]]


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


def test_one_poisoned_chunk_fails_alone(make_batcher: MakeBatcher) -> None:
    recorder = Recorder(poison=frozenset({5}))
    batcher = make_batcher(recorder, start=False)
    futures = [batcher.submit(chunk(i)) for i in range(11)]
    batcher.start()
    for i in {*range(11)} - {5}:
        assert heard(futures[i]) == i
    failed = failure(futures[5])
    assert isinstance(failed, InferenceFailed)
    assert failed.__cause__ is recorder.error
    stats = batcher.stats()
    assert (stats.items, stats.failed_items, stats.consecutive_failures) == (10, 1, 0)


def test_memory_that_suffices_for_half_a_batch_is_made_do(make_batcher: MakeBatcher) -> None:
    def small(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        if len(chunks) > 4:
            raise MemoryError
        return echo(chunks)

    batcher = make_batcher(small, start=False)
    futures = [batcher.submit(chunk(i)) for i in range(13)]
    batcher.start()
    assert [heard(f) for f in futures] == list(range(13))
    assert max(f.result().batch_size for f in futures) <= 4


@pytest.mark.parametrize("outputs", [0, 2, 4])
def test_a_wrong_count_of_outputs_is_never_delivered(
    make_batcher: MakeBatcher, outputs: int
) -> None:
    def miscounting(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        return echo([chunk(77)] * outputs) if len(chunks) in (1, 3) else echo([chunk(77)])

    batcher = make_batcher(miscounting, start=False)
    futures = [batcher.submit(chunk(i)) for i in range(3)]
    batcher.start()
    for future in futures:
        failed = failure(future)
        assert isinstance(failed, InferenceFailed)
        assert isinstance(failed.__cause__, ValueError)


def test_outputs_that_cannot_be_counted_fail_the_chunk(make_batcher: MakeBatcher) -> None:
    def nothing(chunks: Sequence[Chunk]) -> Sequence[Hypothesis]:
        return None  # type: ignore[return-value]

    assert isinstance(failure(make_batcher(nothing).submit(chunk(0))), InferenceFailed)


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), MemoryError()])
def test_whatever_a_worker_raises_its_thread_goes_on(
    make_batcher: MakeBatcher, error: BaseException
) -> None:
    recorder = Recorder(poison=frozenset({1}), error=error)
    batcher = make_batcher(recorder, limits=ONE_BY_ONE)
    failed = failure(batcher.submit(chunk(1)))
    assert isinstance(failed, InferenceFailed)
    assert failed.__cause__ is error
    assert heard(batcher.submit(chunk(2))) == 2
    assert batcher.healthy


def test_whole_failures_are_counted_until_one_batch_succeeds(make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(Recorder(poison=frozenset({1, 2, 3})), limits=ONE_BY_ONE)
    for i in (1, 2, 3):
        failure(batcher.submit(chunk(i)))
    assert batcher.stats().consecutive_failures == 3
    heard(batcher.submit(chunk(4)))
    stats = batcher.stats()
    assert (stats.consecutive_failures, stats.failed_batches, stats.failed_items) == (0, 3, 3)


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


def test_an_idle_thread_holds_on_to_no_chunk(make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(echo)
    freed = threading.Event()
    last = chunk(0)
    weakref.finalize(last, freed.set)
    future = batcher.submit(last)
    del last
    assert heard(future) == 0
    assert freed.wait(PATIENT_S)


def test_it_is_healthy_while_its_threads_run(make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(Recorder(), Recorder(), start=False)
    assert not batcher.healthy
    batcher.start()
    assert batcher.healthy
    batcher.stop(timeout_s=PATIENT_S)
    assert not batcher.healthy


def test_threads_are_named_daemons(make_batcher: MakeBatcher) -> None:
    threads: list[threading.Thread] = []

    def look(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        threads.append(threading.current_thread())
        return echo(chunks)

    heard(make_batcher(look).submit(chunk(0)))
    assert (threads[0].name, threads[0].daemon) == ("inference-0", True)


@pytest.mark.parametrize("dies_after_infer", [False, True])
def test_no_caller_hangs_when_the_last_thread_dies(
    make_batcher: MakeBatcher, dies_after_infer: bool
) -> None:
    inferred = threading.Event()
    here = threading.current_thread()

    def failing_clock() -> float:
        due = inferred.is_set() or not dies_after_infer
        if due and threading.current_thread() is not here:
            raise MemoryError
        return 0.0

    def worker(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        inferred.set()
        return echo(chunks)

    batcher = make_batcher(worker, limits=ONE_BY_ONE, clock=failing_clock, start=False)
    futures = [batcher.submit(chunk(i)) for i in range(3)]
    batcher.start()
    assert all(isinstance(failure(f), NotReady) for f in futures)
    assert not batcher.healthy
    with pytest.raises(NotReady):
        batcher.submit(chunk(3))


def test_a_dead_thread_shows_while_the_other_serves_on(make_batcher: MakeBatcher) -> None:
    victim = threading.Event()

    def clock() -> float:
        if threading.current_thread().name == "inference-0":
            victim.set()
            raise MemoryError
        return 0.0

    gate = Gate()
    batcher = make_batcher(Recorder(), gate, limits=ONE_BY_ONE, clock=clock, start=False)
    futures = [batcher.submit(chunk(i)) for i in range(3)]
    batcher.start()
    assert victim.wait(PATIENT_S)
    gate.opened.set()
    assert [heard(f) for f in futures] == [0, 1, 2]
    batcher.stop(timeout_s=PATIENT_S)
    assert not batcher.healthy


def test_a_completion_tells_how_long_it_queued_and_ran(make_batcher: MakeBatcher) -> None:
    clock = FakeClock()

    def slow(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        clock.now_s += 5
        return echo(chunks)

    batcher = make_batcher(slow, clock=clock, start=False)
    early = batcher.submit(chunk(0))
    clock.now_s += 2
    late = batcher.submit(chunk(1))
    clock.now_s += 1
    batcher.start()
    assert (early.result(PATIENT_S).queue_s, late.result(PATIENT_S).queue_s) == (3, 1)
    assert early.result().infer_s == late.result().infer_s == 5
    stats = batcher.stats()
    assert (stats.queue_mean_s, stats.queue_max_s, stats.infer_s) == (2, 3, 5)


def test_stats_tell_sizes_and_padding(make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(Recorder(), start=False)
    assert (batcher.stats().mean_batch_size, batcher.stats().padding_ratio) == (0, 0)
    futures = [batcher.submit(chunk(i, n)) for i, n in enumerate([30, 20, 40, 500])]
    assert batcher.stats().queued == 4
    batcher.start()
    assert [heard(f) for f in futures] == [0, 1, 2, 3]
    stats = batcher.stats()
    assert (stats.batches, stats.items, stats.frames, stats.padded_frames) == (2, 4, 590, 620)
    assert stats.mean_batch_size == 2
    assert stats.padding_ratio == pytest.approx(30 / 620)
    assert (stats.queued, stats.running, stats.longest_running_s) == (0, 0, 0)


def test_the_overhead_of_a_call_is_learned_from_the_batches(make_batcher: MakeBatcher) -> None:
    clock = FakeClock()

    def linear(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        clock.now_s += 0.012 + 3e-6 * len(chunks) * max(c.n_frames for c in chunks)
        return echo(chunks)

    batcher = make_batcher(linear, clock=clock)
    for i in range(20):
        assert heard(batcher.submit(chunk(i, 20 + 10 * i))) == i
    assert batcher.stats().overhead_frames == pytest.approx(4000)


def test_stats_tell_of_a_batch_that_hangs(make_batcher: MakeBatcher) -> None:
    clock = FakeClock()
    gate = Gate()
    batcher = make_batcher(gate, clock=clock)
    future = batcher.submit(chunk(0))
    assert gate.entered.wait(PATIENT_S)
    clock.now_s += 60
    stats = batcher.stats()
    assert (stats.queued, stats.running, stats.longest_running_s) == (0, 1, 60)
    gate.opened.set()
    assert heard(future) == 0
