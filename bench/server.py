"""The service as it is run, in a process of its own, with clients and a gauge of its memory."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import psutil

ROOT = Path(__file__).resolve().parents[1]
START_TIMEOUT_S, HEALTH_TIMEOUT_S, END_TIMEOUT_S = 300.0, 10.0, 60.0
POLL_S = 0.02
RSS_SAMPLES_HZ = 20
BLOCK_BYTES = 1 << 16

_ADDRESS = re.compile(r"running on http://127\.0\.0\.1:(\d+)")
_FORM_HEAD = (
    b'--edge\r\nContent-Disposition: form-data; name="files"; filename="speech"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n"
)
_FORM_TAIL = b"\r\n--edge--\r\n"


@dataclass(frozen=True, eq=False)
class Server:
    """A ready service: ``health`` is its first healthy answer, ``start_s`` how long that took."""

    pid: int
    port: int
    start_s: float
    health: Mapping[str, Any]
    log: Path

    def requests(self) -> list[dict[str, Any]]:
        """What the service has logged of each transcription so far: times in ms, by stage."""
        lines = _read(self.log).splitlines()
        records = [json.loads(line) for line in lines if line.startswith("{")]
        return [record for record in records if record.get("path") == "/transcribe"]

    def rss_bytes(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)


@contextmanager
def serving(
    environment: Mapping[str, str], command: Sequence[str] = ("api.py",)
) -> Iterator[Server]:
    """``python api.py``, or another command, on a free port of the loopback, until the block ends.

    Raises ``RuntimeError`` with the end of its log where it does not become healthy. A SIGTERM
    meanwhile ends the child too.
    """
    fixed = {"HOST": "127.0.0.1", "PORT": "0", "LOG_FORMAT": "json", "LOG_LEVEL": "INFO"}
    fixed["DRAIN_SEC"] = "0"  # nobody else sends it work
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        began_s = time.perf_counter()
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, **environment, **fixed},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stream,
            )
        try:
            with _sharing_sigterm(process):
                port, health = _await_health(process, log)
                yield Server(process.pid, port, time.perf_counter() - began_s, health, log)
        finally:
            _end(process)


def _await_health(process: subprocess.Popen[bytes], log: Path) -> tuple[int, dict[str, Any]]:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        if found := _ADDRESS.search(_read(log)):
            port = int(found[1])
            with suppress(ConnectionError), Client(port, HEALTH_TIMEOUT_S) as client:
                status, body = client.get("/health")
                if status == http.client.OK:
                    return port, body
        time.sleep(POLL_S)
    raise RuntimeError(f"the service did not become healthy; its log ends:\n{_read(log)[-2_000:]}")


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _sharing_sigterm(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """The child hears of it at once, so that threads that wait for its answers come to an end."""

    def end(_number: int, _frame: object) -> NoReturn:
        process.terminate()
        sys.exit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class Answer:
    """``wall_s`` runs from the first byte sent to the last received."""

    wall_s: float
    audio_s: float


class Client:
    """One connection, kept open. ``timeout_s`` bounds each wait for the service.

    The standard library's client takes little of the processors that it shares with the service.
    """

    def __init__(self, port: int, timeout_s: float) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        self._connection.request("GET", path)
        return self._receive()

    def transcribe(self, audio: bytes | Path) -> Answer:
        """Send one file, in blocks where it is a path. Raises ``RuntimeError`` unless it is 200."""
        n_bytes = len(audio) if isinstance(audio, bytes) else audio.stat().st_size
        headers = {
            "Content-Type": "multipart/form-data; boundary=edge",
            "Content-Length": str(len(_FORM_HEAD) + n_bytes + len(_FORM_TAIL)),
        }
        began_s = time.perf_counter()
        self._connection.request("POST", "/transcribe", _form(audio), headers)
        status, body = self._receive()
        wall_s = time.perf_counter() - began_s
        if status != http.client.OK:
            raise RuntimeError(f"the service answered {status}: {body.get('error')}")
        return Answer(wall_s, float(body["details"][0]["duration_s"]))

    def _receive(self) -> tuple[int, dict[str, Any]]:
        response = self._connection.getresponse()
        return response.status, json.loads(response.read())


def _form(audio: bytes | Path) -> Iterator[bytes]:
    yield _FORM_HEAD
    if isinstance(audio, bytes):
        yield audio
    else:
        with audio.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    yield _FORM_TAIL


@dataclass(frozen=True)
class Load:
    """What clients at once saw: each sent its next request when it had its answer."""

    n_clients: int
    wall_s: float
    audio_s: float
    latencies_s: tuple[float, ...]

    @property
    def rtfx(self) -> float:
        """Seconds of audio for a second of time."""
        return self.audio_s / self.wall_s


@contextmanager
def _emptied_on_error(turns: deque[int]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        turns.clear()
        raise


def run_load(
    server: Server, files: Sequence[bytes | Path], n_clients: int, n_requests: int, timeout_s: float
) -> Load:
    """``n_requests`` in all, the files in turn. Raises what went wrong with any of them."""
    turns = deque(range(n_requests))

    def next_turn() -> int | None:
        with suppress(IndexError):
            return turns.popleft()
        return None

    def work(_number: int) -> list[Answer]:
        answers: list[Answer] = []
        with _emptied_on_error(turns), Client(server.port, timeout_s) as client:
            while (turn := next_turn()) is not None:
                answers.append(client.transcribe(files[turn % len(files)]))
        return answers

    began_s = time.perf_counter()
    with ThreadPoolExecutor(n_clients) as pool, _emptied_on_error(turns):
        answers = [answer for part in pool.map(work, range(n_clients)) for answer in part]
    wall_s = time.perf_counter() - began_s
    latencies_s = tuple(answer.wall_s for answer in answers)
    return Load(n_clients, wall_s, sum(answer.audio_s for answer in answers), latencies_s)


class RssPeak:
    """The highest RSS of a server while the block lasts, sampled in a thread."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> RssPeak:
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        if exc is None:
            self._sample()

    def _watch(self) -> None:
        while not self._over.wait(1 / RSS_SAMPLES_HZ):
            self._sample()

    def _sample(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self._server.rss_bytes())


def served(server: Server) -> str:
    """What the service says that it runs, for a report."""
    model = server.health["model"]
    return (
        f"{model['name']}, {model['parameters'] / 1e6:.1f} M parameters,"
        f" on {model['device']} in {model['precision']}; healthy after {server.start_s:.1f} s"
    )
