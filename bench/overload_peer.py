"""What does funasr-server do at 1, 2, 5 and 10 times what it can do, on the same model?

``python -m bench.overload_peer --model DIR [--levels 1,2,5,10]``. As ``bench.overload``, but for
each level it is started anew, since it turns nobody away and what it has taken would go on. Clients
wait for 30 s. It needs nothing beyond ``requirements-dev.txt``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from bench.compare import CACHE, set_up
from bench.load import Plan, generate
from bench.overload import CAPACITY_S, LEVELS, goodput_hz, make_clip, p99, told
from bench.peers.machine import n_cores
from bench.peers.participants import OPENAI_PATH, start
from bench.peers.server import Server
from bench.report import Report, make_parser, numbers, table

CLIP_S, CLIENTS, PATIENCE_S = 5.0, 4, 30.0


@dataclass(frozen=True)
class Row:
    multiple: float
    rate_hz: float
    goodput_hz: float
    accepted_s: float
    live_s: float
    outcomes: str


COLUMNS = {
    "load": "{0.multiple:g}×",
    "requests/s": "{0.rate_hz:.1f}",
    "200/s": "{0.goodput_hz:.1f}",
    "accepted p99, s": "{0.accepted_s:.1f}",
    "live p99, s": "{0.live_s:.1f}",
    "outcomes (0: no answer in 30 s)": "{0.outcomes}",
}


def measure(arguments: argparse.Namespace, clip: Path, multiple: float) -> Row:
    """With a server of its own."""
    with set_up(arguments.model, n_cores(), CACHE, None) as setup:
        server = start("funasr-server", setup)
        assert isinstance(server, Server)
        port = urlsplit(server.url).port
        assert port is not None
        server.run([clip], 1)
        plan = Plan(
            port,
            CAPACITY_S,
            (str(clip),),
            n_clients=CLIENTS,
            patience_s=PATIENCE_S,
            path=OPENAI_PATH,
            field="file",
            model="custom",
            probe="/health",
        )
        capacity_hz = sum(one.status == 200 for one in generate(plan).requests) / CAPACITY_S
        rate_hz = multiple * capacity_hz
        level = replace(plan, duration_s=arguments.seconds, rate_hz=rate_hz, n_clients=0)
        result = generate(level)
    good = [one for one in result.requests if one.status == 200]
    return Row(
        multiple,
        rate_hz,
        goodput_hz(result.requests, arguments.seconds),
        p99([one.total_s for one in good]),
        p99([one.total_s for one in result.probes]),
        told(Counter(one.status for one in result.requests)),
    )


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--levels", type=numbers, default=numbers(LEVELS))
    parser.add_argument("--seconds", type=float, default=10.0, help="of each level")
    arguments = parser.parse_args()
    report = Report("overload of funasr-server", {"model": arguments.model})
    print(report.header(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        clip = make_clip(Path(folder), CLIP_S)
        rows = [measure(arguments, clip, multiple) for multiple in arguments.levels]
    print(table(COLUMNS, rows))
    report.conclude({"rows": rows}, [], arguments.json)


if __name__ == "__main__":
    main()
