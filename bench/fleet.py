"""How many workers does a load take, and what becomes of its latency? A simulation.

``python -m bench.fleet [--hours-a-day N] [--rtfx N] [--slots N] [--json FILE]``. Files arrive by
chance (Poisson) at the rate of the day's busiest hour, with lengths by chance (log-normal), and
are given to one of the workers. A worker is what the service is: slots, a waiting line with a
timeout (of 100 places unless ``--waiting`` says otherwise; the service's default is 60), and one
device whose speed the files in the slots share alike, none of them faster than a file alone.
Nothing here is measured: the speeds are given.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from bench.report import Report, quantile, table

SEED = 7
SECONDS_A_DAY = 86_400
LOADS = (0.6, 0.7, 0.8, 0.9, 0.95)  # shares of the workers' speed, in the busiest hour
POLICIES = ("random", "turns", "two", "least")


@dataclass(frozen=True)
class Demand:
    """``peak`` is the busiest hour's audio over an hour of the mean; ``sigma`` that of the log."""

    audio_hours_a_day: float = 1_000_000
    peak: float = 2.0
    mean_file_s: float = 360.0
    sigma: float = 1.0

    @property
    def rtfx(self) -> float:
        """Seconds of audio a second, in the busiest hour."""
        return self.peak * self.audio_hours_a_day * 3_600 / SECONDS_A_DAY

    @property
    def files_per_s(self) -> float:
        return self.rtfx / self.mean_file_s


@dataclass(frozen=True)
class WorkerSpec:
    """``alone_rtfx`` is the speed of a file that has the worker to itself."""

    rtfx: float
    alone_rtfx: float
    slots: int = 20
    waiting: int = 100
    queue_timeout_s: float = 30.0


@dataclass(frozen=True)
class Outcome:
    """``load`` is the demand over the speed of all, ``slowdown`` over the time that a file takes
    alone; of the requests that were answered."""

    policy: str
    n_workers: int
    load: float
    n_requests: int
    shed_percent: float
    p50_s: float
    p95_s: float
    mean_slowdown: float
    p50_slowdown: float
    p95_slowdown: float


COLUMNS = {
    "balanced by": "{0.policy}",
    "workers": "{0.n_workers:d}",
    "load": "{0.load:.0%}",
    "requests": "{0.n_requests:d}",
    "503, %": "{0.shed_percent:.2f}",
    "p50, s": "{0.p50_s:.1f}",
    "p95, s": "{0.p95_s:.1f}",
    "mean / alone": "{0.mean_slowdown:.1f}",
    "p50 / alone": "{0.p50_slowdown:.1f}",
    "p95 / alone": "{0.p95_slowdown:.1f}",
}


@dataclass
class Worker:
    """Processor sharing: all files in slots advance alike, so they end in the order of a common
    clock that counts the audio done of each."""

    spec: WorkerSpec
    now_s: float = 0.0
    done_audio_s: float = 0.0
    in_slots: list[tuple[float, int]] = field(default_factory=list)
    line: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def n_requests(self) -> int:
        return len(self.in_slots) + len(self.line)

    def next_end_s(self) -> float:
        return self.now_s + (self.in_slots[0][0] - self.done_audio_s) / self._rtfx_of_each()

    def advance(self, to_s: float) -> None:
        if self.in_slots:
            self.done_audio_s += (to_s - self.now_s) * self._rtfx_of_each()
        self.now_s = to_s

    def start(self, request: int, audio_s: float) -> None:
        heapq.heappush(self.in_slots, (self.done_audio_s + audio_s, request))

    def _rtfx_of_each(self) -> float:
        return min(self.spec.alone_rtfx, self.spec.rtfx / len(self.in_slots))


class Fleet:
    """Workers behind a balancer; ``pick`` gives the worker of the next request."""

    def __init__(
        self,
        workers: Sequence[Worker],
        pick: Callable[[Sequence[Worker]], int],
        audio_s: Sequence[float],
    ) -> None:
        self._workers = workers
        self._pick = pick
        self._audio_s = audio_s
        self._arrivals_s: dict[int, float] = {}
        # Of a worker the entry with its latest number counts.
        self._ends: list[tuple[float, int, int]] = []
        self._numbers = [0] * len(workers)
        self.latencies_s: dict[int, float] = {}

    def arrive(self, at_s: float, request: int) -> None:
        self._run_until(at_s)
        index = self._pick(self._workers)
        worker = self._workers[index]
        worker.advance(at_s)
        self._arrivals_s[request] = at_s
        if len(worker.in_slots) < worker.spec.slots:
            worker.start(request, self._audio_s[request])
            self._expect(index)
            return
        self._drop_late(worker)
        if len(worker.line) < worker.spec.waiting:
            worker.line.append((at_s, request))

    def finish(self) -> None:
        self._run_until(math.inf)

    def _run_until(self, at_s: float) -> None:
        while self._ends and self._ends[0][0] <= at_s:
            end_s, number, index = heapq.heappop(self._ends)
            if number == self._numbers[index]:
                self._end(index, end_s)

    def _end(self, index: int, end_s: float) -> None:
        worker = self._workers[index]
        worker.advance(end_s)
        worker.done_audio_s, request = heapq.heappop(worker.in_slots)
        self.latencies_s[request] = end_s - self._arrivals_s[request]
        self._drop_late(worker)
        if worker.line:
            _, request = worker.line.popleft()
            worker.start(request, self._audio_s[request])
        self._expect(index)

    def _drop_late(self, worker: Worker) -> None:
        while worker.line and worker.now_s - worker.line[0][0] > worker.spec.queue_timeout_s:
            worker.line.popleft()

    def _expect(self, index: int) -> None:
        self._numbers[index] += 1
        worker = self._workers[index]
        if worker.in_slots:
            heapq.heappush(self._ends, (worker.next_end_s(), self._numbers[index], index))


def picker(policy: str, rng: np.random.Generator) -> Callable[[Sequence[Worker]], int]:
    """``turns``: one after the other; ``two``: the emptier of two by chance; ``least``: of all."""
    turns = itertools.count()

    def by_chance(workers: Sequence[Worker]) -> int:
        return int(rng.random() * len(workers))

    def in_turn(workers: Sequence[Worker]) -> int:
        return next(turns) % len(workers)

    def of_two(workers: Sequence[Worker]) -> int:
        one, other = by_chance(workers), by_chance(workers)
        return one if workers[one].n_requests <= workers[other].n_requests else other

    def of_all(workers: Sequence[Worker]) -> int:
        return min(range(len(workers)), key=lambda index: workers[index].n_requests)

    return {"random": by_chance, "turns": in_turn, "two": of_two, "least": of_all}[policy]


def simulate(
    demand: Demand, spec: WorkerSpec, n_workers: int, policy: str, n_requests: int
) -> Outcome:
    """The first tenth of the requests only fills the workers and is not counted."""
    rng = np.random.default_rng(SEED)
    arrivals_s = np.cumsum(rng.exponential(1 / demand.files_per_s, n_requests)).tolist()
    mu = math.log(demand.mean_file_s) - demand.sigma**2 / 2
    audio_s = rng.lognormal(mu, demand.sigma, n_requests).tolist()
    fleet = Fleet([Worker(spec) for _ in range(n_workers)], picker(policy, rng), audio_s)
    for request, at_s in enumerate(arrivals_s):
        fleet.arrive(at_s, request)
    fleet.finish()
    counted = range(n_requests // 10, n_requests)
    answered = [request for request in counted if request in fleet.latencies_s]
    latencies_s = [fleet.latencies_s[request] for request in answered]
    slowdowns = [
        fleet.latencies_s[request] * spec.alone_rtfx / audio_s[request] for request in answered
    ]
    return Outcome(
        policy=policy,
        n_workers=n_workers,
        load=demand.rtfx / (spec.rtfx * n_workers),
        n_requests=len(counted),
        shed_percent=100 * (1 - len(answered) / len(counted)),
        p50_s=quantile(latencies_s, 0.5),
        p95_s=quantile(latencies_s, 0.95),
        mean_slowdown=sum(slowdowns) / len(slowdowns),
        p50_slowdown=quantile(slowdowns, 0.5),
        p95_slowdown=quantile(slowdowns, 0.95),
    )


def sweep(
    demand: Demand, spec: WorkerSpec, policies: Sequence[str], n_requests: int
) -> list[Outcome]:
    """Each policy at each of ``LOADS``, with as many workers as that takes."""
    sizes = [math.ceil(demand.rtfx / (load * spec.rtfx)) for load in LOADS]
    return [
        simulate(demand, spec, n_workers, policy, n_requests)
        for policy in policies
        for n_workers in sizes
    ]


def main() -> None:
    demand, spec = Demand(), WorkerSpec(rtfx=376, alone_rtfx=376)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours-a-day", type=float, default=demand.audio_hours_a_day)
    parser.add_argument("--peak", type=float, default=demand.peak)
    parser.add_argument("--mean-file-s", type=float, default=demand.mean_file_s)
    parser.add_argument("--sigma", type=float, default=demand.sigma)
    parser.add_argument("--rtfx", type=float, default=spec.rtfx, help="of one worker")
    parser.add_argument("--alone-rtfx", type=float, default=spec.alone_rtfx, help="of a lone file")
    parser.add_argument("--slots", type=int, default=spec.slots)
    parser.add_argument("--waiting", type=int, default=spec.waiting)
    parser.add_argument("--policy", nargs="*", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--requests", type=int, default=60_000)
    parser.add_argument("--json", type=Path, help="write all of it to this file")
    arguments = parser.parse_args()
    demand = Demand(arguments.hours_a_day, arguments.peak, arguments.mean_file_s, arguments.sigma)
    spec = WorkerSpec(arguments.rtfx, arguments.alone_rtfx, arguments.slots, arguments.waiting)
    report = Report("fleet", {**asdict(demand), **asdict(spec)})
    print(report.header())
    print(f"{demand.rtfx:.0f} s of audio and {demand.files_per_s:.1f} files a second")
    rows = sweep(demand, spec, arguments.policy, arguments.requests)
    print(table(COLUMNS, rows))
    report.conclude({"rows": rows}, (), arguments.json)


if __name__ == "__main__":
    main()
