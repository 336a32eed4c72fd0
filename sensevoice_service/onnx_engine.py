"""The model on a CPU: onnxruntime, a chunk at a time, one thread a chunk while there are several.

Two sessions hold the same weights. The narrow one gives each of several callers its share of the
cores, without a word between threads; the wide one gives all cores to a caller that is alone, and
will be: threads of both at once get into each other's way.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

# From 1.29 on it tells its makers about each model, keeping a database for that, unless told not to
# before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from sensevoice_service.ctc import best_path
from sensevoice_service.encoder import (
    EMOTION_ROW,
    EVENT_ROW,
    EncoderConfig,
    SenseVoice,
    sinusoidal_positions,
)
from sensevoice_service.engine import Precision
from sensevoice_service.frontend import FeatureBatch, Frontend
from sensevoice_service.onnx_graph import Int8, build_graph
from sensevoice_service.types import (
    SAMPLE_RATE_HZ,
    Chunk,
    DecodeOptions,
    Hypothesis,
    ModelError,
)

# onnxruntime's fused form of a sum and a norm is an order of magnitude slower than the two.
SLOW_FUSIONS = ["SkipLayerNormFusion"]
# What int8 costs is a few hundredths; kernels that overflow leave nothing of the direction.
LEAST_LIKENESS = 0.9

Features = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True)
class Threads:
    """Cores for each of several callers, and for one that is alone."""

    narrow: int
    wide: int


class OnnxEngine:
    """Chunks in, hypotheses out; call it from as many threads as there are narrow shares.

    Each chunk runs by itself, so that no neighbour in a batch can touch its activations' scale.
    """

    def __init__(
        self, model: SenseVoice, frontend: Frontend, int8: Int8 | None, threads: Threads
    ) -> None:
        self.frontend = frontend
        self.precision: Precision = "fp32" if int8 is None else "int8"
        self.device = frontend.device
        self.n_parameters = sum(parameter.numel() for parameter in model.parameters())
        self._n_tokens = model.config.vocab_size
        self._inputs = _Inputs(model)
        weights = {name: value.numpy() for name, value in model.state_dict().items()}
        graph = build_graph(weights, model.config, int8)
        self._wide = open_session(graph, threads.wide)
        same = threads.narrow == threads.wide
        self._narrow = self._wide if same else open_session(graph, threads.narrow)
        self._n_shares = max(1, threads.wide // threads.narrow)
        self._lock = threading.Lock()
        self._n_callers = 0

    def __call__(self, chunks: Sequence[Chunk]) -> list[Hypothesis]:
        return self.infer(self.frontend(chunks))

    def infer(self, batch: FeatureBatch) -> list[Hypothesis]:
        """Greedy CTC of every row."""
        rows = []
        for x in self._inputs.rows(batch):
            with self._session(batch) as session:
                rows.append(session.run(["ids"], {"x": x})[0][0].astype(np.int32))
        return [best_path(row) for row in rows]

    @torch.inference_mode()
    def read_logits(self, chunks: Sequence[Chunk], read: Callable[[int, Tensor], T]) -> list[T]:
        """As ``Engine.read_logits``: those of which the arg-max is taken, in int8 as well."""
        batch = self.frontend(chunks)
        found = []
        for row, x in enumerate(self._inputs.rows(batch)):
            with self._session(batch) as session:
                logits = session.run(["logits"], {"x": x})[0][0][:, : self._n_tokens]
            found.append(read(row, torch.from_numpy(logits)))
            del logits
        return found

    def hidden(self, batch: FeatureBatch) -> list[Features]:
        """What the CTC head sees of each row: float32 ``(4 + T, output_size)``."""
        rows = self._inputs.rows(batch)
        return [self._narrow.run(["hidden"], {"x": x})[0][0] for x in rows]

    def warm_up(self, shapes: Sequence[tuple[int, float]]) -> None:
        """Run the longest of the (rows, seconds) as a lone caller and as many at once.

        What the sessions then hold in memory is what they hold ever after.
        """
        n_samples = round(max(duration_s for _, duration_s in shapes) * SAMPLE_RATE_HZ)
        noise = np.random.default_rng(0).normal(0, 0.01, n_samples).astype(np.float32)
        batch = self.frontend([Chunk(noise, 0, 0, DecodeOptions())])
        self.infer(batch)
        with ThreadPoolExecutor(self._n_shares) as callers:
            list(callers.map(self.hidden, [batch] * self._n_shares))

    def gpu_memory(self) -> dict[str, int] | None:
        return None

    @contextmanager
    def _session(self, batch: FeatureBatch) -> Iterator[ort.InferenceSession]:
        with self._lock:
            self._n_callers += 1
            is_alone = self._n_callers == 1 and not batch.has_followers
        try:
            yield self._wide if is_alone else self._narrow
        finally:
            with self._lock:
                self._n_callers -= 1


class _Inputs:
    """Puts prompts and positions to features, as ``SenseVoice.encode`` does."""

    def __init__(self, model: SenseVoice) -> None:
        self._config: EncoderConfig = model.config
        self._scale = np.float32(math.sqrt(model.config.output_size))
        self._prompts = model.embed.weight.detach().numpy().copy()
        self._positions = np.empty((0, model.config.input_size), np.float32)

    def rows(self, batch: FeatureBatch) -> Iterator[Features]:
        """Each row without its padding: float32 ``(1, 4 + T, input_size)``."""
        languages, textnorms = batch.language_rows.tolist(), batch.textnorm_rows.tolist()
        features = batch.features.numpy()
        for index, length in enumerate(batch.lengths):
            prompts = self._prompts[[languages[index], EVENT_ROW, EMOTION_ROW, textnorms[index]]]
            x = np.concatenate((prompts, features[index, :length]))
            yield (x * self._scale + self._first_positions(len(x)))[None]

    def _first_positions(self, n_frames: int) -> Features:
        positions = self._positions
        if len(positions) < n_frames:
            positions = sinusoidal_positions(2 * n_frames, self._config.input_size).numpy()
            self._positions = positions  # threads that meet here may replace it by a shorter one
        return positions[:n_frames]


def open_session(graph: bytes, n_threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(
        graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOW_FUSIONS
    )


def choose_int8(cpuinfo: Path = Path("/proc/cpuinfo")) -> Int8:
    """The whole range where products are summed in 32 bits: x86 with VNNI or AMX, and ARM."""
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set[str]()
    is_old_x86 = "avx2" in flags and not flags & {"avx512_vnni", "avx_vnni", "amx_int8"}
    return Int8(limit=63 if is_old_x86 else 127)


def likeness(reference: Sequence[Features], found: Sequence[Features]) -> float:
    """Mean cosine between frames of two engines' hidden states, 1 where they are the same."""
    a, b = np.concatenate(reference), np.concatenate(found)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean(np.sum(a * b, axis=1) / np.maximum(norms, 1e-9)))


@torch.inference_mode()
def require_likeness(model: SenseVoice, engine: OnnxEngine, chunk: Chunk) -> float:
    """Compare with the model in fp32 on one utterance; raises ``ModelError`` where they differ."""
    batch = engine.frontend([chunk])
    reference = model.encode(
        batch.features, batch.n_frames, batch.language_rows, batch.textnorm_rows
    )
    found = likeness([reference[0].numpy()], engine.hidden(batch))
    if not found >= LEAST_LIKENESS:
        raise ModelError(
            f"{engine.precision} on this CPU does not agree with fp32 (cosine {found:.2f}):"
            " set QUANTIZE=off"
        )
    return found
