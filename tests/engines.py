"""What the tests of engines on a CPU give them, and how they compare what was heard."""

from __future__ import annotations

import numpy as np

from sensevoice_service.frontend import FeatureBatch
from sensevoice_service.loading import check_chunk
from sensevoice_service.types import Chunk, Hypothesis
from tests.models import chunk_of, noise


def some_chunks() -> list[Chunk]:
    spoken = check_chunk().samples
    return [
        chunk_of(spoken),
        chunk_of(spoken[: len(spoken) // 2], use_itn=False),
        chunk_of(noise(16_000)),
        chunk_of(spoken[:100], language="zh"),
    ]


def same(a: Hypothesis, b: Hypothesis) -> bool:
    arrays = ("token_ids", "first_frames", "last_frames")
    return a.prompt_ids == b.prompt_ids and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays
    )


def row_of(batch: FeatureBatch, index: int) -> FeatureBatch:
    """With the same features: those of the front end depend on the batch in their last bit."""
    row = slice(index, index + 1)
    return FeatureBatch(
        features=batch.features[row, : batch.lengths[index]],
        n_frames=None,
        language_rows=batch.language_rows[row],
        textnorm_rows=batch.textnorm_rows[row],
        lengths=batch.lengths[row],
    )
