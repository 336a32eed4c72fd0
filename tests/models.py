"""Loaded models for the tests, and what they are made to hear."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sensevoice_service.engine import Engine, EngineFiles, TorchPrecision, load_engine
from sensevoice_service.model_store import ModelFolder, open_folder
from sensevoice_service.tags import Vocabulary
from sensevoice_service.tokenizer import load_vocabulary
from sensevoice_service.types import SAMPLE_RATE_HZ, Chunk, DecodeOptions

Samples = NDArray[np.float32]
CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Model:
    """A model folder, loaded as the service does it, in fp32 on the CPU."""

    folder: ModelFolder
    vocabulary: Vocabulary
    engine: Engine
    is_full_size: bool = False


def load_model(path: Path, *, is_full_size: bool = False) -> Model:
    torch.set_num_threads(1)  # two gain little here, and lose a lot where a core is busy
    folder = open_folder(path)
    vocabulary = load_vocabulary(folder.bpe_model)
    return Model(folder, vocabulary, engine_of(folder, vocabulary.size), is_full_size)


def engine_of(folder: ModelFolder, vocab_size: int, precision: TorchPrecision = "fp32") -> Engine:
    return load_engine(files_of(folder), vocab_size, CPU, precision)


def files_of(folder: ModelFolder, checkpoint: Path | None = None) -> EngineFiles:
    return EngineFiles(folder.config_yaml, checkpoint or folder.checkpoint, folder.cmvn)


def chunk_of(samples: Samples, language: str = "auto", use_itn: bool = True) -> Chunk:
    return Chunk(samples, 0, 0, DecodeOptions(language, use_itn))


def noise(n_samples: int, seed: int = 0, level: float = 0.1) -> Samples:
    return np.random.default_rng(seed).normal(0, level, n_samples).astype(np.float32)


def tone(n_samples: int, frequency_hz: float = 440.0) -> Samples:
    phase = 2 * np.pi * frequency_hz * np.arange(n_samples) / SAMPLE_RATE_HZ
    return (0.5 * np.sin(phase)).astype(np.float32)
