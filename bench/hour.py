"""An hour in one file against its utterances one by one: what do the seams cost?

``python -m bench.hour [--model DIR] [--minutes N]``, or ``make hour-test``. Known utterances of the
demo model's base and wide lists are spoken by espeak-ng and repeated, once with pauses between them
and once butt-joined with none; the whole file and each utterance go the same way, from WAV bytes
through the pipeline.
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
N_UTTERANCES = 480
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


def make_utterances(n: int, words: Lexicon) -> list[FloatArray]:
    """English and Chinese in turn, without the silence at either end.

    What espeak-ng says depends a little on what it has said before: they are spoken in a process of
    their own, and so are the same each time.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_speak_utterances, n, words).result()


def _speak_utterances(n: int, words: Lexicon) -> list[FloatArray]:
    rng, espeak = np.random.default_rng(SEED), Espeak()
    utterances = []
    for index in range(n):
        samples, _ = speak(rng, espeak, draw_script(rng, words, "zh" if index % 2 else "en"))
        start = len(samples) - last_sample(samples[::-1])
        utterances.append(samples[start : last_sample(samples)])
    return utterances


def compare(
    pipeline: Pipeline, utterances: Sequence[FloatArray], duration_s: float, pauses: bool
) -> Comparison:
    """One file of ``duration_s`` that repeats the utterances in random order."""
    alone = [tokens_of(transcribe(pipeline, utterance).text) for utterance in utterances]
    rng = np.random.default_rng(SEED + pauses)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO_FOLDER)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--quantize", choices=("auto", "off", "bf16", "int8"), default="auto")
    arguments = parser.parse_args()
    settings = load_settings()
    opened = open_model(open_folder(arguments.model), EngineOptions("cpu", arguments.quantize))
    batcher = Batcher(opened.workers, batch_limits(settings, "cpu"))
    batcher.start()
    with ThreadPoolExecutor(2) as pool:
        policy = pipeline_policy(settings, opened.n_workers)
        pipeline = Pipeline(batcher, pool, opened.vocabulary, policy)
        for name, words in LISTS.items():
            utterances = make_utterances(N_UTTERANCES, words)
            for pauses in (True, False):
                result = compare(pipeline, utterances, 60 * arguments.minutes, pauses)
                print(
                    f"{name}, {result.duration_s / 60:.1f} minutes"
                    f" {'with' if pauses else 'without'} pauses: {result.n_errors} of"
                    f" {result.n_tokens} tokens differ from the utterances alone"
                    f" ({result.token_error:.2%}); {result.wall_s:.1f} s,"
                    f" RTFx {result.duration_s / result.wall_s:.0f},"
                    f" RSS {result.rss_growth_bytes / 2**20:+.0f} MiB"
                )
    batcher.stop()


if __name__ == "__main__":
    main()
