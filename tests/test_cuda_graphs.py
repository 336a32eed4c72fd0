from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from sensevoice_service.check_utterance import check_chunk
from sensevoice_service.cuda_graphs import (
    BUCKETS,
    MAX_BUCKET_FRAMES,
    Bucket,
    Capture,
    Graphs,
    InputMemory,
    Replay,
    best_bucket,
)
from sensevoice_service.frontend import FeatureBatch
from sensevoice_service.types import PROMPT_FRAMES, SAMPLE_RATE_HZ, lfr_frames
from tests.models import CPU, Model

WIDTH = 3
SMALL, MIDDLE, LARGE = Bucket(1, 12), Bucket(2, 20), Bucket(4, 40)


def batch_of(*lengths: int, seed: int = 0) -> FeatureBatch:
    """As the front end makes them, of another width."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(length, WIDTH, generator=generator) for length in lengths]
    prompts = torch.randint(16, (2, len(lengths)), generator=generator)
    return FeatureBatch(
        features=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
        n_frames=torch.tensor(lengths) if len(set(lengths)) > 1 else None,
        language_rows=prompts[0],
        textnorm_rows=prompts[1],
        lengths=lengths,
    )


def forward(features: Tensor, n_frames: Tensor | None, languages: Tensor, norms: Tensor) -> Tensor:
    """Ids that depend on every input of their own row, and on padding only if it is not finite."""
    n_max_frames = features.shape[1]
    if n_frames is None:
        n_frames = torch.full((len(features),), n_max_frames)
    real = torch.arange(n_max_frames) < n_frames[:, None]
    sums = ((features * real[:, :, None]).sum((1, 2)) * 1e4 / n_frames).to(torch.int32)
    ids = (features.sum(2) * 1e4).to(torch.int32) + sums[:, None]
    heads = torch.stack((languages, norms, sums, n_frames), dim=1).to(torch.int32)
    return torch.cat((heads, ids), dim=1)


def real_ids(ids: Tensor, lengths: tuple[int, ...]) -> list[list[int]]:
    rows = zip(ids.tolist(), lengths, strict=True)
    return [row[: PROMPT_FRAMES + length] for row, length in rows]


def expected_ids(batch: FeatureBatch) -> list[list[int]]:
    ids = forward(batch.features, batch.n_frames, batch.language_rows, batch.textnorm_rows)
    return real_ids(ids, batch.lengths)


SAMPLE = batch_of(5, seed=9)
inputs_of = InputMemory((SMALL, MIDDLE, LARGE), WIDTH, CPU)


def eager(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Stands for a capture: its replay computes anew from what is in the static inputs."""
    return run


@pytest.fixture
def graphs() -> Graphs:
    graphs = Graphs()
    graphs.capture((SMALL, MIDDLE, LARGE), forward, inputs_of, eager, SAMPLE)
    return graphs


@pytest.mark.parametrize(
    ("rows", "frames", "expected"),
    [
        (1, 5, SMALL),
        (1, 12, SMALL),
        (1, 13, MIDDLE),
        (2, 5, MIDDLE),
        (2, 20, MIDDLE),
        (2, 21, LARGE),
        (3, 5, LARGE),
        (4, 40, LARGE),
        (4, 41, None),
        (5, 5, None),
    ],
)
def test_the_least_padded_bucket_that_holds_a_batch_is_taken(
    rows: int, frames: int, expected: Bucket | None
) -> None:
    assert best_bucket((LARGE, SMALL, MIDDLE), rows, frames) == expected
    assert best_bucket((), rows, frames) is None


@pytest.mark.parametrize(
    ("rows", "seconds", "expected"),
    [
        (1, 3.0, Bucket(1, 64)),
        (1, 10.0, Bucket(1, 176)),
        (1, 15.0, Bucket(1, 256)),
        (1, 30.0, Bucket(1, 512)),
        (3, 10.0, Bucket(4, 176)),
        (8, 10.0, Bucket(8, 176)),
        (9, 3.0, Bucket(16, 64)),
        (8, 20.0, Bucket(8, 352)),
        (32, 10.0, Bucket(32, 176)),
        (47, 10.0, Bucket(48, 176)),
        (16, 30.0, Bucket(16, 512)),
        (17, 30.0, None),
        (256, 10.0, None),
        (1, 31.0, None),
    ],
)
def test_buckets_are_cut_to_what_is_served(
    rows: int, seconds: float, expected: Bucket | None
) -> None:
    frames = PROMPT_FRAMES + lfr_frames(round(seconds * SAMPLE_RATE_HZ))
    assert best_bucket(BUCKETS, rows, frames) == expected


def test_buckets_are_few_and_bounded() -> None:
    assert len(set(BUCKETS)) == len(BUCKETS) < 50
    assert max(bucket.padded_frames for bucket in BUCKETS) <= MAX_BUCKET_FRAMES


@pytest.mark.parametrize(
    "lengths", [(1,), (8,), (9,), (16,), (5, 5), (1, 16), (3, 1, 2), (36, 7, 36, 1)]
)
def test_a_padded_batch_gives_what_it_gives_by_itself(
    graphs: Graphs, lengths: tuple[int, ...]
) -> None:
    batch = batch_of(*lengths)
    ids = graphs.run(batch)
    assert ids is not None
    assert ids.shape == (len(lengths), PROMPT_FRAMES + max(lengths))
    assert real_ids(ids, lengths) == expected_ids(batch)


def test_nothing_stays_of_the_batch_before(graphs: Graphs) -> None:
    """Not a number would get past any mask."""
    before = batch_of(36, 36, 36, 36)
    before.features.fill_(torch.nan)
    graphs.run(before)
    for lengths in ((21,), (2, 36), (3, 1, 2)):
        batch = batch_of(*lengths)
        ids = graphs.run(batch)
        assert ids is not None
        assert real_ids(ids, lengths) == expected_ids(batch)


def test_rows_and_frames_without_audio_are_one_frame_of_silence() -> None:
    inputs = inputs_of(LARGE)
    inputs.fill(batch_of(36, 36, 36, 36))
    inputs.fill(batch_of(3, 7))
    assert inputs.n_frames.tolist() == [3, 7, 1, 1]
    assert not inputs.features[0, 3:].any()
    assert not inputs.features[1, 7:].any()
    assert not inputs.features[2:].any()
    inputs.fill(batch_of(6))
    assert inputs.n_frames.tolist() == [6, 1, 1, 1]


def test_all_buckets_share_one_memory() -> None:
    small, large = inputs_of(SMALL), inputs_of(LARGE)
    assert small.features.data_ptr() == large.features.data_ptr()
    assert small.n_frames.data_ptr() == large.n_frames.data_ptr()
    for bucket in (SMALL, MIDDLE, LARGE):
        inputs = inputs_of(bucket)
        assert inputs.features.is_contiguous()
        assert inputs.features.shape == (bucket.rows, bucket.frames - PROMPT_FRAMES, WIDTH)
        assert inputs.n_frames.tolist() == [bucket.frames - PROMPT_FRAMES] * bucket.rows


def test_ids_are_the_callers_own() -> None:
    output = torch.zeros(1, 12, dtype=torch.int32)
    graphs = Graphs()

    def copied(run: Replay) -> Replay:
        return lambda: output.copy_(run())

    graphs.capture((SMALL,), forward, inputs_of, copied, SAMPLE)
    batches = [batch_of(8, seed=seed) for seed in range(2)]
    answers = [graphs.run(batch) for batch in batches]
    for ids, batch in zip(answers, batches, strict=True):
        assert ids is not None
        assert real_ids(ids, batch.lengths) == expected_ids(batch)


@pytest.mark.parametrize("lengths", [(37,), (1, 1, 1, 1, 1)])
def test_what_no_graph_holds_is_left_to_the_caller(
    graphs: Graphs, lengths: tuple[int, ...]
) -> None:
    assert graphs.run(batch_of(*lengths)) is None
    assert Graphs().run(batch_of(1)) is None


def test_the_largest_is_captured_first_and_none_twice() -> None:
    shapes: list[tuple[int, int]] = []

    def capture(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        rows, frames = run().shape
        shapes.append((rows, frames))
        return run

    graphs = Graphs()
    for _ in range(2):
        graphs.capture((SMALL, LARGE, MIDDLE), forward, inputs_of, capture, SAMPLE)
    assert shapes == [(4, 40), (2, 20), (1, 12)]


def failing(error: Exception, bucket: Bucket, tried: list[tuple[int, int]]) -> Capture:
    """A capture that fails on one bucket, and notes what it is asked for."""

    def capture(run: Replay) -> Replay:
        rows, frames = run().shape
        tried.append((rows, frames))
        if rows == bucket.rows:
            raise error
        return run

    return capture


def test_after_a_capture_that_does_not_fit_come_those_of_half_its_size(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried: list[tuple[int, int]] = []
    capture = failing(torch.OutOfMemoryError("too large"), LARGE, tried)
    graphs, nearly_as_large = Graphs(), Bucket(3, 40)
    memory = InputMemory((LARGE,), WIDTH, CPU)
    with caplog.at_level(logging.WARNING):
        graphs.capture((SMALL, nearly_as_large, MIDDLE, LARGE), forward, memory, capture, SAMPLE)
    assert len(caplog.records) == 1
    assert "Bucket(rows=4, frames=40)" in caplog.text
    assert tried == [(4, 40), (2, 20), (1, 12)]
    assert graphs.run(batch_of(30)) is None
    batch = batch_of(5)
    ids = graphs.run(batch)
    assert ids is not None
    assert real_ids(ids, batch.lengths) == expected_ids(batch)


def test_a_capture_that_is_broken_off_is_the_last(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[tuple[int, int]] = []
    graphs, capture = Graphs(), failing(RuntimeError("not while capturing"), MIDDLE, tried)
    with caplog.at_level(logging.WARNING):
        graphs.capture((SMALL, MIDDLE, LARGE), forward, inputs_of, capture, SAMPLE)
    assert len(caplog.records) == 1
    assert tried == [(4, 40), (2, 20)]
    batch = batch_of(5)
    ids = graphs.run(batch)
    assert ids is not None
    assert real_ids(ids, batch.lengths) == expected_ids(batch)


def test_a_replay_that_hears_something_else_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    graphs = Graphs()
    with caplog.at_level(logging.WARNING):
        graphs.capture(
            (SMALL, LARGE), forward, inputs_of, lambda run: lambda: torch.zeros_like(run()), SAMPLE
        )
    assert "its replay has 0% of the ids that the kernels have" in caplog.text
    assert graphs.run(batch_of(5)) is None


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_threads_do_not_share_static_inputs(graphs: Graphs) -> None:
    batches = [batch_of(8, seed=seed) for seed in range(200)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(graphs.run, batches))
    for ids, batch in zip(answers, batches, strict=True):
        assert ids is not None
        assert real_ids(ids, batch.lengths) == expected_ids(batch)


def test_the_real_network_gives_the_same_in_a_larger_shape(small_model: Model) -> None:
    engine = small_model.engine
    width = engine.model.config.input_size
    graphs = Graphs()
    bucket = Bucket(4, 64)
    sample = engine.frontend([check_chunk()])
    memory = InputMemory((bucket,), width, CPU)
    graphs.capture((bucket,), engine.best_ids, memory, eager, sample)
    for lengths in ((50,), (3, 41, 1)):
        rows = [torch.randn(length, width) for length in lengths]
        features = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        prompts = torch.tensor([3] * len(lengths))
        n_frames = torch.tensor(lengths) if len(lengths) > 1 else None
        batch = FeatureBatch(features, n_frames, prompts, prompts, lengths)
        ids = graphs.run(batch)
        assert ids is not None
        plain = engine.best_ids(features, n_frames, prompts, prompts)
        assert real_ids(ids, lengths) == real_ids(plain, lengths)
