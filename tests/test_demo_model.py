"""The bundled model, on speech that it was not trained on; the whole table is ``make evaluate``."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest

from api import batch_limits, pipeline_policy
from bench import hour
from config import load_settings
from sensevoice_service.batcher import Batcher
from sensevoice_service.loading import EngineOptions, OpenModel, open_model
from sensevoice_service.model_store import open_folder
from sensevoice_service.pipeline import Pipeline
from training.evaluate import HELD_OUT_SEED, Condition, draw_samples, score
from training.lexicon import Language
from training.speech import Espeak
from training.train import DEMO_FOLDER

N_UTTERANCES = 120
LANGUAGES: tuple[Language, ...] = ("en", "zh")
MAX_BYTES = 8_000_000
BARS = {"base": 0.005, "wide": 0.01, "phrases": 0.01}


@pytest.fixture(scope="module")
def demo() -> OpenModel:
    """As it is served where nothing is set."""
    return open_model(open_folder(DEMO_FOLDER), EngineOptions("cpu"))


@pytest.fixture
def pipeline(demo: OpenModel) -> Iterator[Pipeline]:
    settings = load_settings()
    batcher = Batcher(demo.workers, batch_limits(settings, "cpu"))
    batcher.start()
    with ThreadPoolExecutor(2) as pool:
        policy = pipeline_policy(settings, demo.n_workers)
        yield Pipeline(batcher, pool, demo.vocabulary, policy)
    batcher.stop()


def test_its_weights_are_small() -> None:
    assert (DEMO_FOLDER / "model.pt").stat().st_size <= MAX_BYTES


@pytest.mark.parametrize("words", ["base", "wide", "phrases"])
def test_it_hears_new_utterances(demo: OpenModel, espeak: Espeak, words: str) -> None:
    scores = []
    for index, (language, use_itn) in enumerate(product(LANGUAGES, (False, True))):
        condition = Condition(words, language, "noisy", use_itn=use_itn, prompt="auto")
        samples = draw_samples(condition, espeak, HELD_OUT_SEED + 100 + index, N_UTTERANCES)
        scores.append(score(demo, condition, samples))
    n_tokens = sum(one.n_tokens for one in scores)
    assert n_tokens > 1_600
    assert sum(one.n_errors for one in scores) / n_tokens <= BARS[words]
    assert sum(one.n_wrong_language for one in scores) <= 0.01 * 4 * N_UTTERANCES


def test_its_words_start_when_they_are_spoken(demo: OpenModel, espeak: Espeak) -> None:
    condition = Condition("wide", "en", sound="clean", use_itn=False, prompt="auto")
    samples = draw_samples(condition, espeak, HELD_OUT_SEED + 200, N_UTTERANCES)
    errors_s = score(demo, condition, samples).start_errors_s
    assert len(errors_s) > 300
    assert np.quantile(errors_s, 0.95) <= 0.12


@pytest.mark.usefixtures("espeak")  # which speaks in a process of its own
@pytest.mark.parametrize(
    ("name", "pauses", "n_hours", "bar"),
    [
        ("base", True, 1, 0.005),
        ("base", False, 3, 0.005),
        ("wide", True, 1, 0.01),
        ("wide", False, 1, 0.015),
    ],
)
def test_long_files_have_the_texts_of_their_utterances(
    pipeline: Pipeline, name: str, pauses: bool, n_hours: int, bar: float
) -> None:
    """Hours of them, as in ``make hour-test``."""
    results = []
    for seed in hour.draws(n_hours):
        utterances = hour.make_utterances(hour.N_UTTERANCES, hour.LISTS[name], seed)
        results.append(hour.compare(pipeline, utterances, 3_600, pauses, seed))
    assert all(result.n_tokens > 5_000 for result in results)
    assert max(result.token_error for result in results) <= bar
