"""How long does a short clip take while hours of audio are being transcribed?

``python -m bench.fairness [--minutes N] [--model DIR] [--json FILE]``. A 5 s clip is sent again and
again to an idle service, and then while a long file is worked on. Its p95 may be twice what it is
when idle, and one batch, since a batch that has begun is not broken off.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from bench.overload import make_clip
from bench.report import Goal, Report, add_settings, changed, environment_of, make_parser, quantile
from bench.scaling import make_mp3
from bench.server import Client, Server, served, serving

CLIP_S, PAUSE_S = 5.0, 0.05
IDLE_REQUESTS, MOST_REQUESTS, WARM_UP_REQUESTS = 50, 400, 10


def latencies_s(
    server: Server, clip: bytes, go_on: Callable[[int], bool], timeout_s: float
) -> list[float]:
    """Of one clip after another, with a pause that keeps them out of step with the batches."""
    found: list[float] = []
    pause = threading.Event()
    with Client(server.port, timeout_s) as client:
        while go_on(len(found)):
            found.append(client.transcribe(clip).wall_s)
            pause.wait(PAUSE_S * (len(found) % 7) / 7)
    return found


def batch_s(server: Server) -> tuple[float, int]:
    """Seconds in the model so far, and batches."""
    with Client(server.port, 10.0) as client:
        batches = client.get("/health")[1]["batches"]
    return float(batches["infer_s"]), int(batches["batches"])


def measure(
    server: Server, clip: bytes, long: Path, timeout_s: float
) -> tuple[list[float], list[float], float]:
    """Idle and busy latencies, and the mean duration of a batch when busy; seconds.

    The long file may end first, and is given up if it does not.
    """
    latencies_s(server, clip, lambda n: n < WARM_UP_REQUESTS, timeout_s)
    idle_s = latencies_s(server, clip, lambda n: n < IDLE_REQUESTS, timeout_s)

    has_ended = threading.Event()

    def send_long() -> None:
        # What is still worked on when the service is told to stop is answered with an error.
        given_up = suppress(OSError, HTTPException, RuntimeError)
        with given_up, Client(server.port, timeout_s) as client:
            client.transcribe(long)
        has_ended.set()

    before_s, n_before = batch_s(server)
    threading.Thread(target=send_long, daemon=True).start()
    while batch_s(server)[1] == n_before:
        has_ended.wait(PAUSE_S)
    busy_s = latencies_s(
        server, clip, lambda n: n < MOST_REQUESTS and not has_ended.is_set(), timeout_s
    )
    after_s, n_after = batch_s(server)
    return idle_s, busy_s, (after_s - before_s) / (n_after - n_before)


def main() -> None:
    parser = make_parser(__doc__)
    add_settings(parser)
    parser.add_argument("--minutes", type=float, default=180.0, help="of the long file")
    parser.add_argument("--files", type=Path, help="keep the long file there")
    arguments = parser.parse_args()
    environment = environment_of(arguments.model, arguments.set)
    report = Report("fairness", {**changed(environment), "minutes": arguments.minutes})
    print(report.header())
    with tempfile.TemporaryDirectory() as folder, serving(environment) as server:
        print(f"served: {served(server)}", flush=True)
        clip = make_clip(Path(folder), CLIP_S).read_bytes()
        long = make_mp3(arguments.files or Path(folder), arguments.minutes)
        idle_s, busy_s, one_batch_s = measure(server, clip, long, arguments.timeout_s)
    idle_p95_s, busy_p95_s = quantile(idle_s, 0.95), quantile(busy_s, 0.95)
    print(
        f"p50 and p95 of {len(idle_s)} idle: {1_000 * quantile(idle_s, 0.5):.0f} and"
        f" {1_000 * idle_p95_s:.0f} ms; of {len(busy_s)} busy: {1_000 * quantile(busy_s, 0.5):.0f}"
        f" and {1_000 * busy_p95_s:.0f} ms; a batch: {1_000 * one_batch_s:.0f} ms"
    )
    bound_ms = 1_000 * (2 * idle_p95_s + one_batch_s)
    goal = Goal("p95 of a clip meanwhile", 1_000 * busy_p95_s, round(bound_ms, 1), " ms")
    results = {"idle_s": idle_s, "busy_s": busy_s, "batch_s": one_batch_s}
    report.conclude(results, [goal], arguments.json)


if __name__ == "__main__":
    main()
