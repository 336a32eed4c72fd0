"""The model on a CPU: onnxruntime, a chunk at a time, one thread a chunk while there are several.

Two sessions hold the same weights. The narrow one gives each of several callers its share of the
cores, without a word between threads; the wide one gives all cores to a caller that is alone, and
will be: threads of both at once get into each other's way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

# From 1.29 on it tells its makers about each model, keeping a database for that, unless told not to
# before it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from sensevoice_service.callers import Callers, Threads
from sensevoice_service.cpu_flags import CPUINFO, lacks_byte_products, read_cpu_flags
from sensevoice_service.ctc import best_path
from sensevoice_service.encoder import SenseVoice
from sensevoice_service.encoder_inputs import EncoderInputs, Features
from sensevoice_service.engine import Precision, noise_chunk
from sensevoice_service.frontend import FeatureBatch, Frontend
from sensevoice_service.onnx_graph import Int8, build_graph
from sensevoice_service.types import Chunk, Hypothesis

# onnxruntime's fused form of a sum and a norm is an order of magnitude slower than the two.
SLOW_FUSIONS = ["SkipLayerNormFusion"]
T = TypeVar("T")


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
        self._inputs = EncoderInputs(model)
        weights = {name: value.numpy() for name, value in model.state_dict().items()}
        graph = build_graph(weights, model.config, int8)
        self._wide = open_session(graph, threads.wide)
        same = threads.narrow == threads.wide
        self._narrow = self._wide if same else open_session(graph, threads.narrow)
        self._n_shares = threads.n_shares
        self._callers = Callers()

    def __call__(self, chunks: Sequence[Chunk]) -> list[Hypothesis]:
        return self.infer(self.frontend(chunks))

    def infer(self, batch: FeatureBatch) -> list[Hypothesis]:
        """Greedy CTC of every row."""
        rows = []
        for x in self._inputs.rows(batch):
            with self._session(batch) as session:
                rows.append(session.run(["ids"], {"x": x[None]})[0][0].astype(np.int32))
        return [best_path(row) for row in rows]

    @torch.inference_mode()
    def read_logits(self, chunks: Sequence[Chunk], read: Callable[[int, Tensor], T]) -> list[T]:
        """As ``Engine.read_logits``: those of which the arg-max is taken, in int8 as well."""
        batch = self.frontend(chunks)
        found = []
        for row, x in enumerate(self._inputs.rows(batch)):
            with self._session(batch) as session:
                logits = session.run(["logits"], {"x": x[None]})[0][0][:, : self._n_tokens]
            found.append(read(row, torch.from_numpy(logits)))
            del logits
        return found

    def hidden(self, batch: FeatureBatch) -> list[Features]:
        """What the CTC head sees of each row: float32 ``(4 + T, output_size)``."""
        rows = self._inputs.rows(batch)
        return [self._narrow.run(["hidden"], {"x": x[None]})[0][0] for x in rows]

    def warm_up(self, shapes: Sequence[tuple[int, float]]) -> None:
        """Run the longest of the (rows, seconds) as a lone caller and as many at once.

        What the sessions then hold in memory is what they hold ever after.
        """
        batch = self.frontend([noise_chunk(max(duration_s for _, duration_s in shapes))])
        self.infer(batch)
        with ThreadPoolExecutor(self._n_shares) as callers:
            list(callers.map(self.hidden, [batch] * self._n_shares))

    def gpu_memory(self) -> dict[str, int] | None:
        return None

    @contextmanager
    def _session(self, batch: FeatureBatch) -> Iterator[ort.InferenceSession]:
        with self._callers.enter(has_followers=batch.has_followers) as is_alone:
            yield self._wide if is_alone else self._narrow


def open_session(graph: bytes, n_threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(
        graph, options, providers=["CPUExecutionProvider"], disabled_optimizers=SLOW_FUSIONS
    )


def choose_int8(cpuinfo: Path = CPUINFO) -> Int8:
    """The whole range where products are summed in 32 bits: x86 with VNNI or AMX, and ARM."""
    return Int8(limit=63 if lacks_byte_products(read_cpu_flags(cpuinfo)) else 127)
