"""From a model folder to a model that infers: on which engine, how precise, with which threads.

On a GPU the network runs in torch. On a CPU it is C of our own in int8 on nearly every x86, and in
fp32 and bf16 with AMX; elsewhere int8 and fp32 run in onnxruntime, and bf16 in torch.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sensevoice_service.callers import Threads
from sensevoice_service.check_utterance import check_chunk
from sensevoice_service.cores import usable_cores
from sensevoice_service.engine import (
    Engine,
    EngineFiles,
    Precision,
    choose_device,
    choose_precision,
    load_engine,
)
from sensevoice_service.likeness import require_likeness
from sensevoice_service.model_store import ModelFolder
from sensevoice_service.native_engine import NativeEngine
from sensevoice_service.native_library import (
    NativeUnavailable,
    Target,
    choose_target,
    load_library,
)
from sensevoice_service.onnx_engine import OnnxEngine, choose_int8
from sensevoice_service.steering import AnyEngine, Legible, SteeredEngine
from sensevoice_service.tags import Vocabulary
from sensevoice_service.tokenizer import load_vocabulary
from sensevoice_service.types import ModelError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineOptions:
    """As in the settings: 0 workers are one a core on a CPU and one on a GPU, 0 threads a share.

    Of several devices, separated by commas, ``n_workers`` is that of each.
    """

    device: str = "auto"
    quantize: str = "auto"
    n_workers: int = 0
    intra_op_threads: int = 0


@dataclass(frozen=True)
class OpenModel:
    """An engine a device; ``n_workers`` threads may call each of them at once."""

    engines: tuple[AnyEngine, ...]
    vocabulary: Vocabulary
    n_workers: int

    @property
    def engine(self) -> AnyEngine:
        """The first: they hear the same."""
        return self.engines[0]

    @property
    def workers(self) -> list[AnyEngine]:
        """An engine for each thread, first one of every device."""
        return list(self.engines) * self.n_workers

    def warm_up(self, shapes: Sequence[tuple[int, float]]) -> None:
        for engine in self.engines:
            engine.warm_up(shapes)

    def gpu_memory(self) -> dict[str, Any] | None:
        """Bytes of all GPUs together, and of each under ``devices``; None where there is none."""
        readings = ((str(engine.device), engine.gpu_memory()) for engine in self.engines)
        devices = {name: reading for name, reading in readings if reading is not None}
        if not devices:
            return None
        totals: Counter[str] = Counter()
        for reading in devices.values():
            totals.update(reading)
        return {**totals, "devices": devices}


def open_model(folder: ModelFolder, options: EngineOptions) -> OpenModel:
    """Load a model, not warm yet. Raises ``ModelError``.

    Sets torch's threads for the whole process, since all engines but the one in C use them.
    """
    devices = [choose_device(name) for name in options.device.split(",")]
    n_workers, threads = share_cores(options, devices[0], len(devices))
    torch.set_num_threads(threads.narrow)
    vocabulary = load_vocabulary(folder.bpe_model)
    files = EngineFiles(folder.config_yaml, folder.checkpoint, folder.cmvn)
    engines = (
        _open_engine(files, vocabulary, device, options.quantize, threads) for device in devices
    )
    return OpenModel(tuple(engines), vocabulary, n_workers)


def _open_engine(
    files: EngineFiles,
    vocabulary: Vocabulary,
    device: torch.device,
    quantize: str,
    threads: Threads,
) -> AnyEngine:
    precision = choose_precision(quantize, device)
    plain = load_engine(files, vocabulary.size, torch.device("cpu"), "fp32")
    engine: Legible
    if device.type == "cpu":
        engine = _open_on_cpu(plain, precision, threads, is_wish=quantize == "auto")
    else:
        assert precision != "int8"
        engine = load_engine(files, vocabulary.size, device, precision)
        found = require_likeness(plain, engine, check_chunk())
        _log.info("%s on %s agrees with fp32: cosine %.4f", precision, device, found)
    return SteeredEngine(engine, vocabulary)


def _open_on_cpu(plain: Engine, precision: Precision, threads: Threads, is_wish: bool) -> Legible:
    target = choose_target(precision)
    native = _open_native(plain, threads, target) if target else None
    if native is not None:
        return native
    if precision == "bf16":
        return Engine(plain.model, plain.frontend, precision)
    return _open_onnx(plain, precision, threads, is_wish)


def share_cores(
    options: EngineOptions, device: torch.device, n_devices: int = 1
) -> tuple[int, Threads]:
    """Workers of each device, and the threads of each worker."""
    n_cores = max(1, usable_cores() // n_devices)
    n_workers = options.n_workers or (n_cores if device.type == "cpu" else 1)
    narrow = options.intra_op_threads or max(1, n_cores // n_workers)
    return n_workers, Threads(narrow=narrow, wide=options.intra_op_threads or n_cores)


def _open_native(plain: Engine, threads: Threads, target: Target) -> NativeEngine | None:
    try:
        engine = NativeEngine(plain.model, plain.frontend, threads, load_library(target))
        found = require_likeness(plain, engine, check_chunk())
    except (NativeUnavailable, ModelError) as error:
        _log.warning("%s; %s", error, target.without_it)
        return None
    _log.info("%s in C for %s agrees with fp32: cosine %.4f", engine.precision, target.name, found)
    return engine


def _open_onnx(plain: Engine, precision: Precision, threads: Threads, is_wish: bool) -> OnnxEngine:
    """Where int8 was only a wish and this CPU gets it wrong, fp32."""
    int8 = choose_int8() if precision == "int8" else None
    engine = OnnxEngine(plain.model, plain.frontend, int8, threads)
    try:
        found = require_likeness(plain, engine, check_chunk())
    except ModelError as error:
        if int8 is None or not is_wish:
            raise
        _log.warning("%s; serving in fp32", error)
        return OnnxEngine(plain.model, plain.frontend, None, threads)
    _log.info("%s in onnxruntime agrees with fp32: cosine %.4f", precision, found)
    return engine
