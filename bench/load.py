"""An open-loop generator of requests, in a process of its own, to the loopback alone.

In an open loop a request goes out when its time has come, however many have not come back, as it
is with clients who do not know of each other. Raw sockets, a connection a request, and bodies made
beforehand keep it cheap: it shares the processors with the service that it measures. It is bounded
in number and time. ``python -m bench.load PLAN`` takes a ``Plan`` as JSON and prints a ``Result``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Coroutine, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import uvloop

ROOT = Path(__file__).resolve().parents[1]
MOST_REQUESTS, LONGEST_S = 50_000, 600.0
PROBES_HZ = 20.0
SENDS_FIRST_SHARE = 0.1


@dataclass(frozen=True)
class Plan:
    """``rate_hz`` requests a second for ``duration_s``, or ``n_clients`` of them in a closed loop.

    ``files`` are sent in turn as ``field`` of a form to ``path``, with ``model`` too where
    it is given; ``probe`` is asked 20 times a second meanwhile. An answer that takes longer than
    ``patience_s`` is waited for no more.
    """

    port: int
    duration_s: float
    files: tuple[str, ...]
    rate_hz: float = 0.0
    n_clients: int = 0
    patience_s: float = 60.0
    path: str = "/transcribe"
    field: str = "files"
    model: str = ""
    probe: str = "/health/live"
    seed: int = 1


@dataclass(frozen=True)
class Sample:
    """One request, in seconds. ``status`` is 0 where no answer came.

    ``status_s`` runs from the sending of the headers to the status, ``total_s`` to the end of the
    answer. ``wait_s`` and ``served_s`` are the service's own: for a slot, and all of it. Of those
    who ``sends_first`` nothing is read before all has been sent.
    """

    began_s: float
    status: int
    status_s: float
    total_s: float
    sends_first: bool = False
    wait_s: float = 0.0
    served_s: float = 0.0
    retry_after_s: int = 0


@dataclass(frozen=True)
class Result:
    """``lag_s`` is the most that the generator itself was late, ``cpu_s`` its processor time."""

    requests: tuple[Sample, ...]
    probes: tuple[Sample, ...]
    lag_s: float
    cpu_s: float


def generate(plan: Plan) -> Result:
    """Run the plan in a process of its own. Raises ``subprocess.CalledProcessError``."""
    command = [sys.executable, "-m", "bench.load", json.dumps(asdict(plan))]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    found = json.loads(done.stdout)
    requests, probes = (
        tuple(Sample(**sample) for sample in found[name]) for name in ("requests", "probes")
    )
    return Result(requests, probes, found["lag_s"], found["cpu_s"])


class Exchange(asyncio.Protocol):
    """One request and its answer, on a connection of its own."""

    def __init__(self, payload: bytes, sends_first: bool, began_s: float) -> None:
        self._payload = payload
        self._sends_first = sends_first
        self._began_s = began_s
        self._sent_s = self._status_s = 0.0
        self._got = bytearray()
        self._end = -1
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        transport.set_write_buffer_limits(high=0)
        if self._sends_first:
            transport.pause_reading()
        self._sent_s = time.perf_counter()
        transport.write(self._payload)
        if not transport.get_write_buffer_size():
            self.resume_writing()

    def resume_writing(self) -> None:
        if self._sends_first and not self._transport.is_closing():
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self._status_s = self._status_s or time.perf_counter()
        self._got += data
        if self._end < 0 and (at := self._got.find(b"\r\n\r\n")) >= 0:
            self._end = at + 4 + int(self._header(b"content-length") or 0)
        if 0 <= self._end <= len(self._got):
            self._leave()
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def _leave(self) -> None:
        """Without what has not been sent: who has its answer has no use for the rest."""
        if self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._transport.close()

    def _header(self, name: bytes) -> bytes:
        head = bytes(self._got[: self._got.find(b"\r\n\r\n")])
        found = (line for line in head.split(b"\r\n") if line.lower().startswith(name + b":"))
        return next(found, b":").partition(b":")[2].strip()

    def sample(self, origin_s: float) -> Sample:
        now_s = time.perf_counter()
        is_whole = 0 <= self._end <= len(self._got)
        status_s = self._status_s or now_s
        phases_s = _phases_s(self._header(b"server-timing").decode())
        return Sample(
            began_s=self._began_s - origin_s,
            status=int(self._got[9:12]) if is_whole else 0,
            status_s=status_s - self._sent_s,
            total_s=now_s - self._began_s,
            sends_first=self._sends_first,
            wait_s=phases_s.get("wait", 0.0),
            served_s=phases_s.get("total", 0.0),
            retry_after_s=int(self._header(b"retry-after") or 0),
        )


def _phases_s(header: str) -> Mapping[str, float]:
    """Of a header ``Server-Timing``."""
    parts = (part.strip().partition(";dur=") for part in header.split(",") if part)
    return {name: float(value) / 1_000 for name, _, value in parts}


class _Generator:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rng = random.Random(plan.seed)
        self._payloads = [post(plan, Path(file).read_bytes()) for file in plan.files]
        self._turn = 0
        self._running: set[asyncio.Task[None]] = set()
        self._requests: deque[Sample] = deque()
        self._probes: deque[Sample] = deque()
        self._lag_s = 0.0
        self._began_cpu_s = time.process_time()
        self._origin_s = time.perf_counter()
        self._end_s = self._origin_s + plan.duration_s

    async def run(self) -> Result:
        probing = asyncio.create_task(self._probe())
        if self._plan.n_clients:
            await asyncio.gather(*(self._client() for _ in range(self._plan.n_clients)))
        else:
            await self._arrivals()
        await asyncio.gather(*self._running)
        await probing
        cpu_s = time.process_time() - self._began_cpu_s
        return Result(tuple(self._requests), tuple(self._probes), self._lag_s, cpu_s)

    async def _arrivals(self) -> None:
        gap_s = 1 / self._plan.rate_hz
        for number in range(min(MOST_REQUESTS, int(self._plan.duration_s / gap_s))):
            # Evenly, but never in step with the service.
            due_s = self._origin_s + (number + self._rng.random()) * gap_s
            await self._until(due_s)
            self._start(self._request(due_s))

    async def _client(self) -> None:
        while time.perf_counter() < self._end_s and self._turn < MOST_REQUESTS:
            await self._request(time.perf_counter())

    async def _request(self, due_s: float) -> None:
        self._turn += 1
        sends_first = self._rng.random() < SENDS_FIRST_SHARE
        payload = self._payloads[self._turn % len(self._payloads)]
        self._requests.append(await self._exchange(payload, sends_first, due_s))

    async def _probe(self) -> None:
        payload = f"GET {self._plan.probe} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        due_s = self._origin_s
        while (due_s := due_s + 1 / PROBES_HZ) < self._end_s:
            await self._until(due_s)
            self._start(self._ask(payload, due_s))

    async def _ask(self, payload: bytes, due_s: float) -> None:
        self._probes.append(await self._exchange(payload, False, due_s))

    async def _exchange(self, payload: bytes, sends_first: bool, due_s: float) -> Sample:
        try:
            transport, exchange = await asyncio.get_running_loop().create_connection(
                lambda: Exchange(payload, sends_first, due_s), "127.0.0.1", self._plan.port
            )
        except OSError:
            now_s = time.perf_counter()
            return Sample(due_s - self._origin_s, 0, now_s - due_s, now_s - due_s, sends_first)
        await asyncio.wait({exchange.done}, timeout=self._plan.patience_s)
        sample = exchange.sample(self._origin_s)
        transport.abort()
        return sample

    async def _until(self, due_s: float) -> None:
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        self._lag_s = max(self._lag_s, time.perf_counter() - due_s)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)


def post(plan: Plan, audio: bytes) -> bytes:
    body = b""
    if plan.model:
        disposition = 'Content-Disposition: form-data; name="model"'
        body = f"--edge\r\n{disposition}\r\n\r\n{plan.model}\r\n".encode()
    body += (
        f'--edge\r\nContent-Disposition: form-data; name="{plan.field}"; filename="a.wav"\r\n'
        "Content-Type: audio/wav\r\n\r\n"
    ).encode()
    body += audio + b"\r\n--edge--\r\n"
    head = (
        f"POST {plan.path} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=edge"
        f"\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("plan", type=json.loads, metavar="PLAN", help="a Plan's fields as JSON")
    given = parser.parse_args().plan
    plan = Plan(**{**given, "files": tuple(given["files"])})
    if plan.duration_s > LONGEST_S:
        raise SystemExit(f"no longer than {LONGEST_S:g} s")
    json.dump(asdict(uvloop.run(_Generator(plan).run())), sys.stdout)


if __name__ == "__main__":
    main()
