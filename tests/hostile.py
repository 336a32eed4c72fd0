"""A real service that hostile clients are let loose on, and the look at it afterwards."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from api import TIDY_S
from config import Settings
from sensevoice_service.plain_wav import HEAD_BYTES
from tests import server_process
from tests.server_process import ServerProcess

ROOT = Path(__file__).resolve().parents[1]
PATIENT_S = 60.0  # only a hang takes that long
MIB = 2**20
EDGE = b"edge"
NO_HEADERS: Mapping[str, str] = {}
SETTINGS = {
    "MODEL": "demo",
    "PORT": "0",
    "INTRA_OP_THREADS": "1",
    "MODEL_WORKERS": "1",
    "DECODE_THREADS": "3",
    "DRAIN_SEC": "0",
    "HEADER_TIMEOUT": "1.5",
    "MAX_CONCURRENT_REQUESTS": "4",
    "MAX_UPLOAD_MB": "32",
    "UPLOAD_MEMORY_MB": "1",
    "MAX_FILES": "4",
    "MAX_AUDIO_SEC": "60",
    "DECODE_MEMORY_MB": "256",
    "LOG_FILENAMES": "true",
}


def with_notes(wav: bytes) -> bytes:
    """The same sound behind so many words that a decoder has to look for it."""
    return wav[:12] + b"LIST" + HEAD_BYTES.to_bytes(4, "little") + bytes(HEAD_BYTES) + wav[12:]


# Both ways in: the samples of one are read as they are, the other goes to a decoder.
HELLO, NIHAO = ((ROOT / "samples" / name).read_bytes() for name in ("hello.wav", "nihao.wav"))
GOOD = [HELLO, with_notes(NIHAO)]

Answer = tuple[int, dict[str, Any]]


@dataclass(frozen=True)
class Footprint:
    """What a request takes and must give back."""

    descriptors: int
    threads: int
    spools: int
    decoders: int
    busy: int

    def is_within(self, other: Footprint) -> bool:
        return (
            self.descriptors <= other.descriptors
            and self.threads <= other.threads
            and self.spools <= other.spools
            and self.decoders <= other.decoders
            and self.busy == 0
        )


@dataclass
class Victim:
    """The service: ``python api.py`` with the demo model, its decoders in processes."""

    server: ServerProcess
    folder: Path
    texts: list[str] = field(default_factory=list)
    baseline: Footprint | None = None

    def __post_init__(self) -> None:
        self.process = psutil.Process(self.server.process.pid)
        self.port = int(self.server.address.rpartition(":")[2])

    def is_ready(self) -> bool:
        try:
            return get(self.port, "/health/ready")[0] == 200
        except ConnectionError as error:
            raise AssertionError(self.server.log) from error

    def settle(self) -> None:
        """Use as much of everything as any test here does, once; what is left is the baseline."""
        self.texts = self.good_texts()
        assert all(self.texts)
        large = form(*(GOOD[1] + bytes(2 * MIB) for _ in range(4)))
        threads = [threading.Thread(target=post, args=(self.port, large)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # Some seconds after the last request memory is given back, in a thread of its own.
        self.baseline = unchanged(self.footprint, TIDY_S + 1.0)

    def good_texts(self) -> list[str]:
        status, body = post(self.port, form(*GOOD))
        assert status == 200, body
        return list(body["results"])

    def spools(self) -> list[str]:
        """Paths of its temporary files, which have a name no more but are still open."""
        links = []
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(OSError):
                links.append((os.readlink(link), str(link)))
        named = [str(path) for path in self.folder.iterdir()]
        return [link for target, link in links if target.startswith(str(self.folder))] + named

    def spooled_bytes(self) -> int:
        total = 0
        for path in self.spools():
            with suppress(OSError):
                total += os.stat(path).st_size
        return total

    def decoders(self) -> list[psutil.Process]:
        return living_children(self.process)

    def peer_ports(self) -> list[int]:
        connections = self.process.net_connections("tcp4")
        return [connection.raddr.port for connection in connections if connection.raddr]

    def chunks_heard(self) -> int:
        """How many chunks have been in a batch since the start."""
        (count,) = re.findall(r"^sensevoice_batch_chunks_total (\S+)$", self._metrics(), re.M)
        return int(float(count))

    def _metrics(self) -> str:
        url = f"http://127.0.0.1:{self.port}/metrics"
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url) as answer:
            return str(answer.read(), "utf-8")

    def rss_bytes(self) -> int:
        """Of the service and its decoders."""
        total = 0
        for process in (self.process, *self.decoders()):
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def footprint(self) -> Footprint:
        """What it holds beside the connection that this question took."""
        (_, health), own_port = exchange(self.port, "GET", "/health")
        requests = health["requests"]
        until(lambda: own_port not in self.peer_ports())
        return Footprint(
            descriptors=self.process.num_fds(),
            threads=self.process.num_threads(),
            spools=len(self.spools()),
            decoders=len(self.decoders()),
            busy=requests["active"] + requests["waiting"],
        )

    @contextmanager
    def unharmed(self) -> Iterator[None]:
        """Whatever happens within the block, the service is afterwards what it was before."""
        assert self.baseline is not None
        n_lines = len(self.server.lines)
        yield
        assert self.is_ready()
        self._returns_to(self.baseline)
        assert self.good_texts() == self.texts
        logged = "\n".join(self.server.lines[n_lines:])
        assert "Traceback" not in logged, logged

    def _returns_to(self, baseline: Footprint) -> None:
        deadline_s = time.monotonic() + PATIENT_S
        while not (now := self.footprint()).is_within(baseline):
            assert time.monotonic() < deadline_s, (now, baseline)
            time.sleep(0.05)

    def hears(self, hostile: bytes, name: str = "hostile.wav") -> Answer:
        """Its answer to a file alone; among good files it is the same, and theirs are theirs."""
        with self.unharmed():
            alone = post(self.port, form(hostile, names=[name]))
            status, body = post(self.port, form(GOOD[0], hostile, GOOD[1]))
            assert status == 200
            assert [body["results"][0], body["results"][2]] == self.texts
            error = body["details"][1]["error"]
            if alone[0] == 200:
                assert error is None
                assert body["results"][1] == alone[1]["results"][0]
            else:
                assert (error["status"], error["code"]) == (alone[0], alone[1]["error"]["code"])
        return alone


@contextmanager
def victim_service(folder: Path) -> Iterator[Victim]:
    inherited = {name: v for name, v in os.environ.items() if name not in Settings.model_fields}
    spools = folder / "spools"
    spools.mkdir()
    # Its own folder of temporary files; the hubs are not asked, since MODEL names the demo.
    environment = {**inherited, **SETTINGS, "TMPDIR": str(spools), "no_proxy": "127.0.0.1"}
    script = str(ROOT / "api.py")
    with server_process.running(script, folder=ROOT, environment=environment) as server:
        until(lambda: server_process.ADDRESS.search(server.log) or server.process.poll())
        victim = Victim(server, spools)
        until(victim.is_ready)
        victim.settle()
        yield victim


@dataclass(frozen=True)
class Body:
    content: bytes
    content_type: str = "multipart/form-data; boundary=edge"

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": self.content_type}


def part(content: bytes, disposition: str, *more: bytes) -> bytes:
    lines = [b"Content-Disposition: form-data; " + disposition.encode("latin-1"), *more]
    return b"--edge\r\n" + b"\r\n".join(lines) + b"\r\n\r\n" + content + b"\r\n"


def form(*files: bytes, names: Sequence[str] = (), **fields: str) -> Body:
    names = names or [f"{number}.wav" for number in range(len(files))]
    parts = [
        part(data, f'name="files"; filename="{name}"')
        for data, name in zip(files, names, strict=True)
    ]
    parts += [part(value.encode(), f'name="{name}"') for name, value in fields.items()]
    return Body(b"".join(parts) + b"--edge--\r\n")


def post(port: int, body: Body, path: str = "/transcribe") -> Answer:
    return exchange(port, "POST", path, body.content, body.headers)[0]


def get(port: int, path: str) -> Answer:
    return exchange(port, "GET", path)[0]


def exchange(
    port: int, method: str, path: str, content: bytes = b"", headers: Mapping[str, str] = NO_HEADERS
) -> tuple[Answer, int]:
    """One request over a connection of its own: the answer, and the port it came from."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENT_S)
    try:
        connection.connect()
        own_port = connection.sock.getsockname()[1]
        connection.request(method, path, content, {**headers, "Connection": "close"})
        response = connection.getresponse()
        return (response.status, json.loads(response.read())), own_port
    finally:
        connection.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENT_S)


def raw(port: int, data: bytes) -> tuple[int, bytes]:
    """Send bytes as they are: the status, and all that comes until the service closes."""
    with connect(port) as connection:
        with suppress(ConnectionError):
            connection.sendall(data)
        answer = read_all(connection)
    match = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    return int(match[1]) if match else 0, answer


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    with suppress(ConnectionError):
        while piece := connection.recv(65536):
            answer += piece
    return answer


def request_head(**headers: str) -> bytes:
    given = {"Host": "x", "Content_Type": "multipart/form-data; boundary=edge", **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in given.items()]
    return ("POST /transcribe HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()


def living_children(process: psutil.Process) -> list[psutil.Process]:
    children = process.children(recursive=True)
    return [one for one in children if is_alive(one)]


def is_alive(process: psutil.Process) -> bool:
    """Neither waiting for its parent, nor gone since it was found."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def unchanged(look: Callable[[], Footprint], duration_s: float) -> Footprint:
    """What is seen once it has stayed the same for so long."""
    deadline_s = time.monotonic() + PATIENT_S
    seen, since_s = look(), time.monotonic()
    while time.monotonic() < since_s + duration_s:
        assert time.monotonic() < deadline_s, seen
        time.sleep(0.02)
        if (now := look()) != seen:
            seen, since_s = now, time.monotonic()
    return seen


def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + PATIENT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
