"""Whether an engine hears what the model in fp32 hears."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from sensevoice_service.encoder_inputs import Features
from sensevoice_service.engine import Precision
from sensevoice_service.frontend import FeatureBatch, Frontend
from sensevoice_service.types import Chunk, ModelError

# What int8 costs is a few hundredths; kernels that overflow leave nothing of the direction.
LEAST_LIKENESS = 0.9


class Comparable(Protocol):
    """An engine whose hidden states can be read."""

    frontend: Frontend
    device: torch.device
    precision: Precision

    def hidden(self, batch: FeatureBatch) -> list[Features]: ...


def likeness(reference: Sequence[Features], found: Sequence[Features]) -> float:
    """Mean cosine between frames of two engines' hidden states, 1 where they are the same."""
    a, b = np.concatenate(reference), np.concatenate(found)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean(np.sum(a * b, axis=1) / np.maximum(norms, 1e-9)))


def require_likeness(reference: Comparable, engine: Comparable, chunk: Chunk) -> float:
    """Compare two engines on one utterance; raises ``ModelError`` where they differ."""
    wanted, heard = (one.hidden(one.frontend([chunk])) for one in (reference, engine))
    found = likeness(wanted, heard)
    if not found >= LEAST_LIKENESS:
        place = "this CPU" if engine.device.type == "cpu" else engine.device
        way_out = "DEVICE=cpu" if engine.precision == "fp32" else "QUANTIZE=off"
        raise ModelError(
            f"{engine.precision} on {place} does not agree with fp32 (cosine {found:.2f}):"
            f" set {way_out}"
        )
    return found
