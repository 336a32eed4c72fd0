"""Print the demo model's token error on utterances that it was not trained on.

``python -m training.evaluate [--model DIR] [--utterances N] [--quantize Q]``; ``make evaluate``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from sensevoice_service.loading import EngineOptions, OpenModel, open_model
from sensevoice_service.model_store import open_folder
from sensevoice_service.steering import AnyEngine
from sensevoice_service.types import (
    FRAME_SAMPLES,
    SAMPLE_RATE_HZ,
    Chunk,
    DecodeOptions,
    Hypothesis,
)
from training.corpus import draw_phrases, draw_script, speak
from training.lexicon import BASE, SPACE, WIDE, Language, pieces, spell
from training.scoring import edit_distance
from training.speech import Espeak, FloatArray, random_noise
from training.train import DEMO_FOLDER

HELD_OUT_SEED = 7_000_000  # training draws from seeds near 20,260
BATCH = 64
Sound = Literal["clean", "noisy", "harsh"]
# dB of full scale. Speech is quietest at -12 dB, so that harsh noise is near to it.
SOUNDS: tuple[Sound, ...] = ("clean", "noisy", "harsh")
NOISE_DB: dict[Sound, tuple[float, float]] = {"noisy": (-60.0, -35.0), "harsh": (-35.0, -35.0)}


@dataclass(frozen=True)
class Condition:
    """One row of the table: what is said, how it sounds, and what is asked of the model."""

    words: str  # base, wide or phrases
    language: Language
    sound: Sound
    use_itn: bool
    prompt: str


@dataclass(frozen=True, eq=False)
class Sample:
    samples: FloatArray
    reference: tuple[str, ...]
    starts_s: tuple[float, ...]


@dataclass(frozen=True)
class Score:
    """Errors are substitutions, insertions and deletions; times are of correct utterances."""

    n_tokens: int
    n_errors: int
    n_wrong_language: int
    n_utterances: int
    start_errors_s: tuple[float, ...]

    @property
    def token_error(self) -> float:
        return self.n_errors / self.n_tokens


def conditions() -> Iterator[Condition]:
    for words in ("base", "wide", "phrases"):
        for language in ("en", "zh"):
            for sound in SOUNDS:
                yield Condition(words, language, sound, use_itn=False, prompt="auto")
            yield Condition(words, language, "noisy", use_itn=True, prompt="auto")
            yield Condition(words, language, "noisy", use_itn=False, prompt=language)


def draw_samples(condition: Condition, espeak: Espeak, seed: int, n: int) -> list[Sample]:
    """Levels from −12 to +3 dB with clipping; noise, if any, as ``NOISE_DB`` has it."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(n):
        if condition.words == "phrases":
            script = draw_phrases(rng, condition.language)
        else:
            lexicon = BASE if condition.words == "base" else WIDE
            script = draw_script(rng, lexicon, condition.language)
        clean, starts = speak(rng, espeak, script)
        sound = clean * 10 ** (rng.uniform(-12, 3) / 20)
        if condition.sound in NOISE_DB:
            level_db = rng.uniform(*NOISE_DB[condition.sound])
            sound = sound + random_noise(rng, len(sound), level_db)
        spelled = spell(script.words, condition.language, use_itn=condition.use_itn)
        samples.append(
            Sample(
                np.clip(sound, -1, 1).astype(np.float32),
                tuple(piece for word in spelled for piece in word),
                tuple((starts / SAMPLE_RATE_HZ).tolist()),
            )
        )
    return samples


def score(opened: OpenModel, condition: Condition, samples: Sequence[Sample]) -> Score:
    names = pieces()
    n_tokens = n_errors = n_wrong_language = 0
    start_errors_s: list[float] = []
    for sample, hypothesis in zip(
        samples, _recognise(opened.engine, condition, samples), strict=True
    ):
        heard = [names[i] for i in hypothesis.token_ids.tolist() if names[i] != SPACE]
        errors = edit_distance(sample.reference, heard)
        n_tokens += len(sample.reference)
        n_errors += errors
        language = opened.vocabulary.tags(hypothesis.prompt_ids).language
        n_wrong_language += language != condition.language
        if errors == 0 and not condition.use_itn:
            heard_s = hypothesis.first_frames * FRAME_SAMPLES / SAMPLE_RATE_HZ
            start_errors_s += np.abs(heard_s - np.array(sample.starts_s)).tolist()
    return Score(n_tokens, n_errors, n_wrong_language, len(samples), tuple(start_errors_s))


def _recognise(
    engine: AnyEngine, condition: Condition, samples: Sequence[Sample]
) -> Iterator[Hypothesis]:
    options = DecodeOptions(condition.prompt, condition.use_itn)
    for start in range(0, len(samples), BATCH):
        part = samples[start : start + BATCH]
        yield from engine([Chunk(s.samples, 0, i, options) for i, s in enumerate(part)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO_FOLDER)
    parser.add_argument("--utterances", type=int, default=500, help="of each row")
    parser.add_argument("--quantize", choices=("off", "bf16", "int8"), default="off")
    arguments = parser.parse_args()
    opened = open_model(open_folder(arguments.model), EngineOptions("cpu", arguments.quantize))
    espeak = Espeak()
    print(f"held-out seed {HELD_OUT_SEED}, {arguments.utterances} utterances a row,", end=" ")
    print(f"{opened.engine.precision}; noise, dB of full scale: {NOISE_DB}")
    print("| words | language | sound | text | prompt | tokens | token error | wrong language |")
    print("|---|---|---|---|---|---|---|---|")
    scores: dict[Condition, Score] = {}
    for index, condition in enumerate(conditions()):
        samples = draw_samples(condition, espeak, HELD_OUT_SEED + index, arguments.utterances)
        result = scores[condition] = score(opened, condition, samples)
        print(
            f"| {condition.words} | {condition.language} |"
            f" {condition.sound} |"
            f" {'digits' if condition.use_itn else 'words'} | {condition.prompt} |"
            f" {result.n_tokens} | {result.token_error:.2%} |"
            f" {result.n_wrong_language} of {result.n_utterances} |",
            flush=True,
        )
    summarise(scores)


def summarise(scores: dict[Condition, Score]) -> None:
    for words in ("base", "wide", "phrases"):
        of_words = {c: score for c, score in scores.items() if c.words == words}
        plain = [score for condition, score in of_words.items() if condition.sound != "harsh"]
        harsh = [score for condition, score in of_words.items() if condition.sound == "harsh"]
        print(f"{words}: {pooled(plain)}; under harsh noise {pooled(harsh)}")
    starts_s = np.array([e for score in scores.values() for e in score.start_errors_s])
    if len(starts_s):
        median_ms, p95_ms = 1_000 * np.quantile(starts_s, (0.5, 0.95))
        print(f"word starts: median {median_ms:.0f} ms off, 95th percentile {p95_ms:.0f} ms")


def pooled(scores: Sequence[Score]) -> str:
    errors, tokens = sum(s.n_errors for s in scores), sum(s.n_tokens for s in scores)
    return f"{errors} of {tokens} tokens wrong, {errors / tokens:.2%}"


if __name__ == "__main__":
    main()
