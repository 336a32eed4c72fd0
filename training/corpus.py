"""Utterances for the demo model: drawn, spoken, soiled, and kept as fbank frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sensevoice_service.frontend import Cmvn, Frontend
from sensevoice_service.types import FBANK_SHIFT_SAMPLES, FBANK_WINDOW_SAMPLES
from training.lexicon import BASE, WIDE, Language, Lexicon, phrases
from training.speech import Espeak, FloatArray, random_noise, random_voice, soil

MAX_WORDS = 10
DOUBLED = 0.25  # of the training's random sequences
MAX_TAKE_FRAMES = 2_300  # 23 s: one more utterance still ends well before 30 s
SEPARATORS = {"en": (" ", " ", " ", " ", ", "), "zh": ("", "", "", " ", ", ")}


@dataclass(frozen=True, eq=False)
class Utterance:
    """Speech as fbank frames, with its words and where each starts.

    ``frames`` is float16 ``(n_frames, 80)``, 10 ms apart; ``starts`` is ``(n_words,)``, ``begin``
    and ``end`` are where the first sound is and the last, in such frames. Without words it is only
    noise.
    """

    words: tuple[str, ...]
    language: Language
    frames: NDArray[np.float16]
    starts: NDArray[np.int64]
    begin: int
    end: int


@dataclass(frozen=True)
class Joining:
    """Shares of the takes that have several utterances, and of those without their silences."""

    joined: float
    trimmed: float


@dataclass(frozen=True)
class Script:
    """What a spoken utterance says."""

    words: tuple[str, ...]
    language: Language


def draw_script(rng: np.random.Generator, lexicon: Lexicon, language: Language) -> Script:
    """Any sequence of 1 to 10 words."""
    n_words = int(rng.integers(1, MAX_WORDS + 1))
    return Script(tuple(rng.choice(lexicon.of(language), n_words).tolist()), language)


def draw_phrases(rng: np.random.Generator, language: Language) -> Script:
    """Everyday phrases of the wide list with random words between them."""
    known, words = phrases(language), list[str]()
    for _ in range(int(rng.integers(1, 5))):
        if rng.random() < 0.7:
            words += known[rng.integers(len(known))]
        else:
            words += draw_script(rng, WIDE, language).words[:2]
    return Script(tuple(words[:MAX_WORDS]), language)


def draw_training_script(rng: np.random.Generator) -> Script:
    language: Language = "en" if rng.random() < 0.55 else "zh"
    kind = rng.random()
    if kind < 0.12:
        return draw_phrases(rng, language)
    script = draw_script(rng, BASE if kind < 0.47 else WIDE, language)
    return _say_twice(rng, script) if rng.random() < DOUBLED else script


def _say_twice(rng: np.random.Generator, script: Script) -> Script:
    """With one of its words two times running: vowels that meet are hard to count."""
    at = int(rng.integers(len(script.words)))
    words = (*script.words[: at + 1], *script.words[at:])
    return replace(script, words=words[:MAX_WORDS])


def speak(
    rng: np.random.Generator, espeak: Espeak, script: Script
) -> tuple[FloatArray, NDArray[np.int64]]:
    """Clean samples and the start sample of each word; a voice, a rate and a pitch by chance."""
    separator = str(rng.choice(SEPARATORS[script.language]))
    speech = espeak.speak(script.words, random_voice(rng, script.language), separator)
    return speech.samples, speech.starts


def last_sample(samples: FloatArray) -> int:
    """Where the speech ends, before any noise: the last sample above −46 dB of its peak."""
    loud = np.flatnonzero(np.abs(samples) > 0.005 * np.abs(samples).max())
    return int(loud[-1]) + 1 if len(loud) else len(samples)


def synthesize(seed: int, n_utterances: int) -> list[Utterance]:
    """Speak and soil ``n_utterances``; the same seed gives the same utterances."""
    torch.set_num_threads(1)
    rng, espeak = np.random.default_rng(seed), Espeak()
    frontend = Frontend(Cmvn(torch.zeros(560), torch.ones(560)), torch.device("cpu"))
    utterances = []
    for _ in range(n_utterances):
        script = draw_training_script(rng)
        samples, starts = speak(rng, espeak, script)
        begin, end = len(samples) - last_sample(samples[::-1]), last_sample(samples)
        dirty = soil(rng, samples)
        frames = frontend.fbank([dirty]).numpy().astype(np.float16)
        shift = FBANK_SHIFT_SAMPLES
        utterances.append(
            Utterance(
                script.words,
                script.language,
                frames,
                starts // shift,
                begin // shift,
                end // shift,
            )
        )
    return utterances


def make_noises(seed: int, n_noises: int) -> list[Utterance]:
    """Pauses without speech, 0.1 to 3 s: digital silence, noise, hum and DC."""
    rng = np.random.default_rng(seed)
    frontend = Frontend(Cmvn(torch.zeros(560), torch.ones(560)), torch.device("cpu"))
    noises = []
    for _ in range(n_noises):
        n_samples = FBANK_WINDOW_SAMPLES + int(rng.uniform(0.1, 3.0) * 16_000)
        kind = rng.random()
        samples = np.zeros(n_samples, np.float32)
        if kind > 0.25:
            samples = random_noise(rng, n_samples, rng.uniform(-85, -25))
        if kind > 0.85:
            hum = np.sin(np.arange(n_samples) * 2 * np.pi * rng.uniform(40, 3_000) / 16_000)
            samples = samples + (hum * 10 ** (rng.uniform(-60, -10) / 20)).astype(np.float32)
        frames = frontend.fbank([np.clip(samples, -1, 1)]).numpy().astype(np.float16)
        noises.append(Utterance((), "en", frames, np.zeros(0, np.int64), 0, 0))
    return noises


def make_corpus(seed: int, n_utterances: int, n_processes: int) -> list[Utterance]:
    """``synthesize`` in parallel, in shares of 500 with a seed each, to be repeatable."""
    shares = [min(500, n_utterances - first) for first in range(0, n_utterances, 500)]
    seeds = [seed + i for i in range(len(shares))]
    with ProcessPoolExecutor(n_processes) as pool:
        return [utterance for share in pool.map(synthesize, seeds, shares) for utterance in share]


def compute_cmvn(utterances: Sequence[Utterance]) -> Cmvn:
    """Mean and scale of the 80 bands over a sample of the corpus, repeated for the 7 stacked."""
    frames = np.concatenate([u.frames for u in utterances[:3_000]]).astype(np.float32)
    shift = torch.from_numpy(-frames.mean(axis=0)).repeat(7)
    scale = torch.from_numpy(1 / frames.std(axis=0)).repeat(7)
    return Cmvn(shift, scale)


def write_cmvn(cmvn: Cmvn) -> str:
    """The text form of ``am.mvn``: Kaldi's nnet1 components, as FunASR reads them."""
    size = len(cmvn.shift)

    def component(tag: str, values: Tensor) -> str:
        numbers = " ".join(f"{value:.6g}" for value in values.tolist())
        return f"<{tag}> {size} {size} \n<LearnRateCoef> 0 [ {numbers} ]\n"

    return (
        f"<Nnet> \n<Splice> {size} {size}\n[ 0 ]\n"
        f"{component('AddShift', cmvn.shift)}{component('Rescale', cmvn.scale)}</Nnet> \n"
    )


def takes(
    rng: np.random.Generator,
    corpus: Sequence[Utterance],
    noises: Sequence[Utterance],
    joining: Joining,
) -> Iterator[list[Utterance]]:
    """One pass over the corpus in random order, as takes: one utterance, or several and pauses.

    Takes of several, up to 30 s, teach the model whole chunks of long files.
    """

    def pause() -> Utterance:
        return noises[int(rng.integers(len(noises)))]

    take: list[Utterance] = []
    wanted = 0
    for index in rng.permutation(len(corpus)).tolist():
        if rng.random() < (0.3 if wanted == 0 else 0.6):
            take.append(pause())
        utterance = corpus[index]
        take.append(trim(utterance) if rng.random() < joining.trimmed else utterance)
        wanted = wanted - 1 if wanted else _draw_joined(rng, joining)
        n_frames = sum(len(utterance.frames) for utterance in take)
        if wanted == 0 or n_frames > MAX_TAKE_FRAMES:
            yield take
            take, wanted = [], 0
        if rng.random() < 0.02:
            yield [pause() for _ in range(int(rng.integers(1, 5)))]


def _draw_joined(rng: np.random.Generator, joining: Joining) -> int:
    """How many more utterances follow the first of a take."""
    return 0 if rng.random() >= joining.joined else int(rng.integers(1, 9))


def trim(utterance: Utterance) -> Utterance:
    """Without the silence at either end, as where a long file is cut or speakers take turns."""
    begin = utterance.begin
    return replace(
        utterance,
        frames=utterance.frames[begin : utterance.end + 1],
        starts=np.maximum(utterance.starts - begin, 0),
        begin=0,
        end=utterance.end - begin,
    )
