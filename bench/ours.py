"""The way from a benchmark to our engine."""

from __future__ import annotations

from pathlib import Path

from config import Settings
from sensevoice_service.loading import EngineOptions, OpenModel, open_model
from sensevoice_service.model_store import open_folder


def open_as_served(folder: Path, settings: Settings) -> OpenModel:
    """What the service loads with these settings, not warm yet. Raises ``ModelError``."""
    options = EngineOptions(
        device=settings.DEVICE,
        quantize=settings.QUANTIZE,
        n_workers=settings.MODEL_WORKERS,
        intra_op_threads=settings.INTRA_OP_THREADS,
    )
    return open_model(open_folder(folder), options)
