"""A model that takes a fixed time a chunk and no processor: ``MODEL=fixed:0.2`` takes 0.2 s.

One chunk at a time, so that a copy of the service does 1 / 0.2 chunks a second wherever it runs.
The name of the model tells which process it is in.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Executor

import api
from config import Settings
from sensevoice_service.batcher import Batcher
from sensevoice_service.pipeline import Pipeline
from sensevoice_service.service import LoadedModel
from sensevoice_service.status import ModelInfo
from sensevoice_service.types import Chunk, Hypothesis
from tests.echo import ONE_BY_ONE, VOCABULARY, recognise

NAME = "copy-"


def load(settings: Settings, pool: Executor, stop: threading.Event) -> LoadedModel:
    chunk_s = float(settings.MODEL.removeprefix("fixed:"))

    def engine(chunks: Sequence[Chunk]) -> list[Hypothesis]:
        stop.wait(chunk_s)
        return recognise(chunks)

    batcher = Batcher([engine], ONE_BY_ONE)
    policy = api.pipeline_policy(settings)
    decode, close = api.start_decoding(settings)
    pipeline = Pipeline(batcher, pool, VOCABULARY, policy, decode)
    info = ModelInfo(f"{NAME}{os.getpid()}", False, "cpu", "fp32", "/models/fixed", 1)
    return LoadedModel(info, batcher, pipeline, lambda: None, close)


def pid_of(name: str) -> int:
    return int(name.removeprefix(NAME))
