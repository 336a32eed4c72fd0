"""Does the service keep its speed and its memory from minutes to hours, and with many clients?

``python -m bench.scaling [--model DIR] [--json FILE] [--svg FILE]``. MP3 files of some lengths are
sent one at a time, then 10 s WAV files by some clients at once, each time to a server of its own.
RSS is sampled 20 times a second; idle is what it was before the first request. The audio is made
up: voiced syllables in phrases with pauses, the same in every run.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from bench.plot import Panel, Point, render
from bench.report import (
    Goal,
    Report,
    add_settings,
    changed,
    environment_of,
    make_parser,
    median,
    numbers,
    quantile,
    table,
)
from bench.server import Load, RssPeak, run_load, served, serving

FloatArray = NDArray[np.float32]

SEED, N_PHRASES = 20_300, 32
MP3_RATE_HZ, MP3_BIT_RATE = 44_100, 64_000
CLIP_S, CLIP_RATE_HZ, N_CLIPS = 10, 16_000, 8
MB, MOST_RSS_MB, MOST_SPREAD_PERCENT = 1_000_000, 250.0, 10.0
WARM_UP_MINUTES, LEAST_RUNS, MINUTES_OF_RUNS, RUNS_BETWEEN = 1.0, 3, 60.0, 5


@dataclass(frozen=True)
class Run:
    """One file, sent alone: time for an hour of its audio, and the peak of memory meanwhile."""

    minutes: float
    wall_per_hour_s: float
    rss_over_idle_mb: float


@dataclass(frozen=True)
class DurationRow:
    """The median time of a length's runs; the memory of its first, before any longer file.

    ``relative`` is the median of how many times as long an hour took as in the runs of the shortest
    length just before and just after.
    """

    minutes: float
    n_runs: int
    wall_per_hour_s: float
    relative: float
    rss_over_idle_mb: float

    @property
    def rtfx(self) -> float:
        return 3_600 / self.wall_per_hour_s


@dataclass(frozen=True)
class LoadRow:
    n_clients: int
    n_requests: int
    rtfx: float
    p50_s: float
    p95_s: float
    rss_over_idle_mb: float


DURATION_COLUMNS = {
    "minutes": "{0.minutes:g}",
    "runs": "{0.n_runs:d}",
    "s per hour of audio": "{0.wall_per_hour_s:.2f}",
    "beside the shortest": "{0.relative:.3f}",
    "RTFx": "{0.rtfx:.0f}",
    "peak RSS over idle, MB": "{0.rss_over_idle_mb:.0f}",
}
LOAD_COLUMNS = {
    "clients": "{0.n_clients:d}",
    "requests": "{0.n_requests:d}",
    "RTFx": "{0.rtfx:.0f}",
    "p50, s": "{0.p50_s:.3f}",
    "p95, s": "{0.p95_s:.3f}",
    "peak RSS over idle, MB": "{0.rss_over_idle_mb:.0f}",
}


def phrase(rng: np.random.Generator, rate_hz: int) -> FloatArray:
    """A few syllables: harmonics of a gliding pitch under three formants, and a hiss ahead."""
    parts = []
    pitch_hz = rng.uniform(90, 220)
    for _ in range(int(rng.integers(4, 16))):
        t = np.arange(int(rng.uniform(0.12, 0.3) * rate_hz)) / rate_hz
        glide_hz = pitch_hz * (1 + rng.uniform(-0.2, 0.2) * t / t[-1])
        phase = 2 * np.pi * np.cumsum(glide_hz) / rate_hz
        formants_hz = rng.uniform((300, 900, 2_200), (800, 2_000, 3_200))
        voice = np.zeros(len(t))
        for harmonic in range(1, int(3_800 / pitch_hz)):
            nearness = np.exp(-(((harmonic * pitch_hz - formants_hz) / 180) ** 2))
            voice += (nearness * (1, 0.6, 0.3)).sum() * np.sin(harmonic * phase)
        hiss = rng.normal(0, 0.03, int(rng.uniform(0, 0.08) * rate_hz))
        parts += [hiss, 0.12 * voice * np.sqrt(np.hanning(len(t)))]
    return np.concatenate(parts).clip(-1, 1).astype(np.float32)


def speech(rng: np.random.Generator, rate_hz: int) -> Iterator[FloatArray]:
    """Without end: one of a few phrases, a pause, and so on; a faint noise under all of it."""
    phrases = [phrase(rng, rate_hz) for _ in range(N_PHRASES)]
    while True:
        spoken = rng.uniform(0.3, 1) * phrases[rng.integers(N_PHRASES)]
        sound = np.append(spoken, np.zeros(int(rng.uniform(0.2, 0.9) * rate_hz)))
        yield (sound + rng.normal(0, 0.001, len(sound))).clip(-1, 1).astype(np.float32)


def cut_off(blocks: Iterator[FloatArray], n_samples: int) -> Iterator[FloatArray]:
    while n_samples > 0:
        block = next(blocks)[:n_samples]
        n_samples -= len(block)
        yield block


def encode(
    target: BinaryIO, container: str, codec: str, rate_hz: int, blocks: Iterator[FloatArray]
) -> None:
    """Mono, block by block; MP3 at 64 kbit/s."""
    with av.open(target, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate_hz, layout="mono")
        stream.bit_rate = MP3_BIT_RATE
        stream.codec_context.options = {"compression_level": "9"}  # of LAME: the fastest
        for block in blocks:
            frame = av.AudioFrame.from_ndarray(block[None], format="flt", layout="mono")
            frame.sample_rate = rate_hz
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def make_mp3(folder: Path, minutes: float) -> Path:
    """The file of that length, made unless it is there from before."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"speech-{minutes:g}-min.mp3"
    if not path.exists():
        blocks = speech(np.random.default_rng(SEED), MP3_RATE_HZ)
        unfinished = path.with_suffix(".part")
        with unfinished.open("wb") as file:
            n_samples = int(60 * minutes * MP3_RATE_HZ)
            encode(file, "mp3", "libmp3lame", MP3_RATE_HZ, cut_off(blocks, n_samples))
        unfinished.replace(path)
    return path


def make_clips() -> list[bytes]:
    """WAV files of 10 s, 16-bit mono at 16 kHz."""
    blocks = speech(np.random.default_rng(SEED), CLIP_RATE_HZ)
    clips = []
    for _ in range(N_CLIPS):
        clip, file = cut_off(blocks, CLIP_S * CLIP_RATE_HZ), io.BytesIO()
        encode(file, "wav", "pcm_s16le", CLIP_RATE_HZ, clip)
        clips.append(file.getvalue())
    return clips


def schedule(durations_min: Sequence[float]) -> list[float]:
    """The order of the runs: the shortest ones in between all others, for what was measured apart
    is not to be compared on a machine whose speed drifts."""
    lengths = sorted(set(durations_min))
    shortest = lengths[:1] * RUNS_BETWEEN
    places = []
    for minutes in lengths[1:]:
        n_runs = max(LEAST_RUNS, round(MINUTES_OF_RUNS / minutes))
        places += [((turn + 0.5) / n_runs, minutes) for turn in range(n_runs)]
    order = [*shortest]
    for _, minutes in sorted(places):
        order += [minutes, *shortest]
    return order


def summarise(runs: Sequence[Run]) -> list[DurationRow]:
    """``runs`` as ``schedule`` has them."""
    shortest, *longer = sorted({run.minutes for run in runs})
    relative = {minutes: _beside_shortest(runs, minutes, shortest) for minutes in longer}
    rows = []
    for minutes in (shortest, *longer):
        alike = [run for run in runs if run.minutes == minutes]
        wall_per_hour_s = median([run.wall_per_hour_s for run in alike])
        rss_mb = alike[0].rss_over_idle_mb
        times = relative.get(minutes, 1.0)
        rows.append(DurationRow(minutes, len(alike), wall_per_hour_s, times, rss_mb))
    return rows


def _beside_shortest(runs: Sequence[Run], minutes: float, shortest: float) -> float:
    """How many times as long an hour took as in the shortest runs around: the median."""
    times = []
    for at, run in enumerate(runs):
        if run.minutes == minutes:
            around = runs[max(0, at - RUNS_BETWEEN) : at + RUNS_BETWEEN + 1]
            short_s = median([one.wall_per_hour_s for one in around if one.minutes == shortest])
            times.append(run.wall_per_hour_s / short_s)
    return median(times)


def spread(rows: Sequence[DurationRow]) -> float:
    """How much longer an hour of audio takes at the slowest length than at the fastest."""
    times = [row.relative for row in rows]
    return max(times) / min(times) - 1


def summarise_load(load: Load, rss_over_idle_bytes: int) -> LoadRow:
    p50_s, p95_s = (quantile(load.latencies_s, share) for share in (0.5, 0.95))
    n_requests = len(load.latencies_s)
    return LoadRow(load.n_clients, n_requests, load.rtfx, p50_s, p95_s, rss_over_idle_bytes / MB)


def measure_durations(
    environment: Mapping[str, str], durations_min: Sequence[float], folder: Path, timeout_s: float
) -> list[DurationRow]:
    files = {minutes: make_mp3(folder, minutes) for minutes in sorted(set(durations_min))}
    runs = []
    with serving(environment) as server:
        print(served(server), flush=True)
        idle_bytes = server.rss_bytes()
        run_load(server, [make_mp3(folder, WARM_UP_MINUTES)], 1, 1, timeout_s)
        for minutes in schedule(durations_min):
            with RssPeak(server) as rss:
                load = run_load(server, [files[minutes]], 1, 1, timeout_s)
            rss_mb = (rss.peak_bytes - idle_bytes) / MB
            runs.append(Run(minutes, 3_600 * load.wall_s / load.audio_s, rss_mb))
            print(f"{minutes:g} min: {load.wall_s:.2f} s, {rss_mb:+.0f} MB", flush=True)
    return summarise(runs)


def measure_loads(
    environment: Mapping[str, str], clients: Sequence[float], n_each: int, timeout_s: float
) -> list[LoadRow]:
    clips = make_clips()
    rows = []
    with serving(environment) as server:
        print(served(server), flush=True)
        idle_bytes = server.rss_bytes()
        for n_clients in map(int, clients):
            run_load(server, clips, n_clients, n_clients, timeout_s)  # to warm up
            with RssPeak(server) as rss:
                load = run_load(server, clips, n_clients, n_clients * n_each, timeout_s)
            rows.append(summarise_load(load, rss.peak_bytes - idle_bytes))
    return rows


def panels(durations: Sequence[DurationRow], loads: Sequence[LoadRow]) -> list[Panel]:
    minutes, clients = "length of the file, minutes", "clients at once"

    def lines(rows: Sequence[object], x: str, **names: str) -> dict[str, list[Point]]:
        return {
            label: [(getattr(row, x), getattr(row, name)) for row in rows]
            for label, name in names.items()
        }

    times = lines(durations, "minutes", time="wall_per_hour_s")
    memory = lines(durations, "minutes", rss="rss_over_idle_mb")
    throughput = lines(loads, "n_clients", rtfx="rtfx")
    latency = lines(loads, "n_clients", p50="p50_s", p95="p95_s")
    found = [
        Panel("Time", minutes, "s per hour of audio", times),
        Panel("Memory", minutes, "peak RSS over idle, MB", memory),
        Panel("Throughput", clients, "RTFx", throughput),
        Panel(f"Latency of {CLIP_S} s", clients, "s", latency),
    ]
    return [panel for panel in found if any(panel.lines.values())]


def goals(rows: Sequence[DurationRow]) -> list[Goal]:
    if not rows:
        return []
    longest = rows[-1]
    span = f"{rows[0].minutes:g} to {longest.minutes:g} min"
    rss = f"peak RSS over idle, {longest.minutes:g} min:"
    return [
        Goal(f"spread of an hour's time, {span}:", 100 * spread(rows), MOST_SPREAD_PERCENT, " %"),
        Goal(rss, longest.rss_over_idle_mb, MOST_RSS_MB, " MB"),
    ]


def main() -> None:
    parser = make_parser(__doc__)
    add_settings(parser)
    parser.add_argument("--durations-min", type=numbers, default="1,10,60,180", help="'' for none")
    parser.add_argument("--clients", type=numbers, default="1,2,4,8,16", help="'' for none")
    parser.add_argument("--requests", type=int, default=8, help="of each client")
    parser.add_argument("--audio", type=Path, help="keep the MP3 files in this folder")
    parser.add_argument("--svg", type=Path, help="write charts to this file")
    arguments = parser.parse_args()
    environment = environment_of(arguments.model, arguments.set)
    report = Report("scaling", changed(environment))
    print(report.header())
    durations, loads = list[DurationRow](), list[LoadRow]()
    timeout_s = arguments.timeout_s
    if arguments.durations_min:
        with tempfile.TemporaryDirectory() as folder:
            kept = arguments.audio or Path(folder)
            durations = measure_durations(environment, arguments.durations_min, kept, timeout_s)
        print(table(DURATION_COLUMNS, durations))
    if arguments.clients:
        loads = measure_loads(environment, arguments.clients, arguments.requests, timeout_s)
        print(table(LOAD_COLUMNS, loads))
    if arguments.svg and (durations or loads):
        arguments.svg.write_text(render(panels(durations, loads)), encoding="utf-8")
        print(f"written: {arguments.svg}")
    report.conclude({"durations": durations, "loads": loads}, goals(durations), arguments.json)


if __name__ == "__main__":
    main()
