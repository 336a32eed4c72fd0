"""``python -m bench.fake_engine``: the service with a model that takes a fixed time and hears "a".

What is left is the service's own work. ``FAKE_ENGINE_MS`` is what a chunk takes, in which as many
words as ``FAKE_ENGINE_WORDS`` are heard, or one; there are as many workers as ``MODEL_WORKERS``, or
two, and each does one chunk at a time without using a processor.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import NoReturn

import numpy as np

import api
from config import Settings, load_settings
from sensevoice_service.batcher import Batcher, BatchLimits
from sensevoice_service.pipeline import Pipeline
from sensevoice_service.service import LoadedModel
from sensevoice_service.status import ModelInfo
from sensevoice_service.tags import Vocabulary
from sensevoice_service.types import Chunk, Hypothesis

DEFAULT_MS, DEFAULT_WORKERS = 50.0, 2
ONE_BY_ONE = BatchLimits(max_items=1, max_padded_frames=2_000, max_wait_s=0.0)


def load(settings: Settings, pool: Executor, _stop: threading.Event) -> LoadedModel:
    chunk_s = float(os.environ.get("FAKE_ENGINE_MS", DEFAULT_MS)) / 1_000
    n_words = int(os.environ.get("FAKE_ENGINE_WORDS", 1))

    def hear(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        time.sleep(chunk_s)
        frames, words = np.arange(n_words, dtype=np.int32), np.ones(n_words, np.int32)
        return [Hypothesis(words, frames, frames, ()) for _ in chunks]

    vocabulary = Vocabulary.from_pieces(["<blank>", "▁a"], lambda ids: " ".join("a" for _ in ids))
    batcher = Batcher([hear] * (settings.MODEL_WORKERS or DEFAULT_WORKERS), ONE_BY_ONE)
    decode, close = api.start_decoding(settings)
    return LoadedModel(
        info=ModelInfo("fake", True, "cpu", "none", "none", 1),
        batcher=batcher,
        pipeline=Pipeline(batcher, pool, vocabulary, api.pipeline_policy(settings), decode),
        gpu_memory=lambda: None,
        close=close,
    )


def main() -> NoReturn:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    api.end_process(api.serve(load_settings(), load))


if __name__ == "__main__":
    main()
