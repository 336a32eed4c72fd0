"""One model on one device: load, set its precision, warm up, infer."""

from __future__ import annotations

import logging
import pickle
import re
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from sensevoice_service.check_utterance import check_chunk
from sensevoice_service.ctc import best_path
from sensevoice_service.cuda_graphs import BUCKETS, Bucket, CudaCapture, Graphs, InputMemory
from sensevoice_service.encoder import EncoderConfig, SenseVoice
from sensevoice_service.encoder_inputs import Features
from sensevoice_service.frontend import FeatureBatch, Frontend, read_cmvn, require_known
from sensevoice_service.fused_sums import choose_sums
from sensevoice_service.types import (
    PROMPT_FRAMES,
    SAMPLE_RATE_HZ,
    Chunk,
    DecodeOptions,
    DeviceOutOfMemory,
    Hypothesis,
    ModelError,
    lfr_frames,
)

Precision = Literal["fp32", "bf16", "int8"]
TorchPrecision = Literal["fp32", "bf16"]
T = TypeVar("T")

_log = logging.getLogger(__name__)

# The head's output is 25,055 wide: a slice of this many frames takes 100 MB in fp32.
HEAD_FRAMES = 1_024
# Tensor cores want rows of whole 128 bytes.
HEAD_MULTIPLE = 64


@dataclass(frozen=True)
class EngineFiles:
    """The parts of a model folder that the engine reads."""

    config_yaml: Path
    checkpoint: Path
    cmvn: Path


class Engine:
    """Chunks in, hypotheses out; threads may share it, though one is enough to fill a device."""

    def __init__(self, model: SenseVoice, frontend: Frontend, precision: TorchPrecision) -> None:
        self.frontend = frontend
        self.precision: Precision = precision
        self.device = frontend.device
        self.n_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.model = _lower(model.to(self.device).eval(), precision)
        if self.device.type == "cuda":
            _prefer_kernels_of_any_shape()
            self.model.ctc.widen(HEAD_MULTIPLE)
            self.model.encoder.sums = choose_sums(self.model.encoder, self.device)
        self._graphs = Graphs()

    def __call__(self, chunks: Sequence[Chunk]) -> list[Hypothesis]:
        with _out_of_memory_by_name():
            return self.infer(self.frontend(chunks))

    @torch.inference_mode()
    def infer(self, batch: FeatureBatch) -> list[Hypothesis]:
        """Greedy CTC of every row; raises ``DeviceOutOfMemory``, after which it may go on."""
        with _out_of_memory_by_name():
            rows = self.run(batch).cpu().numpy()
        return [
            best_path(row[: PROMPT_FRAMES + length])
            for row, length in zip(rows, batch.lengths, strict=True)
        ]

    @torch.inference_mode()
    def read_logits(self, chunks: Sequence[Chunk], read: Callable[[int, Tensor], T]) -> list[T]:
        """What ``read`` makes of each chunk's index and logits, float32 ``(4 + T, vocabulary)``.

        They are on the device, without padding, and never there for two chunks at once.
        No graph is used. Raises as ``infer`` does.
        """
        with _out_of_memory_by_name():
            batch = self.frontend(chunks)
            hidden = self.model.encode(
                batch.features, batch.n_frames, batch.language_rows, batch.textnorm_rows
            )
            return [
                read(row, self.model.ctc(hidden[row, : PROMPT_FRAMES + length]).float())
                for row, length in enumerate(batch.lengths)
            ]

    @torch.inference_mode()
    def hidden(self, batch: FeatureBatch) -> list[Features]:
        """What the CTC head sees of each row: float32 ``(4 + T, output_size)``, on the host."""
        hidden = self.model.encode(
            batch.features, batch.n_frames, batch.language_rows, batch.textnorm_rows
        )
        rows = hidden.float().cpu().numpy()
        return [
            row[: PROMPT_FRAMES + length] for row, length in zip(rows, batch.lengths, strict=True)
        ]

    def run(self, batch: FeatureBatch) -> Tensor:
        """As ``best_ids``; on the host already where it was a graph."""
        ids = self._graphs.run(batch)
        if ids is not None:
            return ids
        return self.best_ids(
            batch.features, batch.n_frames, batch.language_rows, batch.textnorm_rows
        )

    @torch.inference_mode()
    def best_ids(
        self,
        features: Tensor,
        n_frames: Tensor | None,
        language_rows: Tensor,
        textnorm_rows: Tensor,
    ) -> Tensor:
        """The arg-max of every frame, int32 ``(B, 4 + T)`` on the device.

        Arguments as for ``SenseVoice.encode``. There is never more of the logits than a slice.
        """
        hidden = self.model.encode(features, n_frames, language_rows, textnorm_rows)
        slices = hidden.flatten(0, 1).split(HEAD_FRAMES)
        ids = torch.cat([self.model.ctc(part).argmax(dim=-1) for part in slices])
        return ids.view(hidden.shape[:2]).to(torch.int32)

    def warm_up(self, shapes: Sequence[tuple[int, float]]) -> None:
        """Run batches of the given (rows, seconds), so that no request pays for first calls.

        On a GPU batches are captured as graphs, too.
        """
        for rows, duration_s in shapes:
            self([noise_chunk(duration_s)] * rows)
        if self.device.type == "cuda":
            self.capture_graphs()

    def capture_graphs(self, buckets: Collection[Bucket] = BUCKETS) -> None:
        """For a GPU: run batches that fit one of the buckets as one launch from now on."""
        memory = InputMemory(buckets, self.model.config.input_size, self.device)
        sample, capture = self.frontend([check_chunk()]), CudaCapture(self.device)
        self._graphs.capture(buckets, self.best_ids, memory, capture, sample)

    def gpu_memory(self) -> dict[str, int] | None:
        """Bytes in use and in all of the whole GPU, and those this process holds."""
        if self.device.type != "cuda":
            return None
        free_bytes, total_bytes = torch.cuda.mem_get_info(self.device)
        return {
            "used_bytes": total_bytes - free_bytes,
            "total_bytes": total_bytes,
            "process_bytes": torch.cuda.memory_reserved(self.device),
        }


def warm_up_shapes(
    max_items: int, max_padded_frames: int, longest_s: float
) -> list[tuple[int, float]]:
    """One row and as many as fit, short and long: the corners of what will be served."""
    shapes = []
    for duration_s in (1.0, longest_s):
        frames = PROMPT_FRAMES + lfr_frames(round(duration_s * SAMPLE_RATE_HZ))
        fitting = max(1, min(max_items, max_padded_frames // frames))
        shapes += [(1, duration_s), (fitting, duration_s)]
    return shapes


def noise_chunk(duration_s: float) -> Chunk:
    """What an engine is warmed up with."""
    n_samples = round(duration_s * SAMPLE_RATE_HZ)
    noise = np.random.default_rng(0).normal(0, 0.01, n_samples).astype(np.float32)
    return Chunk(noise, 0, 0, DecodeOptions())


def choose_device(wanted: str) -> torch.device:
    """``auto`` is the first GPU that this torch has code for, or the CPU.

    Raises ``ModelError`` for a GPU that is not there or too old.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return next(filter(_has_code, map(_gpu, range(n_gpus))), torch.device("cpu"))
    device = torch.device(wanted)
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        raise ModelError(f"DEVICE={wanted}: this machine has {n_gpus} usable GPUs; try DEVICE=auto")
    if device.type == "cuda" and not _has_code(device):
        raise ModelError(f"DEVICE={wanted}: torch {torch.__version__} is not for GPUs this old")
    return device


def _gpu(index: int) -> torch.device:
    return torch.device("cuda", index)


def _has_code(device: torch.device) -> bool:
    """Whether a GPU is no older than the oldest that torch was compiled for, such as ``sm_75``."""
    known = [re.sub(r"\D", "", name) for name in torch.cuda.get_arch_list()]
    oldest = min((int(number) for number in known if number), default=0)
    has_code = torch.cuda.get_device_capability(device) >= divmod(oldest, 10)
    if not has_code:
        name = torch.cuda.get_device_name(device)
        _log.warning("%s (%s) is too old for torch %s", device, name, torch.__version__)
    return has_code


def choose_precision(quantize: str, device: torch.device) -> Precision:
    """What QUANTIZE means on a device; raises ``ModelError`` where it cannot be had."""
    on_cpu = device.type == "cpu"
    if quantize == "int8" and not on_cpu:
        raise ModelError("QUANTIZE=int8 is for the CPU; on a GPU use bf16 or auto")
    if quantize == "int8" or (quantize == "auto" and on_cpu):
        return "int8"
    if quantize == "bf16" or (quantize == "auto" and _has_bf16(device)):
        return "bf16"
    return "fp32"


def _has_bf16(device: torch.device) -> bool:
    """In its tensor cores: torch itself says yes where it is emulated, too."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def load_engine(
    files: EngineFiles, vocab_size: int, device: torch.device, precision: TorchPrecision
) -> Engine:
    """Read a checkpoint with FunASR's parameter names.

    Raises ``ModelError`` if it is damaged, holds anything but tensors, or does not fit its
    configuration and vocabulary.
    """
    import yaml  # here, so that the engine can be measured where there is torch alone

    config = yaml.safe_load(files.config_yaml.read_text(encoding="utf-8"))
    try:
        model = _empty_model(EncoderConfig.from_yaml(config, vocab_size))
        require_known(config["frontend_conf"])
        frontend = Frontend(read_cmvn(files.cmvn), device)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{files.config_yaml.parent}: wrong configuration: {error}") from error
    model.load_state_dict(_read_checkpoint(files.checkpoint, model), assign=True)
    return Engine(model, frontend, precision)


def _empty_model(config: EncoderConfig) -> SenseVoice:
    """Built without memory, since the checkpoint's tensors are put in place of its own."""
    with torch.device("meta"):
        return SenseVoice(config)


def _read_checkpoint(path: Path, model: SenseVoice) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ModelError(f"{path} holds more than tensors and is not loaded: {error}") from None
    except (RuntimeError, OSError, EOFError) as error:
        raise ModelError(f"{path} is damaged: {error}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(state, dict):
        raise ModelError(f"{path} holds no parameters by name")
    wanted = model.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    if missing:
        raise ModelError(f"{path} lacks {len(missing)} parameters, such as {missing[0]}")
    wrong = [name for name in wanted if _shape(state[name]) != _shape(wanted[name])]
    if wrong:
        found, expected = _shape(state[wrong[0]]), _shape(wanted[wrong[0]])
        raise ModelError(f"{path}: {wrong[0]} is {found}, expected {expected}: another model's")
    return {name: state[name].float() for name in wanted}


def _shape(value: object) -> object:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _lower(model: SenseVoice, precision: TorchPrecision) -> SenseVoice:
    """In bf16 only the products are rounded; residual sums, norms and positions stay in fp32."""
    if precision == "bf16":
        model.round_products(torch.bfloat16)
    return model


def _prefer_kernels_of_any_shape() -> None:
    """cuDNN would plan its attention and convolution anew for every length, which few share."""
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)


@contextmanager
def _out_of_memory_by_name() -> Iterator[None]:
    """Give back what the device lent to a failed call, and raise ``DeviceOutOfMemory``."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # they hold the tensors of that call
        with suppress(RuntimeError):  # it is refused for good after a capture that was broken off
            torch.cuda.empty_cache()
        raise DeviceOutOfMemory(str(error)) from None
