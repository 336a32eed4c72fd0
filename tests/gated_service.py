"""``python -m tests.gated_service``: the service, but its model does nothing until it is told to.

A line on stdin tells it: ``load`` lets the model be loaded, ``go`` lets one batch through, in which
the n-th chunk of a file says ``wn``, and ``break`` makes all of them fail. It logs ``a batch is
in`` for each batch. With the argument ``deaf`` decoding hangs for ever.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import Executor
from typing import NoReturn

import api
from config import Settings, load_settings
from sensevoice_service.audio import AudioLimits, decode
from sensevoice_service.batcher import Batcher
from sensevoice_service.pipeline import Pipeline
from sensevoice_service.service import LoadedModel
from sensevoice_service.status import ModelInfo
from sensevoice_service.types import Block, Chunk, Hypothesis, ModelError, Upload
from tests.echo import ONE_BY_ONE, VOCABULARY, recognise

_log = logging.getLogger("sensevoice_service.gated")


class Orders:
    """What stdin has said so far."""

    def __init__(self) -> None:
        self.load = threading.Event()
        self._go = threading.Semaphore(0)
        self._is_broken = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            if line.strip() == "load":
                self.load.set()
            else:
                self._is_broken = line.strip() == "break"
                self._go.release()

    def engine(self, chunks: Sequence[Chunk]) -> list[Hypothesis]:
        _log.info("a batch is in")
        if not self._is_broken:
            self._go.acquire()
        if self._is_broken:
            raise RuntimeError("the device is on fire")
        return recognise(chunks)


def hang(_upload: Upload, _limits: AudioLimits, /) -> Generator[Block, None, None]:
    _log.info("decoding hangs")
    threading.Event().wait()
    yield from ()


def main() -> NoReturn:
    orders = Orders()

    def load(settings: Settings, pool: Executor, stop: threading.Event) -> LoadedModel:
        while not orders.load.wait(0.05):
            if stop.is_set():
                raise ModelError("stopped")
        batcher = Batcher([orders.engine], ONE_BY_ONE)
        policy = api.pipeline_policy(settings)
        decoder = hang if "deaf" in sys.argv else decode
        pipeline = Pipeline(batcher, pool, VOCABULARY, policy, decoder)
        info = ModelInfo("gated", False, "cpu", "fp32", "/models/gated", 1)
        return LoadedModel(info, batcher, pipeline, lambda: None)

    api.end_process(api.serve(load_settings(), load))


if __name__ == "__main__":
    main()
