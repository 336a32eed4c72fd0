from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence

import pytest

from sensevoice_service.batcher import BatchLimits
from sensevoice_service.frame_budget import FORGET_S, GOOD_CALLS_A_STEP
from sensevoice_service.types import Chunk, DeviceOutOfMemory, Hypothesis, InferenceFailed, NotReady
from tests.echo import (
    NO_WAIT,
    ONE_BY_ONE,
    PATIENT_S,
    FakeClock,
    Gate,
    MakeBatcher,
    Recorder,
    Room,
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
    clock = FakeClock()

    def small(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        clock.now_s += 1
        if len(chunks) > 4:
            raise MemoryError
        return echo(chunks)

    batcher = make_batcher(small, clock=clock, start=False)
    futures = [batcher.submit(chunk(i)) for i in range(13)]
    batcher.start()
    assert [heard(f) for f in futures] == list(range(13))
    assert sum(f.result().infer_s for f in futures) == pytest.approx(clock.now_s)
    stats = batcher.stats()
    assert (stats.out_of_memory > 0, stats.failed_batches) == (True, 0)


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


def test_a_batch_that_does_not_fit_is_answered_in_parts(make_batcher: MakeBatcher) -> None:
    room = Room(max_padded_frames=100)
    batcher = make_batcher(room, start=False)
    futures = [batcher.submit(chunk(i)) for i in range(16)]
    batcher.start()
    assert [heard(f) for f in futures] == list(range(16))
    # The second half of the batch is not tried at the size at which the first did not fit.
    assert room.padded_frames == [320, 160, 80, 80, 80, 80]
    stats = batcher.stats()
    assert (stats.batches, stats.items, stats.out_of_memory) == (4, 16, 2)
    assert (stats.failed_batches, stats.failed_items, stats.consecutive_failures) == (0, 0, 0)


def test_batches_are_smaller_after_one_that_did_not_fit(make_batcher: MakeBatcher) -> None:
    room = Room(max_padded_frames=100)
    batcher = make_batcher(room, start=False)
    futures = [batcher.submit(chunk(i)) for i in range(40)]
    assert batcher.stats().max_padded_frames == NO_WAIT.max_padded_frames
    batcher.start()
    assert [heard(f) for f in futures] == list(range(40))
    assert room.padded_frames == [320, 160, *[80] * 10]
    assert batcher.stats().max_padded_frames == 80


def test_batches_grow_again_where_all_went_well_for_a_while(make_batcher: MakeBatcher) -> None:
    room, clock = Room(max_padded_frames=100), FakeClock()
    limits = BatchLimits(max_items=16, max_padded_frames=200, max_wait_s=0)
    batcher = make_batcher(room, limits=limits, clock=clock, start=False)
    futures = [batcher.submit(chunk(i)) for i in range(10)]
    batcher.start()
    assert [heard(f) for f in futures] == list(range(10))
    assert batcher.stats().max_padded_frames < 200
    room.max_padded_frames = 200
    clock.now_s += FORGET_S
    for _ in range(20 * GOOD_CALLS_A_STEP):
        assert heard(batcher.submit(chunk(0, 200))) == 0
    assert batcher.stats().max_padded_frames == 200


def test_a_chunk_that_does_not_fit_alone_fails_alone(make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(Room(max_padded_frames=100), limits=ONE_BY_ONE)
    futures = [batcher.submit(chunk(0, 101)), batcher.submit(chunk(1, 100))]
    failed = failure(futures[0])
    assert isinstance(failed, InferenceFailed)
    assert isinstance(failed.__cause__, DeviceOutOfMemory)
    assert failed.message == "the audio chunk does not fit the device's memory"
    assert heard(futures[1]) == 1


def test_chunks_that_do_not_fit_alone_count_as_failures(make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(Room(max_padded_frames=10), start=False)
    futures = [batcher.submit(chunk(i)) for i in range(2)]
    batcher.start()
    assert all(isinstance(failure(f), InferenceFailed) for f in futures)
    stats = batcher.stats()
    assert (stats.out_of_memory, stats.failed_batches, stats.failed_items) == (3, 2, 2)
    assert stats.consecutive_failures == 1


def test_a_failed_call_holds_no_memory_while_its_halves_run(make_batcher: MakeBatcher) -> None:
    tensors: list[weakref.ref[Chunk]] = []
    still_there: list[bool] = []

    def infer(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        still_there.append(any(tensor() is not None for tensor in tensors))
        tensor = chunk(0)
        tensors.append(weakref.ref(tensor))
        if len(chunks) > 2:
            raise RuntimeError("CUDA out of memory")
        return echo(chunks)

    def engine(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        try:
            return infer(chunks)
        except RuntimeError as error:
            raise DeviceOutOfMemory from error

    batcher = make_batcher(engine, start=False)
    futures = [batcher.submit(chunk(i)) for i in range(4)]
    batcher.start()
    assert [heard(f) for f in futures] == [0, 1, 2, 3]
    assert still_there == [False, False, False]


def test_the_log_tells_why_a_chunk_failed(
    make_batcher: MakeBatcher, caplog: pytest.LogCaptureFixture
) -> None:
    failure(make_batcher(Recorder(poison=frozenset({1}))).submit(chunk(1)))
    assert "RuntimeError: poisoned" in caplog.text
