"""Speed and numerics of the engine on one GPU, with torch and numpy alone and random weights.

``python -m bench.gpu [--compile [BACKEND]] [--json FILE]``. Model only: features on the device to
ids, in ms a batch, RTFx and TFLOP/s; the engine: samples in host memory to hypotheses. Batches run
as CUDA graphs, where there is one for their shape, in one engine, kernel by kernel in another, in
torch's operators alone in a third, and compiled in a fourth where that is asked for: by inductor,
or by TensorRT with ``--compile tensorrt`` after ``pip install torch-tensorrt==2.12.1``. ``--device
cpu --tiny`` tries the script itself; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sensevoice_service.cuda_graphs import BUCKETS, Bucket, best_bucket
from sensevoice_service.encoder import EncoderConfig, PlainSums, SanmLayer, SenseVoice
from sensevoice_service.engine import Engine, TorchPrecision
from sensevoice_service.frontend import INT16_SCALE, Cmvn, FeatureBatch, Frontend
from sensevoice_service.types import (
    PROMPT_FRAMES,
    SAMPLE_RATE_HZ,
    Chunk,
    DecodeOptions,
    lfr_frames,
)

# Dense bf16 of the datasheets, TFLOP/s; the first name that fits counts.
PEAK_TFLOPS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989}
PEAK_TFLOPS |= {"A100": 312, "L40S": 362, "L4": 121}
# About those of speech on the int16 scale, so that features have a spread of 1.
LOG_MEL_MEAN, LOG_MEL_SCALE = 8.5, 0.25
LEAST_RUN_S, LEAST_CALLS, MOST_CALLS = 1.0, 5, 200


NO_GPU = "this machine has no usable GPU: nothing was measured"


@dataclass(frozen=True)
class Plan:
    """What is measured, and on how large a network."""

    config: EncoderConfig
    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    pcm_rows: int
    pcm_s: float
    n_calls: int
    numerics_s: tuple[float, ...]


MIXED_S = (1.0, 3.0, 7.5, 10.0, 10.0, 15.0, 20.0, 30.0)
FULL = Plan(EncoderConfig(25_055), (1, 4, 16, 64, 256), (5.0, 10.0, 30.0), 256, 10.0, 200, MIXED_S)
TINY_CONFIG = EncoderConfig(299, output_size=64, linear_units=128, num_blocks=2, tp_blocks=1)
TINY = Plan(TINY_CONFIG, (1, 2), (0.5,), 2, 0.5, 3, (0.2, 0.5))


@dataclass(frozen=True)
class Figure:
    """One shape in one engine; ``p50_ms`` of a call. The share is of the device's peak in bf16."""

    engine: str
    what: str
    p50_ms: float
    p95_ms: float
    rtfx: float
    tflops: float | None = None
    peak_share: float | None = None
    peak_memory_bytes: int | None = None

    @classmethod
    def of(cls, engine: str, what: str, times_s: Sequence[float], audio_s: float) -> Figure:
        p50_s, p95_s = np.percentile(times_s, (50, 95)).tolist()
        return cls(engine, what, p50_s * 1e3, p95_s * 1e3, audio_s / p50_s)


@dataclass(frozen=True)
class Numerics:
    """Against fp32 on the same device: relative error of the logits, share of equal arg-max."""

    what: str
    logit_error: float | None
    equal_ids: float | None


def read_device(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }
    if device.type == "cuda" and (tool := shutil.which("nvidia-smi")):
        fields = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit"
        command = [tool, f"--query-gpu={fields}", "--format=csv,noheader"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        found["nvidia-smi"] = {fields: result.stdout.strip()}
    return found


def peak_tflops(device_name: str) -> float | None:
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in device_name), None)


def make_engine(plan: Plan, device: torch.device, precision: TorchPrecision) -> Engine:
    """The same random weights each time."""
    torch.manual_seed(0)
    with torch.device(device):
        model = SenseVoice(plan.config)
    return Engine(model.requires_grad_(False), make_frontend(plan, device), precision)


def make_unfused(plan: Plan, device: torch.device, precision: TorchPrecision) -> Engine:
    """With torch's operators alone, as a compiler wants it, and as a reference."""
    engine = make_engine(plan, device, precision)
    engine.model.encoder.sums = PlainSums()
    return engine


def make_frontend(plan: Plan, device: torch.device) -> Frontend:
    ones = torch.ones(plan.config.input_size)
    return Frontend(Cmvn(ones * -LOG_MEL_MEAN, ones * LOG_MEL_SCALE), device)


def make_chunks(rows: int, seconds: float, dtype: str = "float32") -> list[Chunk]:
    rng = np.random.default_rng(rows)
    noise: Any = rng.normal(0, 3_000, (rows, round(seconds * SAMPLE_RATE_HZ))).astype(np.int16)
    samples = noise if dtype == "int16" else noise / np.float32(INT16_SCALE)
    return [Chunk(row, 0, index, DecodeOptions()) for index, row in enumerate(samples)]


def operations(model: SenseVoice, rows: int, n_frames: int) -> int:
    """Of the products: twice their weights for each frame, and the attention."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d)]
    n_blocks = model.config.num_blocks + model.config.tp_blocks
    attention = 4 * n_frames * model.config.output_size * n_blocks
    return rows * n_frames * (2 * sum(layer.weight.numel() for layer in layers) + attention)


def time_calls(call: Callable[[], object], device: torch.device, n_calls: int = 0) -> list[float]:
    """Seconds of each of ``n_calls``, or of as many as take a while, after two that warm up."""
    times_s: list[float] = []
    wait = torch.cuda.synchronize if device.type == "cuda" else torch.cpu.synchronize
    for _ in range(2):
        call()
    wait(device)
    began_s = time.perf_counter()
    while len(times_s) < (n_calls or MOST_CALLS):
        start_s = time.perf_counter()
        call()
        wait(device)
        end_s = time.perf_counter()
        times_s.append(end_s - start_s)
        if not n_calls and len(times_s) >= LEAST_CALLS and end_s - began_s > LEAST_RUN_S:
            break
    return times_s


def feature_frames(seconds: float) -> int:
    return lfr_frames(round(seconds * SAMPLE_RATE_HZ))


def has_graph(rows: int, seconds: float) -> bool:
    return best_bucket(BUCKETS, rows, PROMPT_FRAMES + feature_frames(seconds)) is not None


def measure_model(
    name: str, engine: Engine, shapes: Sequence[tuple[int, float]]
) -> Iterator[Figure]:
    """Features on the device to ids."""
    device = engine.device
    on_gpu = device.type == "cuda"
    peak = peak_tflops(torch.cuda.get_device_name(device)) if on_gpu else None
    for rows, seconds in shapes:
        n_frames = feature_frames(seconds)
        prompts = torch.zeros(rows, dtype=torch.long, device=device)
        features = torch.randn(rows, n_frames, engine.model.config.input_size, device=device)
        batch = FeatureBatch(features, None, prompts, prompts, (n_frames,) * rows)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        times_s = time_calls(partial(engine.run, batch), device)
        figure = Figure.of(name, f"{rows} x {seconds:g} s", times_s, rows * seconds)
        n_operations = operations(engine.model, rows, PROMPT_FRAMES + n_frames)
        tflops = n_operations / figure.p50_ms / 1e9
        yield dataclasses.replace(
            figure,
            tflops=tflops,
            peak_share=tflops / peak if peak else None,
            peak_memory_bytes=torch.cuda.max_memory_allocated(device) if on_gpu else None,
        )


def measure_pcm(name: str, engine: Engine, plan: Plan) -> Iterator[Figure]:
    """Samples in host memory to hypotheses; two threads prepare while the other computes."""
    rows, seconds, n_batches = plan.pcm_rows, plan.pcm_s, 8
    what, audio_s = f"{rows} x {seconds:g} s", rows * seconds
    for dtype in ("float32", "int16"):
        chunks = make_chunks(rows, seconds, dtype)
        times_s = time_calls(partial(engine, chunks), engine.device)
        yield Figure.of(name, f"{what}, {dtype}", times_s, audio_s)
    # A new thread has the number of threads that any thread set last, and a compiled network is
    # compiled anew for another number: by both at once, which torch refuses.
    alike = (torch.get_num_threads(),)
    with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=alike) as pool:
        batches = [make_chunks(rows, seconds, "int16")] * n_batches
        times_s = time_calls(lambda: list(pool.map(engine, batches)), engine.device, 3)
    times_s = [one_s / n_batches for one_s in times_s]
    yield Figure.of(name, f"{what}, int16, two threads", times_s, audio_s)
    times_s = time_calls(partial(engine, make_chunks(1, seconds)), engine.device, plan.n_calls)
    yield Figure.of(name, f"1 x {seconds:g} s at a time", times_s, seconds)


@torch.inference_mode()
def compare(plan: Plan, plain: Engine, graphed: Engine) -> list[Numerics]:
    """Chunks of mixed lengths: against fp32, padded, by graph, and their features on the CPU.

    In fp32 there are torch's operators alone.
    """
    exact = make_unfused(plan, plain.device, "fp32")
    chunks = [make_chunks(1, seconds)[0] for seconds in plan.numerics_s]
    alone, by_graph, in_fp32, errors = [], [], [], []
    for chunk in chunks:
        batch = plain.frontend([chunk])
        inputs = (batch.features, batch.n_frames, batch.language_rows, batch.textnorm_rows)
        both = (engine.model(*inputs)[0].float() for engine in (plain, exact))
        logits, wanted = (one[:, : plan.config.vocab_size] for one in both)
        errors.append(float((logits - wanted).norm() / wanted.norm()))
        in_fp32.append(wanted.argmax(-1).cpu())
        alone.append(plain.run(batch)[0].cpu())
        by_graph.append(graphed.run(batch)[0].cpu())
    rows = plain.run(plain.frontend(chunks)).cpu()
    in_batch = [row[: chunk.n_frames] for row, chunk in zip(rows, chunks, strict=True)]
    samples = [chunk.samples for chunk in chunks]
    cpu_features, _ = make_frontend(plan, torch.device("cpu")).features(samples)
    difference = plain.frontend.features(samples)[0].cpu() - cpu_features
    return [
        Numerics(f"{plain.precision} against fp32", max(errors), equal_share(alone, in_fp32)),
        Numerics("in a padded batch against alone", None, equal_share(in_batch, alone)),
        Numerics("by graph against kernel by kernel", None, equal_share(by_graph, alone)),
        Numerics("features against the CPU's, largest", float(difference.abs().max()), None),
    ]


def equal_share(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return float((torch.cat(list(ours)) == torch.cat(list(theirs))).float().mean())


def compile_layers(engine: Engine, backend: str) -> None:
    """A compilation a shape."""
    torch._dynamo.config.recompile_limit = 256
    for module in engine.model.modules():
        if isinstance(module, SanmLayer):
            module.compile(backend=backend, dynamic=False)


def known_backend(name: str) -> str:
    """The type of an argument; raises ``argparse.ArgumentTypeError`` where it is not there."""
    if name == "tensorrt" and find_spec("torch_tensorrt"):
        import_module("torch_tensorrt")  # makes itself known
    if name not in torch._dynamo.list_backends(()):
        raise argparse.ArgumentTypeError(f"{name} is not installed")
    return name


def print_row(figure: Figure | Numerics) -> None:
    values = {k: v for k, v in dataclasses.asdict(figure).items() if v is not None}
    words = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
    print("  ".join(words), flush=True)


def measure(plan: Plan, device: torch.device, backend: str | None) -> dict[str, list[Any]]:
    plain, graphed = (make_engine(plan, device, "bf16") for _ in range(2))
    shapes = list(product(plan.rows, plan.seconds))
    extremes = [(1, plan.pcm_s), (plan.pcm_rows, plan.pcm_s)]
    runs = [
        ("kernels", plain, shapes),
        ("graphs", graphed, [shape for shape in shapes if has_graph(*shape)]),
        ("unfused", make_unfused(plan, device, "bf16"), extremes),
    ]
    if backend:
        compiled = make_unfused(plan, device, "bf16")
        compile_layers(compiled, backend)
        runs.append((backend, compiled, extremes))
    if device.type == "cuda":
        graphed.capture_graphs()
        for _, engine, _ in runs[2:]:
            engine.capture_graphs([Bucket(1, 176)])
    found: dict[str, list[Any]] = {"numerics": [], "model": [], "pcm": []}

    def note(part: str, figures: Iterable[Figure | Numerics]) -> None:
        for figure in figures:
            found[part].append(figure)
            print_row(figure)

    print(f"sums by {type(plain.model.encoder.sums).__name__}, or by PlainSums where unfused")
    note("numerics", compare(plan, plain, graphed))
    for name, engine, some in runs:
        note("model", measure_model(name, engine, some))
    for name, engine, _ in runs:
        note("pcm", measure_pcm(name, engine, plan))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, to try the script")
    parser.add_argument(
        "--compile",
        nargs="?",
        type=known_backend,
        const="inductor",
        metavar="BACKEND",
        help="with torch.compile too, which takes minutes",
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(NO_GPU)
        return 0
    circumstances = read_device(device)
    print(json.dumps(circumstances))
    found = measure(TINY if options.tiny else FULL, device, options.compile)
    if options.json:
        body = json.dumps({**circumstances, **found}, indent=1, default=dataclasses.asdict)
        options.json.write_text(body + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
