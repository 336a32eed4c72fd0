"""What every participant hears: the project's samples, varied and repeated, always the same."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sensevoice_service.types import SAMPLE_RATE_HZ

Samples = NDArray[np.float32]

SAMPLES_FOLDER = Path(__file__).resolve().parents[2] / "samples"
SEED = 6_000_000
NOISE = 10 ** (-60 / 20)


def read_voices() -> list[Samples]:
    return [_read_wav(path) for path in sorted(SAMPLES_FOLDER.glob("*.wav"))]


def speech(voices: Sequence[Samples], duration_s: float, seed: int) -> Samples:
    """Voices in turn, each at a pace and a level of its own, with pauses of 0.2 to 0.8 s and noise
    at −60 dB; exactly ``duration_s`` long."""
    rng = np.random.default_rng(SEED + seed)
    n_samples = round(duration_s * SAMPLE_RATE_HZ)
    parts: list[Samples] = []
    n_filled, turn = 0, seed
    while n_filled < n_samples:
        voice = voices[turn % len(voices)]
        steps = np.arange(0, len(voice) - 1, rng.uniform(0.9, 1.1))
        spoken = np.interp(steps, np.arange(len(voice)), voice) * rng.uniform(0.35, 0.9)
        pause = np.zeros(int(rng.uniform(0.2, 0.8) * SAMPLE_RATE_HZ))
        parts.append(np.concatenate((spoken, pause)).astype(np.float32))
        n_filled += len(parts[-1])
        turn += 1
    samples = np.concatenate(parts)[:n_samples]
    return (samples + rng.normal(0, NOISE, n_samples)).astype(np.float32)


def write_wavs(folder: Path, n: int, duration_s: float) -> list[Path]:
    """``n`` files in the folder, no two alike: 16-bit mono at 16 kHz."""
    voices = read_voices()
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:03}.wav" for index in range(n)]
    for index, path in enumerate(paths):
        samples = np.clip(speech(voices, duration_s, index), -1, 1)
        with wave.open(str(path), "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(SAMPLE_RATE_HZ)
            writer.writeframes(np.round(samples * 32_767).astype("<i2").tobytes())
    return paths


def _read_wav(path: Path) -> Samples:
    with wave.open(str(path), "rb") as reader:
        assert (reader.getnchannels(), reader.getsampwidth()) == (1, 2), path
        assert reader.getframerate() == SAMPLE_RATE_HZ, path
        content = reader.readframes(reader.getnframes())
    return (np.frombuffer(content, "<i2") / 32_768).astype(np.float32)
