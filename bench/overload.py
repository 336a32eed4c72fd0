"""Does the service keep its promises at 1, 2, 5 and 10 times what it can do?

``python -m bench.overload [--engine fake|model] [--model DIR] [--rounds N] [--json FILE]``. Its
capacity is what as many clients as there are slots get in a closed loop. Then requests come in an
open loop, from a process of its own, at each multiple of that. The capacity is measured before and
after each level, and their mean is the peak that the level is held to: a machine that others use
too has no speed of its own. Of several rounds the median of the goodput is judged, since both
parts of that share are noisy, and the worst of all else.

One in ten clients sends all of its body before it reads. A request has one outcome, and the
service must have counted the same ones. Probes ask for ``/health/live`` 20 times a second
meanwhile. Idle is the service after ten requests one by one, and it is back to normal when nobody
waits and a lone request takes no more than twice as long as then.

With the fake engine a chunk takes 50 ms and no processor time, so that what is measured is the
service itself. Both share the processors with the generator, whose lag and part of a core are
printed: on two cores what it takes is missing from the goodput of a real model.
"""

from __future__ import annotations

import re
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.load import Plan, Result, Sample, generate
from bench.report import (
    DEMO_FOLDER,
    Goal,
    Report,
    add_settings,
    changed,
    environment_of,
    make_parser,
    median,
    numbers,
    quantile,
    settings_of,
    table,
)
from bench.scaling import CLIP_RATE_HZ, SEED, cut_off, encode, speech
from bench.server import Client, RssPeak, Server, served, serving
from config import Settings

LEVELS = "1,2,5,10"
CAPACITY_S, IDLE_REQUESTS, POLL_S = 10.0, 10, 0.05
SETTLE_S, RECOVERY_S = 30.0, 5.0
RAMP_SHARE = 0.3  # of a level's time, until the waiting line is full
MB = 1_000_000
GOODPUT_SHARE, READ_SHARE, ACCEPTED_SLACK_S, RSS_SHARE = 0.9, 0.99, 0.25, 0.1
# Clip, and the most for the answer of a probe and of a request that is shed.
ENGINES = {"fake": (1.0, 0.1, 0.1), "model": (5.0, 0.5, 0.25)}

_COUNT = re.compile(
    r'^sensevoice_requests_total\{outcome="(\w+)",route="/transcribe",status="(\d+)"\} (\S+)$', re.M
)


@dataclass(frozen=True)
class Observed:
    """What came of one plan: on the clients' side, and on the service's."""

    result: Result
    counted: Counter[int]
    peak_rss_mb: float
    recovery_s: float


@dataclass(frozen=True)
class Level:
    """One multiple of the capacity; times in seconds, p99."""

    multiple: float
    rate_hz: float
    peak_hz: float
    goodput_hz: float
    accepted_s: float
    service_s: float
    shed_s: float
    live_s: float
    read_share: float
    retry_after: tuple[int, ...]
    outcomes: dict[int, int]
    counted: dict[int, int]
    peak_rss_mb: float
    recovery_s: float
    lag_s: float
    generator_cores: float

    @property
    def shed_ms(self) -> float:
        return 1_000 * self.shed_s

    @property
    def live_ms(self) -> float:
        return 1_000 * self.live_s

    @property
    def lag_ms(self) -> float:
        return 1_000 * self.lag_s

    @property
    def goodput_percent(self) -> float:
        """Of the peak, or of what was asked for where that is less."""
        return 100 * self.goodput_hz / min(self.peak_hz, self.rate_hz)

    @property
    def told(self) -> str:
        return told(self.outcomes)


COLUMNS = {
    "load": "{0.multiple:g}×",
    "requests/s": "{0.rate_hz:.1f}",
    "peak/s": "{0.peak_hz:.1f}",
    "200/s": "{0.goodput_hz:.1f}",
    "of the peak": "{0.goodput_percent:.1f}%",
    "accepted p99, s": "{0.accepted_s:.2f}",
    "of it service p99, s": "{0.service_s:.2f}",
    "shed p99, ms": "{0.shed_ms:.0f}",
    "live p99, ms": "{0.live_ms:.0f}",
    "outcomes": "{0.told}",
    "peak RSS, MB": "{0.peak_rss_mb:.0f}",
    "normal after, s": "{0.recovery_s:.1f}",
    "generator's lag, ms": "{0.lag_ms:.0f}",
    "its share of a core": "{0.generator_cores:.0%}",
}


@dataclass(frozen=True)
class Measured:
    idle_s: float
    idle_rss_mb: float
    settled_rss_mb: float
    levels: tuple[Level, ...]


def make_clip(folder: Path, duration_s: float) -> Path:
    path = folder / f"clip-{duration_s:g}.wav"
    blocks = speech(np.random.default_rng(SEED), CLIP_RATE_HZ)
    n_samples = int(duration_s * CLIP_RATE_HZ)
    with path.open("wb") as file:
        encode(file, "wav", "pcm_s16le", CLIP_RATE_HZ, cut_off(blocks, n_samples))
    return path


def measure(
    server: Server, clip: Path, slots: int, multiples: Sequence[float], level_s: float
) -> Measured:
    idle_s = _latency_s(server, clip, IDLE_REQUESTS)
    idle_rss_mb = server.rss_bytes() / MB
    capacity_hz = _capacity_hz(server, clip, slots)
    print(f"capacity {capacity_hz:.1f} requests/s, idle {1_000 * idle_s:.0f} ms", flush=True)
    levels = []
    for multiple in multiples:
        plan = Plan(server.port, level_s, (str(clip),), rate_hz=multiple * capacity_hz)
        seen = _observe(server, clip, plan, idle_s)
        before_hz, capacity_hz = capacity_hz, _capacity_hz(server, clip, slots)
        levels.append(_level(multiple, (before_hz + capacity_hz) / 2, plan, seen))
        print(table(COLUMNS, levels[-1:]), flush=True)
    time.sleep(SETTLE_S)
    return Measured(idle_s, idle_rss_mb, server.rss_bytes() / MB, tuple(levels))


def _capacity_hz(server: Server, clip: Path, slots: int) -> float:
    plan = Plan(server.port, CAPACITY_S, (str(clip),), n_clients=slots)
    return goodput_hz(generate(plan).requests, CAPACITY_S)


def _observe(server: Server, clip: Path, plan: Plan, idle_s: float) -> Observed:
    before = _counted(server)
    with RssPeak(server) as rss:
        result = generate(plan)
        _until_empty(server)  # the last answer is counted after it has been sent
    counted = _counted(server)
    counted.subtract(before)
    last_s = max(sample.began_s + sample.total_s for sample in result.requests)
    recovery_s = max(0.0, last_s - plan.duration_s) + _until_normal(server, clip, idle_s)
    return Observed(result, counted, rss.peak_bytes / MB, recovery_s)


def _level(multiple: float, peak_hz: float, plan: Plan, seen: Observed) -> Level:
    result = seen.result
    good = [sample for sample in result.requests if sample.status == 200]
    shed = [sample for sample in result.requests if sample.status == 503]
    at_once = [one for one in shed if not one.sends_first and not one.wait_s]
    refused_first = [one for one in result.requests if one.sends_first and one.status != 200]
    n_read = sum(one.status != 0 for one in refused_first)
    return Level(
        multiple=multiple,
        rate_hz=plan.rate_hz,
        peak_hz=peak_hz,
        goodput_hz=goodput_hz(result.requests, plan.duration_s),
        accepted_s=p99([one.total_s for one in good]),
        service_s=p99([one.served_s - one.wait_s for one in good]),
        shed_s=p99([one.status_s for one in at_once]),
        live_s=p99([one.total_s for one in result.probes]),
        read_share=n_read / len(refused_first) if refused_first else 1.0,
        retry_after=tuple(sorted({one.retry_after_s for one in shed})),
        outcomes=dict(Counter(sample.status for sample in result.requests)),
        counted={status: count for status, count in seen.counted.items() if count},
        peak_rss_mb=seen.peak_rss_mb,
        recovery_s=seen.recovery_s,
        lag_s=result.lag_s,
        generator_cores=result.cpu_s / plan.duration_s,
    )


def told(outcomes: Mapping[int, int]) -> str:
    return ", ".join(f"{count} × {status}" for status, count in sorted(outcomes.items()))


def p99(values: Sequence[float]) -> float:
    return quantile(values, 0.99) if values else 0.0


def goodput_hz(samples: Sequence[Sample], duration_s: float) -> float:
    """Of answers within the plan's time, once the line had filled."""
    from_s = RAMP_SHARE * duration_s
    ends_s = [one.began_s + one.total_s for one in samples if one.status == 200]
    return sum(from_s <= end_s < duration_s for end_s in ends_s) / (duration_s - from_s)


def _latency_s(server: Server, clip: Path, n_requests: int) -> float:
    with Client(server.port, 60.0) as client:
        content = clip.read_bytes()
        return quantile([client.transcribe(content).wall_s for _ in range(n_requests)], 0.5)


def _until_empty(server: Server) -> None:
    with Client(server.port, 60.0) as client:
        while (requests := client.get("/health")[1]["requests"])["active"] + requests["waiting"]:
            time.sleep(POLL_S)


def _until_normal(server: Server, clip: Path, idle_s: float) -> float:
    """Seconds until a lone request takes no more than twice what it takes when idle, from now."""
    began_s, last_s = time.perf_counter(), 0.0
    while _latency_s(server, clip, 1) > 2 * idle_s:
        last_s = time.perf_counter() - began_s
    return last_s


def _counted(server: Server) -> Counter[int]:
    """What the service says that it has answered, by status."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
        text = answer.read().decode()
    counts: Counter[int] = Counter()
    for _, status, count in _COUNT.findall(text):
        counts[int(status)] += int(float(count))
    return counts


def goals_of(measured: Measured, settings: Settings, live_s: float, shed_s: float) -> list[Goal]:
    multiples = dict.fromkeys(level.multiple for level in measured.levels)
    goals = []
    for multiple in multiples:
        levels = [level for level in measured.levels if level.multiple == multiple]
        of_each = _goals_of(levels, settings, live_s, shed_s)
        peak_mb = max(level.peak_rss_mb for level in levels)
        rss = Goal("RSS", peak_mb, _most_rss_mb(measured, settings), " MB")
        goals += [replace(goal, what=f"at {multiple:g}×: {goal.what}") for goal in (*of_each, rss)]
    settled = 100 * (measured.settled_rss_mb / measured.idle_rss_mb - 1)
    return [*goals, Goal("RSS over idle 30 s later", settled, 100 * RSS_SHARE, " %")]


def _goals_of(
    levels: Sequence[Level], settings: Settings, live_s: float, shed_s: float
) -> list[Goal]:
    """Of all runs at the same multiple."""
    line_share = settings.MAX_WAITING_REQUESTS / settings.MAX_CONCURRENT_REQUESTS
    accepted = max(levels, key=lambda level: level.accepted_s - most_s(level, line_share))
    goodput = median([level.goodput_percent for level in levels])
    read = 100 * min(level.read_share for level in levels)
    n_runs = "" if len(levels) == 1 else f", median of {len(levels)} runs"
    return [
        Goal(
            f"goodput of the peak, or of what was asked for{n_runs}",
            goodput,
            100 * GOODPUT_SHARE,
            " %",
            is_least=True,
        ),
        Goal("accepted p99", accepted.accepted_s, most_s(accepted, line_share), " s"),
        Goal("shed p99", max(level.shed_ms for level in levels), 1_000 * shed_s, " ms"),
        Goal("live p99", max(level.live_ms for level in levels), 1_000 * live_s, " ms"),
        Goal("read", read, 100 * READ_SHARE, " %", is_least=True),
        Goal("normal after", max(level.recovery_s for level in levels), RECOVERY_S, " s"),
        Goal("outcomes that were not counted alike", sum(map(_difference, levels)), 0),
    ]


def most_s(level: Level, line_share: float) -> float:
    """What an accepted request may take, by what the service took for the others."""
    return (1 + line_share) * level.service_s + ACCEPTED_SLACK_S


def _most_rss_mb(measured: Measured, settings: Settings) -> float:
    """Idle, and for each slot a body in memory and the samples of its chunks in flight."""
    chunk_bytes = settings.LARGE_FILE_DURATION_SEC * 16_000 * 4
    slot_bytes = settings.UPLOAD_MEMORY_MB * 2**20 + settings.CHUNKS_IN_FLIGHT * chunk_bytes
    return measured.idle_rss_mb + settings.MAX_CONCURRENT_REQUESTS * slot_bytes / MB


def _difference(level: Level) -> int:
    statuses = {*level.outcomes, *level.counted}
    return sum(abs(level.outcomes.get(s, 0) - level.counted.get(s, 0)) for s in statuses)


def main() -> None:
    parser = make_parser(__doc__)
    add_settings(parser)
    parser.add_argument("--engine", choices=ENGINES, default="fake")
    parser.add_argument("--levels", type=numbers, default=numbers(LEVELS))
    parser.add_argument("--seconds", type=float, default=20.0, help="of each level")
    parser.add_argument("--rounds", type=int, default=1, help="of all levels")
    arguments = parser.parse_args()
    clip_s, live_s, shed_s = ENGINES[arguments.engine]
    environment = environment_of(arguments.model or DEMO_FOLDER, arguments.set)
    settings = settings_of(environment)
    report = Report("overload", {**changed(environment), "engine": arguments.engine})
    print(report.header())
    command = ("-m", "bench.fake_engine") if arguments.engine == "fake" else ("api.py",)
    with tempfile.TemporaryDirectory() as folder, serving(environment, command) as server:
        print(f"served: {served(server)}", flush=True)
        clip = make_clip(Path(folder), clip_s)
        slots = settings.MAX_CONCURRENT_REQUESTS
        levels = arguments.levels * arguments.rounds
        measured = measure(server, clip, slots, levels, arguments.seconds)
    print(table(COLUMNS, measured.levels))
    goals = goals_of(measured, settings, live_s, shed_s)
    report.conclude({"overload": measured}, goals, arguments.json)


if __name__ == "__main__":
    main()
