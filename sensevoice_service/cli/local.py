"""Recognition in this process, with the parts and the settings of the service."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from sensevoice_service.cli.bodies import Heard
from sensevoice_service.cores import files_at_once
from sensevoice_service.formats import model_body
from sensevoice_service.subtitles import SubtitleRules
from sensevoice_service.types import (
    FRAME_SAMPLES,
    PROMPT_FRAMES,
    SAMPLE_RATE_HZ,
    DecodeOptions,
    Upload,
)

if TYPE_CHECKING:
    from config import Settings
    from sensevoice_service.service import LoadedModel


class LocalRecogniser:
    """May be called from many threads: the chunks of all files share the batches."""

    def __init__(self, settings: Settings, options: DecodeOptions) -> None:
        """Load and warm the model; raises ``ModelError``."""
        # The application knows how its parts go together, and takes a moment to import.
        from api import decode_threads, load_model

        self._options = options
        self._rules = SubtitleRules.of(settings)
        self._pool = ThreadPoolExecutor(decode_threads(settings), thread_name_prefix="decode")
        self._loaded = load_model(settings, self._pool, threading.Event())
        self._loaded.batcher.start()
        info = self._loaded.info
        self.description = f"{info.name} on {info.device} in {info.precision}"
        self.n_jobs = jobs_for(self._loaded, settings)

    def __call__(self, path: Path) -> Heard:
        """Raises ``ServiceError`` and ``OSError``."""
        with path.open("rb") as file:
            upload = Upload(file, path.name, os.fstat(file.fileno()).st_size)
            result = asyncio.run(self._loaded.pipeline.transcribe(upload, self._options))
        return Heard(result.transcript, model_body(self._loaded.info), self._rules)

    def hearing_s(self) -> float:
        """Audio that has gone through the model, of finished files and others."""
        stats = self._loaded.batcher.stats()
        n_frames = stats.frames - PROMPT_FRAMES * stats.items
        return n_frames * FRAME_SAMPLES / SAMPLE_RATE_HZ

    def close(self) -> None:
        self._loaded.batcher.stop()
        self._loaded.close()
        self._pool.shutdown()


def jobs_for(loaded: LoadedModel, settings: Settings) -> int:
    """Files at once, so that batches fill where each file is a single chunk.

    On a GPU one batch runs while the next gathers; on a CPU a chunk runs on each core.
    """
    if loaded.info.device == "cpu":
        return files_at_once()
    return 2 * settings.BATCH_SIZE
