from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from sensevoice_service.batcher import Worker
from sensevoice_service.types import Chunk, Hypothesis
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
    heard,
)


@pytest.fixture
def make_batcher() -> Iterator[MakeBatcher]:
    with batchers() as make:
        yield make


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
    assert early.result().infer_s == late.result().infer_s == 2.5
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


@pytest.mark.parametrize("n_workers", [1, 2])
def test_the_backlog_is_in_seconds_of_all_threads_together(
    make_batcher: MakeBatcher, n_workers: int
) -> None:
    clock, gates = FakeClock(), [Gate() for _ in range(n_workers)]

    def at_1_ms_a_frame(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        clock.now_s += 0.001 * chunks[0].n_frames
        return echo(chunks)

    def behind(gate: Gate) -> Worker:
        return lambda chunks: (gate if chunks[0].index else at_1_ms_a_frame)(chunks)

    batcher = make_batcher(*map(behind, gates), clock=clock, limits=ONE_BY_ONE)
    assert batcher.backlog_s() == 0
    assert heard(batcher.submit(chunk(0, 50))) == 0
    futures = [batcher.submit(chunk(index, 40)) for index in range(1, 5 + n_workers)]
    for gate in gates:
        assert gate.entered.wait(PATIENT_S)
    assert batcher.backlog_s() == pytest.approx(0.160 / n_workers)
    for gate in gates:
        gate.opened.set()
    assert [heard(future) for future in futures] == [*range(1, 5 + n_workers)]
    assert batcher.backlog_s() == 0


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
