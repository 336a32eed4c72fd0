"""Does the service keep its memory, its descriptors and its threads over thousands of requests?

``python -m bench.soak [--requests N] [--model DIR] [--json FILE] [--svg FILE]``. Eight clients at
once send files of some lengths and formats, and every fault that a client can have: noise instead
of audio, files cut off, forms that are broken, hang-ups in the upload and in the work. Each answer
must be the one that its request deserves. The service is looked at when all of a round is answered.
"""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from bench.load import Exchange, Plan, post
from bench.plot import Panel, render
from bench.report import Goal, Report, add_settings, changed, environment_of, make_parser, table
from bench.scaling import CLIP_RATE_HZ, MP3_RATE_HZ, SEED, cut_off, encode, speech
from bench.server import Client, Server, served, serving

N_REQUESTS, N_CLIENTS, WARM_REQUESTS = 20_000, 8, 2_000
# Requests at which the service is looked at, as shares of all of them.
LOOKS = (0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0)
MB, MOST_GROWTH_PERCENT = 1_000_000, 2.0
# At rest for this long it has given back what memory it can.
PATIENCE_S, SETTLE_S = 120.0, 12.0
DESCRIPTORS_A_DECODER = 2  # its conversation, and where its host tells how it ended


@dataclass(frozen=True)
class Kind:
    """A request: ``status`` is what it deserves, or 0 where the client hangs up.

    It does so when ``sent_share`` of the request is sent.
    """

    name: str
    weight: int
    payload: bytes
    status: int = 200
    sent_share: float = 1.0


@dataclass(frozen=True)
class Look:
    """``n_descriptors`` is without those for decoders: how many of these are idle is chance."""

    n_requests: int
    rss_mb: float
    n_descriptors: int
    n_threads: int
    requests_per_s: float


COLUMNS = {
    "requests": "{0.n_requests:d}",
    "RSS, MB": "{0.rss_mb:.1f}",
    "descriptors": "{0.n_descriptors:d}",
    "threads": "{0.n_threads:d}",
    "requests/s": "{0.requests_per_s:.0f}",
}


def kinds(port: int) -> list[Kind]:
    plan = Plan(port, 0.0, ())
    short, clip, long = _wav(1.0), _wav(4.0), _wav(45.0)
    noise = np.random.default_rng(SEED).bytes(20_000)
    good = post(plan, clip)
    return [
        Kind("1 s WAV", 40, post(plan, short)),
        Kind("4 s WAV", 15, good),
        Kind("4 s MP3", 10, post(plan, _mp3(4.0))),
        Kind("45 s WAV, in chunks", 2, post(plan, long)),
        Kind("noise", 6, post(plan, noise), 415),
        Kind("empty file", 4, post(plan, b""), 400),
        Kind("half a WAV", 5, post(plan, clip[: len(clip) // 2]), 422),
        Kind("no such field", 4, post(Plan(port, 0.0, (), field="file"), short), 422),
        Kind("no closing boundary", 4, _shortened(good, 12), 400),
        Kind("not a form", 4, good.replace(b"multipart/form-data", b"application/json", 1), 415),
        Kind("hang-up in the upload", 3, good, 0, 0.5),
        Kind("hang-up in the work", 3, post(plan, long), 0),
    ]


def _wav(duration_s: float) -> bytes:
    return _encoded("wav", "pcm_s16le", CLIP_RATE_HZ, duration_s)


def _mp3(duration_s: float) -> bytes:
    return _encoded("mp3", "libmp3lame", MP3_RATE_HZ, duration_s)


def _encoded(container: str, codec: str, rate_hz: int, duration_s: float) -> bytes:
    file = io.BytesIO()
    blocks = speech(np.random.default_rng(SEED), rate_hz)
    encode(file, container, codec, rate_hz, cut_off(blocks, int(duration_s * rate_hz)))
    return file.getvalue()


def _shortened(payload: bytes, n_bytes: int) -> bytes:
    """A request whose body ends so many bytes too early, and says so."""
    head, _, body = payload.partition(b"\r\n\r\n")
    length = b"Content-Length: %d"
    shorter = head.replace(length % len(body), length % (len(body) - n_bytes))
    return shorter + b"\r\n\r\n" + body[:-n_bytes]


async def send(kind: Kind, port: int) -> int:
    """The status of the answer, 0 where there is none."""
    payload = kind.payload[: int(len(kind.payload) * kind.sent_share)]
    now_s = time.perf_counter()
    transport, exchange = await asyncio.get_running_loop().create_connection(
        lambda: Exchange(payload, False, now_s), "127.0.0.1", port
    )
    # Those who hang up stay for a moment, so that some of the work has begun.
    timeout_s = PATIENCE_S if kind.status else 0.02
    await asyncio.wait({exchange.done}, timeout=timeout_s)
    sample = exchange.sample(now_s)
    transport.abort()
    return sample.status if kind.status else 0


async def run_round(choices: Sequence[Kind], port: int) -> Counter[str]:
    """Send them all, some at once; the names of those that were answered wrongly."""
    wrong: Counter[str] = Counter()
    ahead = iter(choices)

    async def client() -> None:
        for kind in ahead:
            status = await send(kind, port)
            if status != kind.status:
                wrong[f"{kind.name}: {status}"] += 1

    await asyncio.gather(*(client() for _ in range(N_CLIENTS)))
    return wrong


def look(server: Server, n_requests: int, requests_per_s: float) -> Look:
    """Once nothing is in hand."""
    with Client(server.port, PATIENCE_S) as client:
        while (requests := client.get("/health")[1]["requests"])["active"] + requests["waiting"]:
            time.sleep(0.05)
    time.sleep(SETTLE_S)
    process = psutil.Process(server.pid)
    decoders = [one for host in process.children() for one in host.children()]
    n_descriptors = process.num_fds() - DESCRIPTORS_A_DECODER * len(decoders)
    rss_mb = server.rss_bytes() / MB
    return Look(n_requests, rss_mb, n_descriptors, process.num_threads(), requests_per_s)


def soak(server: Server, n_requests: int) -> tuple[list[Look], Counter[str]]:
    rng, table_of_kinds = random.Random(SEED), kinds(server.port)
    weights = [kind.weight for kind in table_of_kinds]
    looks, wrong, n_done = [look(server, 1, 0.0)], Counter[str](), 0
    for share in LOOKS:
        n_round = int(share * n_requests) - n_done
        began_s = time.perf_counter()
        wrong += asyncio.run(
            run_round(rng.choices(table_of_kinds, weights, k=n_round), server.port)
        )
        n_done += n_round
        looks.append(look(server, n_done, n_round / (time.perf_counter() - began_s)))
        print(table(COLUMNS, looks[-1:]).splitlines()[-1], dict(wrong) or "", flush=True)
    return looks, wrong


def goals(looks: Sequence[Look], wrong: Counter[str], warm_requests: int) -> list[Goal]:
    warm = next(one for one in looks if one.n_requests >= warm_requests)
    later = [one for one in looks if one.n_requests >= warm_requests]
    growth = 100 * (max(one.rss_mb for one in later) / warm.rss_mb - 1)
    descriptors = max(one.n_descriptors for one in later) - warm.n_descriptors
    threads = max(one.n_threads for one in later) - warm.n_threads
    return [
        Goal(f"RSS growth after {warm.n_requests} requests", growth, MOST_GROWTH_PERCENT, " %"),
        Goal("more descriptors since", descriptors, 0),
        Goal("more threads since", threads, 0),
        Goal("requests answered wrongly", wrong.total(), 0),
    ]


def panels(looks: Sequence[Look]) -> list[Panel]:
    counts = {
        "descriptors": [(one.n_requests, one.n_descriptors) for one in looks[1:]],
        "threads": [(one.n_requests, one.n_threads) for one in looks[1:]],
    }
    rss = {"RSS": [(one.n_requests, one.rss_mb) for one in looks[1:]]}
    return [
        Panel("Memory of the service", "requests", "RSS, MB", rss),
        Panel("Descriptors and threads", "requests", "", counts),
    ]


def main() -> None:
    parser = make_parser(__doc__)
    add_settings(parser)
    parser.add_argument("--requests", type=int, default=N_REQUESTS)
    parser.add_argument("--svg", type=Path, help="draw the figures there")
    arguments = parser.parse_args()
    environment = environment_of(arguments.model, arguments.set)
    report = Report("soak", {**changed(environment), "requests": arguments.requests})
    print(report.header())
    with serving(environment) as server:
        print(f"served: {served(server)}", flush=True)
        looks, wrong = soak(server, arguments.requests)
    print(table(COLUMNS, looks))
    warm_requests = min(WARM_REQUESTS, arguments.requests // 2)
    report.conclude(
        {"looks": looks, "wrong": wrong}, goals(looks, wrong, warm_requests), arguments.json
    )
    if arguments.svg is not None:
        arguments.svg.write_text(render(panels(looks)), encoding="utf-8")


if __name__ == "__main__":
    main()
