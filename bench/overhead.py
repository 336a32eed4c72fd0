"""What the whole way costs over the bare engine, and how long a start takes.

``python -m bench.overhead [--model DIR] [--json FILE]``. In turn, and with the same model,
precision and threads: ``engine.infer`` on prepared features, in batches such as the batcher makes
of the clients' requests; then 10 s WAV files over HTTP, from clients at once. Each round over HTTP
is held to the engine just before and just after it, for a machine's speed drifts. At last the demo
is started some times, until it is healthy.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from api import batch_limits
from bench.ours import open_as_served
from bench.report import (
    Goal,
    Report,
    add_settings,
    changed,
    environment_of,
    make_parser,
    median,
    settings_of,
    table,
)
from bench.scaling import CLIP_RATE_HZ, CLIP_S, SEED, cut_off, make_clips, speech
from bench.server import Server, run_load, served, serving
from config import Settings
from sensevoice_service.batch_policy import pick_batch
from sensevoice_service.loading import OpenModel
from sensevoice_service.steering import AnyEngine
from sensevoice_service.types import Chunk, DecodeOptions

LEAST_RATIO_PERCENT = 92.0
MOST_START_S = 8.0
N_BATCHES = 4
NO_OVERHEAD_FRAMES = 0.0  # clips of one length are never padded


@dataclass(frozen=True)
class Round:
    """Seconds of audio for a second of time; the engine's is the mean around the service's."""

    engine_rtfx: float
    service_rtfx: float

    @property
    def ratio(self) -> float:
        return self.service_rtfx / self.engine_rtfx


@dataclass(frozen=True)
class Stage:
    """Where the time of a 10 s clip goes; ``share`` is of what the whole way takes for one more."""

    name: str
    ms_per_clip: float
    share: float


STAGE_COLUMNS = {
    "of one clip": "{0.name}",
    "ms": "{0.ms_per_clip:.2f}",
    "share": "{0.share:.1%}",
}


class BareEngine:
    """The engine in this process, with batches prepared for as many threads as the service has."""

    def __init__(self, opened: OpenModel, settings: Settings, n_clients: int) -> None:
        self._engine = engine = opened.engine
        self.n_workers = opened.n_workers
        chunks = make_chunks(n_clients)
        limits = batch_limits(settings, engine.device.type)
        lengths = [chunk.n_frames for chunk in chunks]
        self.n_rows = len(pick_batch(lengths, limits, NO_OVERHEAD_FRAMES))
        turns = itertools.cycle(chunks)
        self._chunks = [list(itertools.islice(turns, self.n_rows)) for _ in range(N_BATCHES)]
        self._batches = [engine.frontend(part) for part in self._chunks]

    def infer(self, n_clips: int) -> float:
        """Run whole batches of at least ``n_clips`` clips; gives the RTFx."""
        n_batches = math.ceil(n_clips / self.n_rows)
        batches = itertools.islice(itertools.cycle(self._batches), n_batches)
        with ThreadPoolExecutor(self.n_workers) as pool:
            began_s = time.perf_counter()
            for _ in pool.map(self._engine.infer, batches):
                pass
            wall_s = time.perf_counter() - began_s
        return n_batches * self.n_rows * CLIP_S / wall_s

    def frontend_ms(self) -> float:
        """The features of one clip, in a batch."""
        times_s = []
        for part in self._chunks:
            began_s = time.perf_counter()
            self._engine.frontend(part)
            times_s.append(time.perf_counter() - began_s)
        return 1_000 * median(times_s) / self.n_rows


def make_chunks(n: int) -> list[Chunk]:
    """The same speech as in the clips that are sent, as samples."""
    blocks = speech(np.random.default_rng(SEED), CLIP_RATE_HZ)
    clips = (np.concatenate(list(cut_off(blocks, CLIP_S * CLIP_RATE_HZ))) for _ in range(n))
    return [Chunk(samples, 0, index, DecodeOptions()) for index, samples in enumerate(clips)]


def measure_rounds(
    bare: BareEngine, server: Server, arguments: argparse.Namespace
) -> tuple[list[Round], list[dict[str, Any]]]:
    """The rounds, and what the service logged of their requests."""
    clips, n_clients = make_clips(), arguments.clients

    def serve(n_requests: int) -> float:
        return run_load(server, clips, n_clients, n_requests, arguments.timeout_s).rtfx

    bare.infer(n_clients)
    serve(n_clients)
    n_requests = whole_turns(arguments.round_s * serve(2 * n_clients) / CLIP_S, n_clients)
    n_before = len(server.requests())
    rounds = []
    before = bare.infer(n_requests)
    for number in range(1, arguments.rounds + 1):
        service, after = serve(n_requests), bare.infer(n_requests)
        rounds.append(last := Round((before + after) / 2, service))
        before = after
        print(
            f"round {number}: engine alone RTFx {last.engine_rtfx:.1f},"
            f" whole way {last.service_rtfx:.1f}, {last.ratio:.1%}",
            flush=True,
        )
    return rounds, server.requests()[n_before:]


def whole_turns(n_requests: float, n_clients: int) -> int:
    """As many requests for each client, rounded up."""
    return n_clients * max(1, math.ceil(n_requests / n_clients))


def stages(
    rounds: Sequence[Round],
    requests: Sequence[Mapping[str, Any]],
    frontend_ms: float,
    n_workers: int,
) -> list[Stage]:
    """By the service's own log. Inference threads work side by side: their time is shared out."""
    whole_ms, engine_ms = (
        1_000 * CLIP_S / median([getattr(one, name) for one in rounds])
        for name in ("service_rtfx", "engine_rtfx")
    )
    found = {
        "the whole way, time for one more clip": whole_ms,
        "inference threads, front end included": mean_ms(requests, "infer") / n_workers,
        "engine alone": engine_ms,
        "front end alone": frontend_ms / n_workers,
        "decoding, in threads of its own": mean_ms(requests, "decode"),
    }
    return [Stage(name, ms, ms / whole_ms) for name, ms in found.items()]


def latencies_ms(requests: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What a request waits for, on the average; other requests are worked on meanwhile."""
    return {
        "for a slot": mean_ms(requests, "wait"),
        "in the queue": mean_ms(requests, "queue"),
        "from its head to its answer": mean_ms(requests, "total"),
    }


def mean_ms(requests: Sequence[Mapping[str, Any]], stage: str) -> float:
    return float(np.mean([request[f"{stage}_ms"] for request in requests]))


def require_same(server: Server, engine: AnyEngine) -> None:
    """Raises ``SystemExit`` where the two sides would not be comparable."""
    theirs = (server.health["device"], server.health["precision"])
    ours = (str(engine.device), engine.precision)
    if theirs != ours:
        raise SystemExit(f"the service runs on {theirs}, the engine here on {ours}: not comparable")


def compare(
    arguments: argparse.Namespace, environment: Mapping[str, str]
) -> tuple[list[Round], dict[str, Any]]:
    """Both sides in turn; prints where the time goes."""
    settings = settings_of(environment)
    opened = open_as_served(arguments.model, settings)
    bare = BareEngine(opened, settings, arguments.clients)
    with serving(environment) as server:
        print(served(server), flush=True)
        require_same(server, opened.engine)
        rounds, requests = measure_rounds(bare, server, arguments)
    waits = latencies_ms(requests)
    found = stages(rounds, requests, bare.frontend_ms(), bare.n_workers)
    print(
        f"{arguments.clients} clients; the engine alone: {bare.n_workers} threads,"
        f" batches of {bare.n_rows}"
    )
    print(table(STAGE_COLUMNS, found))
    print("of a request: " + ", ".join(f"{ms:.1f} ms {name}" for name, ms in waits.items()))
    shape = {"workers": bare.n_workers, "batch_rows": bare.n_rows}
    return rounds, {**shape, "stages": found, "latencies_ms": waits}


def measure_starts(n: int) -> list[float]:
    """From the start of ``python api.py`` to the first healthy answer, seconds."""
    times_s = []
    for _ in range(n):
        with serving({"MODEL": "demo"}) as server:
            times_s.append(server.start_s)
    return times_s


def goals(rounds: Sequence[Round], starts_s: Sequence[float]) -> list[Goal]:
    found = []
    if rounds:
        percent = 100 * median([one.ratio for one in rounds])
        what = "the whole way over the engine alone, median:"
        found.append(Goal(what, percent, LEAST_RATIO_PERCENT, " %", is_least=True))
    if starts_s:
        what = "start of the demo to the first healthy answer, slowest:"
        found.append(Goal(what, max(starts_s), MOST_START_S, " s"))
    return found


def main() -> None:
    parser = make_parser(__doc__)
    add_settings(parser)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5, help="0 for none")
    parser.add_argument("--round-s", type=float, default=10.0, help="seconds of each side")
    parser.add_argument("--starts", type=int, default=3, help="0 for none")
    arguments = parser.parse_args()
    environment = environment_of(arguments.model, arguments.set)
    report = Report("overhead", changed(environment))
    print(report.header())
    rounds, results = list[Round](), dict[str, Any]()
    if arguments.rounds:
        rounds, results = compare(arguments, environment)
    starts_s = measure_starts(arguments.starts)
    if starts_s:
        print("starts of the demo: " + ", ".join(f"{start_s:.2f} s" for start_s in starts_s))
    results = {**results, "rounds": rounds, "starts_s": starts_s}
    report.conclude(results, goals(rounds, starts_s), arguments.json)


if __name__ == "__main__":
    main()
