"""The model on a CPU, in C: ``native/``, in int8 for AMX, AVX-512 VNNI and AVX2 without VNNI,
and for AMX in fp32 and bf16 too.

Callers share the cores: one that is alone has them all, and leaves them when a second one comes.
Every frame of int8 has a scale of its own, so several utterances may share the reading of the
weights, and none of them feels the others.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sensevoice_service.callers import Threads
from sensevoice_service.ctc import best_path
from sensevoice_service.encoder import SenseVoice
from sensevoice_service.encoder_inputs import EncoderInputs, Features
from sensevoice_service.engine import Precision, noise_chunk
from sensevoice_service.frontend import FeatureBatch, Frontend
from sensevoice_service.native_frontend import NativeFrontend
from sensevoice_service.native_library import PARTS, NativeUnavailable
from sensevoice_service.native_network import Cores, Layout, NetworkWeights, why_not
from sensevoice_service.types import Chunk, Hypothesis

# Of the utterances of a call; more frames gain nothing from sharing the weights.
FRAMES_TOGETHER = 256
ROWS_TOGETHER = 2  # each utterance begins at an even row
# By the parts of a weight.
PRECISIONS: dict[int, Precision] = {0: "int8", PARTS["bf16"]: "bf16", PARTS["fp32"]: "fp32"}

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Outputs:
    """Of one utterance of ``4 + T`` frames; what was not asked for is empty."""

    ids: NDArray[np.int32]  # (4 + T,)
    hidden: Features  # (4 + T, output_size)
    logits: Features  # (4 + T, vocabulary)


class NativeEngine:
    """Chunks in, hypotheses out; call it from as many threads as there are narrow shares.

    Raises ``NativeUnavailable`` for a network whose dimensions do not fit.
    """

    frontend: Frontend

    def __init__(
        self, model: SenseVoice, frontend: Frontend, threads: Threads, library: ctypes.CDLL
    ) -> None:
        misfit = why_not(model.config)
        if misfit is not None:
            raise NativeUnavailable(f"the native encoder has no room for {misfit}")
        self.frontend = NativeFrontend(frontend, library)
        self.device = self.frontend.device
        self.n_parameters = sum(parameter.numel() for parameter in model.parameters())
        self._n_callers = threads.n_shares
        self._cores = Cores(n_each=threads.narrow, n_all=threads.wide)
        self._inputs = EncoderInputs(model)
        self._n_tokens = model.config.vocab_size
        self._size = model.config.output_size
        state = {name: value.numpy() for name, value in model.state_dict().items()}
        n_parts = library.sensevoice_weight_parts()
        self.precision: Precision = PRECISIONS[n_parts]
        layout = Layout(n_parts, library.sensevoice_highest_weight_sum())
        self._weights = NetworkWeights(state, model.config, layout, n_threads=threads.wide)
        self._encode = library.sensevoice_encode

    def __call__(self, chunks: Sequence[Chunk]) -> list[Hypothesis]:
        n_calls = self._cores.n_calls  # a short follower may be through the front end sooner
        return self._infer(self.frontend(chunks), n_calls)

    def infer(self, batch: FeatureBatch) -> list[Hypothesis]:
        """Greedy CTC of every row."""
        return self._infer(batch, self._cores.n_calls)

    def _infer(self, batch: FeatureBatch, n_calls_before: int) -> list[Hypothesis]:
        hypotheses: list[Hypothesis] = []
        for n_own, group in enumerate(grouped(self._inputs.rows(batch))):
            outputs = self._run(group, batch.has_followers, n_calls_before + n_own)
            hypotheses += (best_path(one.ids) for one in outputs)
        return hypotheses

    @torch.inference_mode()
    def read_logits(self, chunks: Sequence[Chunk], read: Callable[[int, Tensor], T]) -> list[T]:
        """As ``Engine.read_logits``: those of which the arg-max is taken, in int8 as well."""
        n_calls = self._cores.n_calls
        batch = self.frontend(chunks)
        found = []
        for row, x in enumerate(self._inputs.rows(batch)):
            (one,) = self._run([x], batch.has_followers, n_calls + row, logits=True)
            found.append(read(row, torch.from_numpy(one.logits)))
            del one
        return found

    def hidden(self, batch: FeatureBatch) -> list[Features]:
        """What the CTC head sees of each row: float32 ``(4 + T, output_size)``."""
        n_calls = self._cores.n_calls
        return [
            self._run([x], batch.has_followers, n_calls + row, hidden=True)[0].hidden
            for row, x in enumerate(self._inputs.rows(batch))
        ]

    def warm_up(self, shapes: Sequence[tuple[int, float]]) -> None:
        """Run the longest of the (rows, seconds) from as many callers as there may be."""
        batch = self.frontend([noise_chunk(max(duration_s for _, duration_s in shapes))])
        with ThreadPoolExecutor(self._n_callers) as callers:
            list(callers.map(self.infer, [batch] * self._n_callers))

    def gpu_memory(self) -> dict[str, int] | None:
        return None

    def _run(
        self,
        rows: Sequence[Features],
        has_followers: bool,
        n_calls_before: int,
        *,
        hidden: bool = False,
        logits: bool = False,
    ) -> list[Outputs]:
        """Raises ``MemoryError``."""
        x, first_rows = stacked(rows)
        lengths = np.array([len(row) for row in rows], np.int32)
        outputs = Outputs(
            np.empty(len(x), np.int32),
            np.empty((len(x) if hidden else 0, self._size), np.float32),
            np.empty((len(x) if logits else 0, self._weights.n_logits), np.float32),
        )
        is_done = self._encode(
            ctypes.byref(self._weights.network),
            ctypes.byref(self._cores),
            _address(x),
            _address(lengths),
            len(rows),
            has_followers,
            ctypes.c_uint32(n_calls_before),
            _address(outputs.ids),
            _address(outputs.hidden),
            _address(outputs.logits),
        )
        if not is_done:
            raise MemoryError(f"no memory for {len(x)} frames")
        return [
            Outputs(
                outputs.ids[first : first + len(row)],
                outputs.hidden[first : first + len(row)],
                outputs.logits[first : first + len(row), : self._n_tokens],
            )
            for first, row in zip(first_rows, rows, strict=True)
        ]


def grouped(rows: Iterable[Features]) -> Iterator[list[Features]]:
    """Neighbours that go through the network together."""
    group: list[Features] = []
    for row in rows:
        if group and sum(map(len, group)) + len(row) > FRAMES_TOGETHER:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def stacked(rows: Sequence[Features]) -> tuple[Features, list[int]]:
    """All rows, zeros behind each up to an even number, and where each begins."""
    sizes = [len(row) + -len(row) % ROWS_TOGETHER for row in rows]
    firsts = np.cumsum([0, *sizes[:-1]]).tolist()
    x = np.zeros((sum(sizes), rows[0].shape[1]), np.float32)
    for first, row in zip(firsts, rows, strict=True):
        x[first : first + len(row)] = row
    return x, firsts


def _address(values: NDArray[np.float32] | NDArray[np.int32]) -> ctypes.c_void_p:
    """Null for what is empty."""
    return ctypes.c_void_p(values.ctypes.data if values.size else None)
