"""Seconds of audio for a second of time through the whole service, many 10 s clips at once.

``python -m bench.gpu_http --model DIR [--clients N] [--processes N] [--json FILE]``. Meant for a
GPU, so with as many slots and as large batches as there are clients; ``--set`` says otherwise.
Where there is none, ``--set DEVICE=cpu`` tries the script itself, and ``--without-model`` tells how
far all but the model goes: a chunk takes ``ENGINE_MS`` then, and no processor. The clients run in
processes of their own, or one of Python's would be all that is measured.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from bench.gpu import NO_GPU
from bench.report import (
    Goal,
    Report,
    add_settings,
    changed,
    environment_of,
    make_parser,
)
from bench.scaling import CLIP_S, make_clips
from bench.server import Load, Server, run_load, served, serving

LEAST_RTFX = 3_000.0
STAGES = ("wait", "decode", "queue", "infer", "total")
WARM_UP_REQUESTS = 4  # for each client
# Sixteen chunks at once, and 800 a second, are more than one process of Python has use for. Forty
# words are what ten seconds of fast speech have.
ENGINE_MS, ENGINE_WORKERS, ENGINE_WORDS = 20, 16, 40


@dataclass(frozen=True)
class Result:
    """The p50 and p95 are of whole requests, the stages are means of what the service logged."""

    rtfx: float
    n_requests: int
    p50_ms: float
    p95_ms: float
    stages_ms: Mapping[str, float]


def measure(server: Server, arguments: argparse.Namespace) -> Result:
    n_clients = math.ceil(arguments.clients / arguments.processes)
    n_requests = math.ceil(arguments.requests / arguments.processes)
    clips = make_clips()

    def send_all(pool: ProcessPoolExecutor, n: int) -> list[Load]:
        loads = [
            pool.submit(run_load, server, clips, n_clients, n, arguments.timeout_s)
            for _ in range(arguments.processes)
        ]
        return [load.result() for load in loads]

    with ProcessPoolExecutor(arguments.processes, get_context("spawn")) as pool:
        send_all(pool, WARM_UP_REQUESTS * n_clients)
        n_before = len(server.requests())
        began_s = time.perf_counter()
        loads = send_all(pool, n_requests)
        wall_s = time.perf_counter() - began_s
    latencies_s = [one_s for load in loads for one_s in load.latencies_s]
    p50_s, p95_s = np.percentile(latencies_s, (50, 95)).tolist()
    logged = server.requests()[n_before:]
    return Result(
        rtfx=sum(load.audio_s for load in loads) / wall_s,
        n_requests=len(latencies_s),
        p50_ms=p50_s * 1e3,
        p95_ms=p95_s * 1e3,
        stages_ms={name: mean_ms(logged, name) for name in STAGES},
    )


def mean_ms(requests: list[dict[str, Any]], stage: str) -> float:
    return float(np.mean([request[f"{stage}_ms"] for request in requests]))


def main(given: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__)
    add_settings(parser)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--processes", type=int, default=4, help="that the clients are spread over")
    parser.add_argument("--requests", type=int, default=4_096)
    parser.add_argument("--without-model", action="store_true")
    arguments = parser.parse_args(given)
    room = [
        f"MAX_CONCURRENT_REQUESTS={arguments.clients}",
        f"BATCH_SIZE={arguments.clients}",
    ]
    environment = environment_of(arguments.model, [*room, *arguments.set])
    command, engine = ["api.py"], {}
    if arguments.without_model:
        command = ["-m", "bench.fake_engine"]
        engine = {"FAKE_ENGINE_MS": str(ENGINE_MS), "FAKE_ENGINE_WORDS": str(ENGINE_WORDS)}
        environment["MODEL_WORKERS"] = str(ENGINE_WORKERS)
    elif "DEVICE" not in environment and not torch.cuda.is_available():
        print(NO_GPU)
        return
    report = Report("gpu_http", changed(environment))
    print(report.header())
    with serving({**environment, **engine}, command) as server:
        print(served(server), flush=True)
        found = measure(server, arguments)
    print(
        f"{found.n_requests} clips of {CLIP_S} s from {arguments.clients} clients: RTFx"
        f" {found.rtfx:.0f}, p50 {found.p50_ms:.0f} ms, p95 {found.p95_ms:.0f} ms"
    )
    print("of a request: " + ", ".join(f"{ms:.1f} ms {k}" for k, ms in found.stages_ms.items()))
    what = f"RTFx of {CLIP_S} s clips, {arguments.clients} at once:"
    is_on_gpu = server.health["device"].startswith("cuda")
    goals = [Goal(what, found.rtfx, LEAST_RTFX, is_least=True)] if is_on_gpu else []
    report.conclude({"result": found}, goals, arguments.json)


if __name__ == "__main__":
    main()
