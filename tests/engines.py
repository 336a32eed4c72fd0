"""What the tests of engines on a CPU give them, and how they compare what was heard."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from sensevoice_service.check_utterance import check_chunk
from sensevoice_service.cpu_flags import read_cpu_flags
from sensevoice_service.ctc import best_path
from sensevoice_service.frontend import FeatureBatch
from sensevoice_service.native_library import (
    PLAIN,
    TARGETS,
    Target,
    load_library,
)
from sensevoice_service.steering import Legible
from sensevoice_service.types import Chunk, Hypothesis
from tests.models import Model, chunk_of, noise

NATIVE_TARGETS = (PLAIN, PLAIN.at("fp32"), PLAIN.at("bf16"), *TARGETS)


def name_of(target: Target) -> str:
    return f"{target.name}, {target.precision}"


def native_library(target: Target) -> ctypes.CDLL:
    """Skips the test where this CPU cannot run it."""
    if not target.suits(read_cpu_flags()):
        pytest.skip(f"this CPU has no {target.name}")
    return load_library(target)


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


def require_logits_of_the_arg_max(engine: Legible, n_tokens: int, chunks: list[Chunk]) -> None:
    read = engine.read_logits(
        chunks, lambda row, logits: (row, logits.shape, logits.argmax(dim=-1))
    )
    assert [row for row, _, _ in read] == list(range(len(chunks)))
    for heard, chunk, (_, shape, ids) in zip(engine(chunks), chunks, read, strict=True):
        assert shape == (chunk.n_frames, n_tokens)
        assert same(heard, best_path(ids.to(torch.int32).numpy()))


def require_that_threads_share(engine: Legible, chunks: list[Chunk]) -> None:
    wanted = engine(chunks)
    with ThreadPoolExecutor(4) as pool:
        for heard in pool.map(engine, [chunks] * 8):
            assert all(same(a, b) for a, b in zip(heard, wanted, strict=True))


def require_that_a_long_chunk_is_heard(engine: Legible, demo: Model) -> None:
    long = chunk_of(np.tile(check_chunk().samples, 20))
    heard, wanted = engine([long])[0], demo.engine([long])[0]
    assert heard.last_frames[-1] > 512
    agreeing = len(set(heard.token_ids.tolist()) & set(wanted.token_ids.tolist()))
    assert agreeing >= len(set(wanted.token_ids.tolist())) - 1


def features_of(lengths: list[int], size: int, seed: int = 0) -> FeatureBatch:
    values = torch.randn(
        len(lengths), max(lengths), size, generator=torch.Generator().manual_seed(seed)
    )
    for row, length in enumerate(lengths):
        values[row, length:] = 0.0
    rows = torch.zeros(len(lengths), dtype=torch.int64)
    return FeatureBatch(values, torch.tensor(lengths), rows, rows, tuple(lengths))
