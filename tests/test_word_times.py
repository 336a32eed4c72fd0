"""Where the service says that words start, against a synthesizer that knows where it put them."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import numpy as np
import pytest

from sensevoice_service.batch_call import Completion
from sensevoice_service.pipeline import Pipeline
from sensevoice_service.types import SAMPLE_RATE_HZ, Chunk, DecodeOptions, Hypothesis, Transcript
from tests.audio_files import Samples, pcm16, upload, wav
from tests.echo import policy
from tests.models import Model
from training.corpus import draw_script, speak
from training.evaluate import HELD_OUT_SEED
from training.lexicon import BASE, WIDE
from training.speech import Espeak

N_WORDS = 500
WITHIN_S = 0.120
SHARE = 0.95
MINUTE_59_S = 59 * 60
OPTIONS = DecodeOptions("auto", use_itn=False)  # as said: digits would run together
NONE = np.empty(0, np.int32)
NOTHING = Hypothesis(NONE, NONE, NONE, ())


@dataclass(frozen=True, eq=False)
class Spoken:
    """Words, where they start in seconds, and their sound."""

    words: list[str]
    starts_s: list[float]
    samples: Samples


@pytest.fixture(scope="module")
def utterances() -> list[Spoken]:
    """Of one to ten words from either list, English and Chinese in turn, each in another voice."""
    try:
        espeak = Espeak()
    except OSError:
        if os.environ.get("CI"):
            raise
        pytest.skip("espeak-ng is not installed")
    rng = np.random.default_rng(HELD_OUT_SEED + 300)
    utterances: list[Spoken] = []
    while sum(len(one.words) for one in utterances) < N_WORDS:
        n = len(utterances)
        script = draw_script(rng, (BASE, WIDE)[n // 2 % 2], ("en", "zh")[n % 2])
        samples, starts = speak(rng, espeak, script)
        starts_s = (starts / SAMPLE_RATE_HZ).tolist()
        utterances.append(Spoken(list(script.words), starts_s, samples))
    return utterances


class SteadyQueue:
    """The engine at once, chunk by chunk; digital silence is answered without it."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def submit(self, chunk: Chunk) -> Future[Completion]:
        (hypothesis,) = self._model.engine([chunk]) if chunk.samples.any() else (NOTHING,)
        future: Future[Completion] = Future()
        future.set_result(Completion(hypothesis, queue_s=0, infer_s=0))
        return future


def transcribe(model: Model, samples: Samples) -> Transcript:
    file = upload(wav(pcm16(samples)))
    with ThreadPoolExecutor(1) as pool:
        pipeline = Pipeline(SteadyQueue(model), pool, model.vocabulary, policy(chunk_s=30))
        return asyncio.run(pipeline.transcribe(file, OPTIONS)).transcript


def start_errors(said: Spoken, transcript: Transcript) -> list[float]:
    """Of every word said, in seconds, late ones above 0; infinite for a word that was not heard."""
    words = [word for segment in transcript.segments for word in segment.words]
    heard = [word.text.strip() for word in words]
    errors_s = [float("inf")] * len(said.words)
    matcher = SequenceMatcher(None, said.words, heard, autojunk=False)
    for i, j, n in matcher.get_matching_blocks():
        for k in range(n):
            errors_s[i + k] = words[j + k].start_s - said.starts_s[i + k]
    return errors_s


def placed(utterances: list[Spoken], at_s: int) -> Spoken:
    """One file: silence up to ``at_s``, then the utterances with pauses between them."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    file = Spoken([], [], np.zeros(at_s * SAMPLE_RATE_HZ, np.float32))
    parts, n_samples = [file.samples], len(file.samples)
    for one in utterances:
        file.words.extend(one.words)
        file.starts_s.extend(n_samples / SAMPLE_RATE_HZ + start_s for start_s in one.starts_s)
        pause = np.zeros(int(rng.uniform(0.1, 1.0) * SAMPLE_RATE_HZ), np.float32)
        parts += [one.samples, pause]
        n_samples += len(one.samples) + len(pause)
    return replace(file, samples=np.concatenate(parts))


def test_words_start_when_they_are_spoken(demo: Model, utterances: list[Spoken]) -> None:
    errors_s = [
        error_s
        for one in utterances
        for error_s in start_errors(one, transcribe(demo, one.samples))
    ]
    assert len(errors_s) >= N_WORDS
    assert np.mean(np.abs(errors_s) <= WITHIN_S) >= SHARE


def test_words_start_when_they_are_spoken_after_minute_59(
    demo: Model, utterances: list[Spoken]
) -> None:
    said = placed(utterances, at_s=MINUTE_59_S)
    transcript = transcribe(demo, said.samples)
    errors_s = start_errors(said, transcript)
    assert len(errors_s) >= N_WORDS
    assert np.mean(np.abs(errors_s) <= WITHIN_S) >= SHARE
    assert min(segment.start_s for segment in transcript.segments) >= MINUTE_59_S - WITHIN_S
