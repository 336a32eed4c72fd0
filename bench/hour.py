"""An hour in one file against its utterances one by one: what do the seams cost?

``python -m bench.hour [--model DIR] [--minutes N] [--draws N]``, or ``make hour-test``. Known
utterances of the demo model's base and wide lists are spoken by espeak-ng and repeated, with pauses
between them and butt-joined with none; the whole file and each utterance go the same way, from WAV
bytes through the pipeline. A word that is misheard beside another is so each time that the two
meet, so one hour says little: there are some, each of other utterances.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import multiprocessing
import time
import wave
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from api import batch_limits, pipeline_policy
from config import load_settings
from sensevoice_service.batcher import Batcher
from sensevoice_service.loading import EngineOptions, open_model
from sensevoice_service.model_store import open_folder
from sensevoice_service.pipeline import Pipeline
from sensevoice_service.types import SAMPLE_RATE_HZ, DecodeOptions, Transcript, Upload
from training.corpus import draw_script, last_sample, speak
from training.lexicon import BASE, WIDE, Lexicon
from training.scoring import edit_distance, tokens_of
from training.speech import Espeak, FloatArray
from training.train import DEMO_FOLDER

SEED = 8_000_000
N_UTTERANCES, N_DRAWS, SEEDS_APART = 480, 5, 100_000
LISTS = {"base": BASE, "wide": WIDE}
# The text of a sentence depends on what stands beside it where digits join: words do not.
OPTIONS = DecodeOptions(language="auto", use_itn=False)


@dataclass(frozen=True)
class Comparison:
    """Errors are against the texts of the utterances alone; RSS is that of this process."""

    n_tokens: int
    n_errors: int
    duration_s: float
    wall_s: float
    rss_growth_bytes: int

    @property
    def token_error(self) -> float:
        return self.n_errors / self.n_tokens


def make_utterances(n: int, words: Lexicon, seed: int) -> list[FloatArray]:
    """English and Chinese in turn, without the silence at either end.

    What espeak-ng says depends a little on what it has said before: they are spoken in a process of
    their own, and so are the same each time.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_speak_utterances, n, words, seed).result()


def _speak_utterances(n: int, words: Lexicon, seed: int) -> list[FloatArray]:
    rng, espeak = np.random.default_rng(seed), Espeak()
    utterances = []
    for index in range(n):
        samples, _ = speak(rng, espeak, draw_script(rng, words, "zh" if index % 2 else "en"))
        start = len(samples) - last_sample(samples[::-1])
        utterances.append(samples[start : last_sample(samples)])
    return utterances


def draws(n: int) -> range:
    """Seeds of which each gives other utterances in another order."""
    return range(SEED, SEED + n * SEEDS_APART, SEEDS_APART)


def compare(
    pipeline: Pipeline,
    utterances: Sequence[FloatArray],
    duration_s: float,
    pauses: bool,
    seed: int,
) -> Comparison:
    """One file of ``duration_s`` that repeats the utterances in random order."""
    alone = [tokens_of(transcribe(pipeline, utterance).text) for utterance in utterances]
    rng = np.random.default_rng(seed + pauses)
    parts: list[FloatArray] = []
    wanted: list[str] = []
    n_samples = 0
    while n_samples < duration_s * SAMPLE_RATE_HZ:
        index = int(rng.integers(len(utterances)))
        gap = np.zeros(int(rng.uniform(0.3, 1.5) * SAMPLE_RATE_HZ) if pauses else 0, np.float32)
        parts += [utterances[index], gap]
        wanted += alone[index]
        n_samples += len(utterances[index]) + len(gap)
    upload = wav_upload(parts)
    del parts
    rss_bytes, began_s = psutil.Process().memory_info().rss, time.perf_counter()
    transcript = asyncio.run(pipeline.transcribe(upload, OPTIONS)).transcript
    return Comparison(
        n_tokens=len(wanted),
        n_errors=edit_distance(wanted, tokens_of(transcript.text)),
        duration_s=transcript.duration_s,
        wall_s=time.perf_counter() - began_s,
        rss_growth_bytes=psutil.Process().memory_info().rss - rss_bytes,
    )


def transcribe(pipeline: Pipeline, samples: FloatArray) -> Transcript:
    return asyncio.run(pipeline.transcribe(wav_upload([samples]), OPTIONS)).transcript


def wav_upload(parts: Sequence[FloatArray]) -> Upload:
    """16-bit mono at 16 kHz, written a part at a time."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE_HZ)
        for part in parts:
            writer.writeframes(np.round(part * 32_767).astype("<i2").tobytes())
    return Upload(file, "hour.wav", file.tell())


def _named(pauses: bool) -> str:
    return "with pauses" if pauses else "without pauses"


def told(result: Comparison) -> str:
    return (
        f"{result.duration_s / 60:.1f} minutes: {result.n_errors} of {result.n_tokens} tokens"
        f" differ from the utterances alone ({result.token_error:.2%}); {result.wall_s:.1f} s,"
        f" RTFx {result.duration_s / result.wall_s:.0f},"
        f" RSS {result.rss_growth_bytes / 2**20:+.0f} MiB"
    )


def total_error(results: Sequence[Comparison]) -> float:
    return sum(one.n_errors for one in results) / sum(one.n_tokens for one in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO_FOLDER)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--draws", type=int, default=N_DRAWS, help="each says other utterances")
    parser.add_argument("--quantize", choices=("auto", "off", "bf16", "int8"), default="auto")
    arguments = parser.parse_args()
    settings, duration_s = load_settings(), 60 * arguments.minutes
    opened = open_model(open_folder(arguments.model), EngineOptions("cpu", arguments.quantize))
    batcher = Batcher(opened.workers, batch_limits(settings, "cpu"))
    batcher.start()
    with ThreadPoolExecutor(2) as pool:
        policy = pipeline_policy(settings, opened.n_workers)
        pipeline = Pipeline(batcher, pool, opened.vocabulary, policy)
        for name, words in LISTS.items():
            results: dict[bool, list[Comparison]] = {True: [], False: []}
            for seed in draws(arguments.draws):
                utterances = make_utterances(N_UTTERANCES, words, seed)
                for pauses, found in results.items():
                    found.append(compare(pipeline, utterances, duration_s, pauses, seed))
                    print(f"{name} {_named(pauses)}, {told(found[-1])}", flush=True)
            for pauses, found in results.items():
                print(f"{name} {_named(pauses)}, in all {total_error(found):.2%}", flush=True)
    batcher.stop()


if __name__ == "__main__":
    main()
