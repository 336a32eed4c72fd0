"""Hot words and restricted languages on real engines, with the demo model."""

from __future__ import annotations

import wave
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from sensevoice_service.callers import Threads
from sensevoice_service.engine import Engine
from sensevoice_service.frontend import FeatureBatch
from sensevoice_service.onnx_engine import OnnxEngine, choose_int8
from sensevoice_service.steering import TOP_TOKENS, Legible, SteeredEngine, score_frames
from sensevoice_service.types import Chunk, DecodeOptions, Hypothesis
from tests.models import Model, Samples, noise

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
T = TypeVar("T")


def read(name: str) -> Samples:
    with wave.open(str(SAMPLES / name)) as reader:
        frames = np.frombuffer(reader.readframes(reader.getnframes()), "<i2")
    return (frames / np.float32(32_768)).astype(np.float32)


ENGLISH, CHINESE = read("hello.wav"), read("nihao.wav")
SILENCE = np.zeros(24_000, np.float32)


def inner(name: str, demo: Model) -> Legible:
    if name == "torch":
        return demo.engine
    int8 = choose_int8() if name == "int8" else None
    return OnnxEngine(demo.engine.model, demo.engine.frontend, int8, Threads(1, 1))


@pytest.fixture(scope="module", params=["torch", "onnx", "int8"])
def engine(request: pytest.FixtureRequest, demo: Model) -> SteeredEngine:
    return SteeredEngine(inner(request.param, demo), demo.vocabulary)


@pytest.fixture(scope="module")
def fast(demo: Model) -> SteeredEngine:
    return SteeredEngine(inner("onnx", demo), demo.vocabulary)


def chunk(
    samples: Samples,
    language: str = "auto",
    use_itn: bool = True,
    among: tuple[str, ...] = (),
    hotwords: tuple[str, ...] = (),
) -> Chunk:
    return Chunk(samples, 0, 0, DecodeOptions(language, use_itn, among, hotwords))


def one(engine: SteeredEngine, asked: Chunk) -> Hypothesis:
    (heard,) = engine([asked])
    return heard


def same(one: Hypothesis, other: Hypothesis) -> bool:
    return one.prompt_ids == other.prompt_ids and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("token_ids", "first_frames", "last_frames")
    )


def language_of(model: Model, heard: Hypothesis) -> str:
    return model.vocabulary.tags(heard.prompt_ids).language


def text_of(model: Model, heard: Hypothesis) -> str:
    return model.vocabulary.text(heard.token_ids.tolist())


class Counting:
    """The demo's engine, and what of it was asked for."""

    def __init__(self, engine: Engine) -> None:
        self.frontend, self.precision = engine.frontend, engine.precision
        self.device, self.n_parameters = engine.device, engine.n_parameters
        self._engine = engine
        self.plain: list[int] = []
        self.read: list[int] = []

    def __call__(self, chunks: Sequence[Chunk]) -> list[Hypothesis]:
        self.plain.append(len(chunks))
        return self._engine(chunks)

    def infer(self, batch: FeatureBatch) -> list[Hypothesis]:
        return self._engine.infer(batch)

    def read_logits(self, chunks: Sequence[Chunk], read: Callable[[int, Tensor], T]) -> list[T]:
        self.read.append(len(chunks))
        return self._engine.read_logits(chunks, read)

    def warm_up(self, shapes: Sequence[tuple[int, float]]) -> None:
        self._engine.warm_up(shapes)

    def gpu_memory(self) -> dict[str, int] | None:
        return {"used_bytes": 7}


@pytest.fixture
def counting(demo: Model) -> Counting:
    return Counting(demo.engine)


def test_plain_chunks_go_to_the_engine_alone(counting: Counting, demo: Model) -> None:
    heard = SteeredEngine(counting, demo.vocabulary)([chunk(ENGLISH), chunk(CHINESE)])
    assert (counting.plain, counting.read) == ([2], [])
    wanted = demo.engine([chunk(ENGLISH), chunk(CHINESE)])
    assert all(same(a, b) for a, b in zip(heard, wanted, strict=True))


def test_in_a_mixed_batch_each_chunk_has_its_own_way_and_place(
    counting: Counting, demo: Model
) -> None:
    mixed = [
        chunk(ENGLISH, hotwords=("hello",)),
        chunk(CHINESE),
        chunk(SILENCE, among=("zh",)),
        chunk(ENGLISH),
        chunk(CHINESE, among=("zh", "en")),
    ]
    heard = SteeredEngine(counting, demo.vocabulary)(mixed)
    assert (counting.plain, counting.read) == ([2], [3])
    plain = [replace(asked, options=DecodeOptions()) for asked in mixed]
    assert [text_of(demo, h) for h in heard] == [text_of(demo, h) for h in demo.engine(plain)]


def test_what_it_says_of_itself_is_the_engine_s(counting: Counting, demo: Model) -> None:
    steered = SteeredEngine(counting, demo.vocabulary)
    assert steered.gpu_memory() == {"used_bytes": 7}
    assert steered.precision == "fp32"
    assert steered.device == demo.engine.device
    assert steered.n_parameters == demo.engine.n_parameters
    batch = steered.frontend([chunk(ENGLISH)])
    assert same(steered.infer(batch)[0], demo.engine.infer(batch)[0])


def test_the_steered_way_is_warmed_too(counting: Counting, demo: Model) -> None:
    SteeredEngine(counting, demo.vocabulary).warm_up([(1, 0.2), (2, 0.1)])
    assert counting.read in ([1], [1, 1])


@pytest.mark.parametrize("samples", [ENGLISH, CHINESE, SILENCE], ids=["en", "zh", "silence"])
def test_among_the_languages_that_are_spoken_it_is_auto(
    engine: SteeredEngine, samples: Samples
) -> None:
    restricted = one(engine, chunk(samples, among=("zh", "en")))
    assert same(restricted, one(engine, chunk(samples)))


@pytest.mark.parametrize("among", [("zh",), ("ja", "ko"), ("ko", "zh", "yue")])
def test_a_language_that_is_not_listed_is_never_reported(
    engine: SteeredEngine, demo: Model, among: tuple[str, ...]
) -> None:
    heard = one(engine, chunk(ENGLISH, among=among))
    assert language_of(demo, heard) in among


def test_a_chunk_is_heard_again_in_the_likeliest_language_listed(
    counting: Counting, demo: Model
) -> None:
    heard = one(SteeredEngine(counting, demo.vocabulary), chunk(ENGLISH, among=("ja", "zh", "ko")))
    assert counting.read == [1, 1]
    assert language_of(demo, heard) == "zh"  # the demo has never heard the others
    prompted = demo.engine([chunk(ENGLISH, "zh")])[0]
    assert np.array_equal(heard.token_ids, prompted.token_ids)


def test_an_allowed_language_is_not_heard_again(counting: Counting, demo: Model) -> None:
    one(SteeredEngine(counting, demo.vocabulary), chunk(ENGLISH, among=("en", "ko")))
    assert counting.read == [1]


@pytest.mark.parametrize("samples", [SILENCE, noise(24_000, level=0.001)], ids=["silence", "noise"])
def test_silence_stays_silence_in_any_language(
    engine: SteeredEngine, demo: Model, samples: Samples
) -> None:
    heard = one(engine, chunk(samples, among=("ja",), hotwords=("hello",)))
    assert language_of(demo, heard) == "nospeech"
    assert not len(heard.token_ids)


def test_a_language_that_was_asked_for_is_not_restricted(
    engine: SteeredEngine, demo: Model
) -> None:
    heard = one(engine, chunk(ENGLISH, "en", among=("zh",)))
    assert same(heard, one(engine, chunk(ENGLISH, "en")))


@pytest.mark.parametrize("use_itn", [True, False])
@pytest.mark.parametrize(
    "hotwords", [("hello world", "morning"), ("evening",), ("xyzzy",), ("天气", "今天"), ("今",)]
)
def test_clear_speech_is_heard_as_without_hot_words(
    engine: SteeredEngine, hotwords: tuple[str, ...], use_itn: bool
) -> None:
    for samples in (ENGLISH, CHINESE):
        heard = one(engine, chunk(samples, use_itn=use_itn, hotwords=hotwords))
        assert same(heard, one(engine, chunk(samples, use_itn=use_itn)))


WORDS = "hello world good morning"


def blurred(seed: int) -> Samples:
    loud = noise(len(ENGLISH), seed, level=0.2)
    return np.clip(ENGLISH + loud, -1, 1).astype(np.float32)


def test_hot_words_are_heard_where_noise_hid_them(fast: SteeredEngine, demo: Model) -> None:
    seeds = range(24)
    plain = fast([chunk(blurred(seed), use_itn=False) for seed in seeds])
    helped = fast([chunk(blurred(seed), use_itn=False, hotwords=(WORDS,)) for seed in seeds])
    n_plain = sum(text_of(demo, heard) == WORDS for heard in plain)
    right = [heard for heard in helped if text_of(demo, heard) == WORDS]
    assert len(right) >= n_plain + 6
    clear = one(fast, chunk(ENGLISH, use_itn=False))
    off = [np.abs(heard.first_frames - clear.first_frames).max() for heard in right]
    assert np.median(off) <= 3


def test_hot_words_and_languages_go_together(fast: SteeredEngine, demo: Model) -> None:
    asked = [
        chunk(blurred(seed), use_itn=False, among=("zh",), hotwords=(WORDS,)) for seed in range(6)
    ]
    heard = fast(asked)
    assert {language_of(demo, one) for one in heard} == {"zh"}
    assert WORDS in [text_of(demo, one) for one in heard]


def test_threads_share_it(engine: SteeredEngine) -> None:
    asked = [
        chunk(ENGLISH, among=("zh",)),
        chunk(CHINESE, hotwords=("天气",)),
        chunk(ENGLISH, among=("zh",), hotwords=("morning", "evening")),
        chunk(CHINESE),
    ]
    wanted = engine(asked)
    with ThreadPoolExecutor(4) as pool:
        for heard in pool.map(engine, [asked] * 8):
            assert all(same(a, b) for a, b in zip(heard, wanted, strict=True))


def test_a_row_of_a_batch_is_heard_as_it_is_alone(engine: SteeredEngine) -> None:
    asked = [
        chunk(ENGLISH, hotwords=("world",)),
        chunk(CHINESE[:20_000], among=("en",)),
        chunk(SILENCE, hotwords=("天气",)),
    ]
    together = engine(asked)
    assert all(same(heard, one(engine, a)) for heard, a in zip(together, asked, strict=True))


def test_frame_scores_are_log_probabilities_with_the_blank_first() -> None:
    logits = torch.randn(4 + 9, 50, generator=torch.Generator().manual_seed(0)) * 3
    scores = score_frames(logits, frozenset({41, 7}))
    ids = scores.token_ids.tolist()
    assert ids[0] == 0
    assert len(ids) == len(set(ids))
    assert {7, 41} <= set(ids)
    wanted = logits[4:].log_softmax(dim=-1)
    np.testing.assert_allclose(scores.log_probs, wanted[:, ids].numpy(), atol=1e-5)
    for row in wanted:
        assert set(row.topk(TOP_TOKENS).indices.tolist()) <= set(ids)


def test_frames_of_blanks_bring_no_tokens() -> None:
    logits = torch.full((4 + 6, 50), -20.0)
    logits[:, 0] = 20.0
    assert score_frames(logits, frozenset({7})).token_ids.tolist() == [0, 7]
