"""The running service: loads in the background, transcribes, knows its state, stops."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sensevoice_service.batcher import Batcher, BatchStats, Completion
from sensevoice_service.pipeline import Pipeline, PipelineResult
from sensevoice_service.status import ModelInfo, Status
from sensevoice_service.types import (
    SAMPLE_RATE_HZ,
    Chunk,
    DecodeOptions,
    InferenceFailed,
    ModelError,
    NotReady,
    Progress,
    Upload,
)

_log = logging.getLogger(__name__)

# One hostile file may make the model fail; what fails this often, and on silence, is the engine.
MAX_FAILURES_IN_A_ROW = 3


@dataclass(frozen=True)
class LoadedModel:
    """What loading gives: a warm model behind a queue that has not been started."""

    info: ModelInfo
    batcher: Batcher
    pipeline: Pipeline
    gpu_memory: Callable[[], dict[str, Any] | None]
    close: Callable[[], None] = lambda: None


class Service:
    """The routes' ``Pipeline`` and ``status.ServiceState``; ``load`` runs in its own thread.

    ``on_failure`` is called, from that thread, if the model cannot be had.
    """

    def __init__(
        self, load: Callable[[threading.Event], LoadedModel], on_failure: Callable[[], None]
    ) -> None:
        self._load = load
        self._on_failure = on_failure
        self._stopping = threading.Event()
        self._loaded: LoadedModel | None = None
        self._proving = threading.Lock()
        self.failure: str | None = None

    def start(self) -> None:
        threading.Thread(target=self._run_load, name="load-model", daemon=True).start()

    def begin_stop(self) -> None:
        """Be ``stopping`` from now on; work at hand goes on, a load under way is abandoned."""
        self._stopping.set()

    def stop(self, timeout_s: float) -> None:
        """Blocks for up to ``timeout_s`` while batches finish; what did not is refused."""
        self.begin_stop()
        if self._loaded is not None:
            self._loaded.batcher.stop(timeout_s=timeout_s)
            self._loaded.close()

    @property
    def status(self) -> Status:
        if self._stopping.is_set():
            return "stopping"
        if self.failure is not None:
            return "failed"
        if self._loaded is None:
            return "loading"
        return "ready" if self._loaded.batcher.healthy else "failed"

    @property
    def model(self) -> ModelInfo | None:
        return self._loaded.info if self._loaded else None

    async def transcribe(
        self,
        upload: Upload,
        options: DecodeOptions,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> PipelineResult:
        if self._loaded is None:
            raise NotReady("the model is not loaded")
        try:
            return await self._loaded.pipeline.transcribe(upload, options, on_progress)
        except InferenceFailed:
            self._doubt_engine(self._loaded.batcher)
            raise

    def cpu_backlog_s(self) -> float:
        """How long the model is busy with what is queued; 0 where it is not on the CPU."""
        if self._loaded is None or self._loaded.info.device != "cpu":
            return 0.0
        return self._loaded.batcher.backlog_s()

    def batch_stats(self) -> BatchStats:
        return self._loaded.batcher.stats() if self._loaded else BatchStats()

    def gpu_memory(self) -> dict[str, Any] | None:
        return self._loaded.gpu_memory() if self._loaded else None

    def _run_load(self) -> None:
        try:
            loaded = self._load(self._stopping)
            loaded.batcher.start(partial(self._fail, "an inference thread has ended"))
            self._loaded = loaded
            if self._stopping.is_set():  # meanwhile: ``stop`` may have found nothing to stop
                loaded.batcher.stop(timeout_s=0)
                loaded.close()
        except ModelError as error:
            self._fail(str(error))
        except Exception as error:
            _log.exception("the model could not be loaded")
            self._fail(f"the model could not be loaded: {error!r}")

    def _doubt_engine(self, batcher: Batcher) -> None:
        """After failures in a row, let the engine hear a second of silence; give up if it cannot.

        The process ends then: an engine that a GPU's fault has broken works again in a new one.
        """
        n_failures = batcher.stats().consecutive_failures
        if n_failures < MAX_FAILURES_IN_A_ROW or not self._proving.acquire(blocking=False):
            return

        def judge(answer: Future[Completion]) -> None:
            self._proving.release()
            if answer.cancelled() or not isinstance(answer.exception(), InferenceFailed):
                return
            self._fail(f"the model failed {n_failures} times in a row, and on silence too")

        silence = np.zeros(SAMPLE_RATE_HZ, np.float32)
        try:
            proof = batcher.submit(Chunk(silence, 0, 0, DecodeOptions()))
        except NotReady:
            self._proving.release()
            return
        proof.add_done_callback(judge)

    def _fail(self, reason: str) -> None:
        if self._stopping.is_set():
            return
        _log.error("%s", reason)
        self.failure = reason
        self._on_failure()
