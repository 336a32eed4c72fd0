"""The engine in C against torch's: for each target that this CPU suits, and plain everywhere."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sensevoice_service.callers import Threads
from sensevoice_service.check_utterance import check_chunk
from sensevoice_service.encoder import EncoderConfig, SenseVoice
from sensevoice_service.frontend import FeatureBatch
from sensevoice_service.likeness import likeness, require_likeness
from sensevoice_service.native_engine import FRAMES_TOGETHER, NativeEngine, grouped, stacked
from sensevoice_service.native_library import (
    PLAIN,
    NativeUnavailable,
    Target,
    load_library,
)
from sensevoice_service.types import Chunk
from tests.engines import (
    NATIVE_TARGETS,
    features_of,
    name_of,
    native_library,
    require_logits_of_the_arg_max,
    require_that_a_long_chunk_is_heard,
    require_that_threads_share,
    row_of,
    same,
    some_chunks,
)
from tests.models import Model
from tests.native_fakes import Encoding, Silent

SHARED = Threads(narrow=1, wide=2)


@pytest.fixture(scope="module", params=NATIVE_TARGETS, ids=name_of)
def library(request: pytest.FixtureRequest) -> ctypes.CDLL:
    return native_library(request.param)


@pytest.fixture(scope="module")
def engine(library: ctypes.CDLL, demo: Model) -> NativeEngine:
    return NativeEngine(demo.engine.model, demo.engine.frontend, SHARED, library)


@pytest.fixture(scope="module")
def chunks() -> list[Chunk]:
    return some_chunks()


@torch.inference_mode()
def heard_by_torch(model: SenseVoice, batch: FeatureBatch) -> list[NDArray[np.float32]]:
    hidden = model.encode(
        batch.features, torch.tensor(batch.lengths), batch.language_rows, batch.textnorm_rows
    )
    return [row[: 4 + length].numpy() for row, length in zip(hidden, batch.lengths, strict=True)]


def test_it_hears_what_torch_hears(engine: NativeEngine, demo: Model) -> None:
    heard = engine([check_chunk()])[0]
    wanted = demo.engine([check_chunk()])[0]
    assert heard.token_ids.tolist() == wanted.token_ids.tolist()
    assert len(heard.token_ids) == 4
    assert heard.prompt_ids == wanted.prompt_ids
    assert np.abs(heard.first_frames - wanted.first_frames).max() <= 1
    assert require_likeness(demo.engine, engine, check_chunk()) > 0.99


def test_every_length_is_heard_to_its_last_frame(engine: NativeEngine, demo: Model) -> None:
    """Those at which a tile, or a panel of keys, is just full, and just is not."""
    config = demo.engine.model.config
    batch = features_of([1, 11, 12, 13, 27, 28, 29, 44, 45, 61, 92, 93], config.input_size)
    for found, wanted in zip(
        engine.hidden(batch), heard_by_torch(demo.engine.model, batch), strict=True
    ):
        assert found.shape == wanted.shape
        assert likeness([wanted], [found]) > 0.99
        assert likeness([wanted[-1:]], [found[-1:]]) > 0.97


@pytest.mark.parametrize(
    "config",
    [
        EncoderConfig(70, 48, 64, 2, 128, 3, 2, 5),
        EncoderConfig(64, 80, 96, 4, 64, 2, 1, 3),
        EncoderConfig(33, 560, 512, 4, 2_048, 1, 1, 11),
        EncoderConfig(33, 80, 640, 4, 64, 1, 1, 3),
    ],
    ids=["heads of a panel", "heads of less", "as published", "wider"],
)
def test_other_sizes_are_heard_too(
    library: ctypes.CDLL, demo: Model, config: EncoderConfig
) -> None:
    torch.manual_seed(0)
    model = SenseVoice(config).eval()
    engine = NativeEngine(model, demo.engine.frontend, SHARED, library)
    batch = features_of([40, 17], config.input_size)
    assert likeness(heard_by_torch(model, batch), engine.hidden(batch)) > 0.99


FP32_TARGETS = [target for target in NATIVE_TARGETS if target.precision == "fp32"]


@pytest.mark.parametrize("target", FP32_TARGETS, ids=name_of)
@torch.inference_mode()
def test_fp32_is_as_near_to_the_truth_as_torchs(demo: Model, target: Target) -> None:
    """On two layers of the published size, whose longest sums are made in pieces."""
    torch.manual_seed(0)
    model = SenseVoice(EncoderConfig(33, 560, 512, 4, 2_048, 2, 1, 11)).eval()
    engine = NativeEngine(model, demo.engine.frontend, SHARED, native_library(target))
    batch = features_of([60], 560)
    [found], [torchs] = engine.hidden(batch), heard_by_torch(model, batch)
    model.double().round_products(torch.float64)
    [truth] = heard_by_torch(model, replace(batch, features=batch.features.double()))
    assert truth.dtype == np.float64
    assert engine.precision == "fp32"
    assert np.abs(found - truth).mean() < 1.5 * np.abs(torchs - truth).mean()


def test_no_sum_overflows(library: ctypes.CDLL, demo: Model) -> None:
    """Weights of one sign and the highest levels beside each other."""
    torch.manual_seed(0)
    model = SenseVoice(EncoderConfig(70, 48, 64, 2, 128, 3, 2, 5)).eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "feed_forward.w" in name and values.dim() == 2:
                values.abs_()
            elif "norm2.bias" in name:
                values.add_(5.0)
    engine = NativeEngine(model, demo.engine.frontend, SHARED, library)
    batch = features_of([40], 48)
    assert likeness(heard_by_torch(model, batch), engine.hidden(batch)) > 0.99


@pytest.mark.parametrize("of", ["scores", "context"])
def test_no_sum_of_attention_overflows(library: ctypes.CDLL, demo: Model, of: str) -> None:
    """Queries and keys whose values all are as large as the largest; or values and equal shares."""
    torch.manual_seed(0)
    size = 64
    model = SenseVoice(EncoderConfig(70, 48, size, 2, 128, 3, 2, 5)).eval()
    with torch.no_grad():
        for name, values in model.named_parameters():
            queries, keys, all_three = values[:size], values[size : 2 * size], values
            if "linear_q_k_v.weight" in name:
                (queries if of == "scores" else all_three).mul_(1e-3)
                keys[:] = keys[0]
            elif "linear_q_k_v.bias" in name:
                (queries if of == "scores" else all_three).fill_(3.0)
                keys[:] = keys[0]
    engine = NativeEngine(model, demo.engine.frontend, SHARED, library)
    batch = features_of([3, 400], 48)
    assert likeness(heard_by_torch(model, batch), engine.hidden(batch)) > 0.99


def test_a_row_of_a_batch_is_exactly_the_row_alone(
    engine: NativeEngine, chunks: list[Chunk]
) -> None:
    batch = engine.frontend(chunks)
    together = engine.infer(batch)
    alone = [engine.infer(row_of(batch, index))[0] for index in range(len(chunks))]
    assert len(together) == len(chunks)
    assert all(same(a, b) for a, b in zip(together, alone, strict=True))


def test_the_logits_of_each_row_are_those_of_its_arg_max(
    engine: NativeEngine, demo: Model, chunks: list[Chunk]
) -> None:
    require_logits_of_the_arg_max(engine, demo.vocabulary.size, chunks)


def test_callers_share_it(engine: NativeEngine, chunks: list[Chunk]) -> None:
    require_that_threads_share(engine, chunks)


@pytest.mark.parametrize("n_threads", [2, 3, 7])
def test_a_team_gives_the_bits_that_one_thread_gives(
    demo: Model, library: ctypes.CDLL, n_threads: int
) -> None:
    team, engine = (
        NativeEngine(demo.engine.model, demo.engine.frontend, Threads(n, n), library)
        for n in (n_threads, 1)
    )
    batch = features_of([37, 20, 3], demo.engine.model.config.input_size)
    for ours, theirs in zip(team.hidden(batch), engine.hidden(batch), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for one, other in zip(team.infer(batch), engine.infer(batch), strict=True):
        assert same(one, other)


def test_each_target_gives_what_plain_c_gives(engine: NativeEngine, demo: Model) -> None:
    same_in_plain = PLAIN if engine.precision == "int8" else PLAIN.at(engine.precision)
    library = load_library(same_in_plain)
    plain = NativeEngine(demo.engine.model, demo.engine.frontend, SHARED, library)
    batch = plain.frontend([check_chunk()])
    assert likeness(plain.hidden(batch), engine.hidden(batch)) > 0.999


def test_audio_longer_than_all_before_gets_its_positions(demo: Model, library: ctypes.CDLL) -> None:
    engine = NativeEngine(demo.engine.model, demo.engine.frontend, SHARED, library)
    require_that_a_long_chunk_is_heard(engine, demo)


@dataclass
class Watched(Silent):
    """Stands for the library: notes what calls come with, and what they come to."""

    result: int = 1

    def __post_init__(self) -> None:
        self.cores: list[int] = []
        self.n_rows: list[int] = []
        self.has_followers: list[bool] = []
        self.n_calls_before: list[int] = []

    def sensevoice_encode(self, *arguments: Any) -> int:
        call = Encoding(*arguments)
        self.cores.append(ctypes.addressof(call.cores._obj))
        self.n_rows.append(call.n_utterances)
        self.has_followers.append(call.has_followers)
        self.n_calls_before.append(call.n_calls_before.value)
        return self.result


def watched(demo: Model, library: Watched) -> NativeEngine:
    as_library: Any = library
    return NativeEngine(demo.engine.model, demo.engine.frontend, Threads(1, 4), as_library)


def test_calls_share_one_count_of_the_cores(demo: Model) -> None:
    library = Watched()
    engine = watched(demo, library)
    for has_followers in (False, True):
        chunk = replace(check_chunk(), has_followers=has_followers)
        engine.infer(engine.frontend([chunk]))
        engine.read_logits([chunk], lambda row, logits: None)
    assert library.has_followers == [False, False, True, True]
    assert len(set(library.cores)) == 1


def test_short_utterances_go_together_and_long_ones_alone(demo: Model) -> None:
    library = Watched()
    engine = watched(demo, library)
    engine.infer(features_of([16] * 14, demo.engine.model.config.input_size))
    engine.infer(features_of([300, 200], demo.engine.model.config.input_size))
    assert library.n_rows == [12, 2, 1, 1]


def test_groups_of_a_batch_are_not_taken_for_each_others_followers(demo: Model) -> None:
    library = Watched()
    batch = features_of([300, 200, 300], demo.engine.model.config.input_size)
    watched(demo, library).infer(replace(batch, has_followers=True))
    assert library.n_calls_before == [0, 1, 2]


def test_logits_that_are_no_numbers_give_ids_of_the_vocabulary(
    library: ctypes.CDLL, demo: Model
) -> None:
    torch.manual_seed(0)
    model = SenseVoice(EncoderConfig(70, 48, 64, 2, 128, 3, 2, 5)).eval()
    engine = NativeEngine(model, demo.engine.frontend, SHARED, library)
    batch = features_of([40], 48)
    batch.features[:] = float("nan")
    [heard] = engine.infer(batch)
    assert all(0 <= token < 70 for token in (*heard.prompt_ids, *heard.token_ids.tolist()))


def test_want_of_memory_is_told(demo: Model) -> None:
    engine = watched(demo, Watched(result=0))
    with pytest.raises(MemoryError, match="frames"):
        engine([check_chunk()])


def test_a_network_that_does_not_fit_is_refused(demo: Model) -> None:
    model = SenseVoice(EncoderConfig(64, 80, 90, 2, 64, 1, 1, 3))
    as_library: Any = Watched()
    with pytest.raises(NativeUnavailable, match="output_size 90"):
        NativeEngine(model, demo.engine.frontend, SHARED, as_library)


def test_groups_keep_the_order_and_their_bound() -> None:
    rows = [np.zeros((n, 2), np.float32) for n in (200, 56, 1, 300, 100, 100, 100)]
    lengths = [[len(row) for row in group] for group in grouped(rows)]
    assert lengths == [[200, 56], [1], [300], [100, 100], [100]]
    assert list(grouped([])) == []
    assert FRAMES_TOGETHER == 256


def test_each_utterance_begins_at_an_even_row_behind_zeros() -> None:
    rows = [np.full((n, 3), n, np.float32) for n in (16, 5, 33)]
    x, firsts = stacked(rows)
    assert firsts == [0, 16, 22]
    assert x.shape == (56, 3)
    assert np.array_equal(x[16:21], rows[1])
    assert not x[21].any()
    assert not x[55].any()
