"""A service without a model for the tests of its HTTP side: a fake pipeline behind real routes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from config import Settings
from sensevoice_service.admission import Admission
from sensevoice_service.batcher import BatchStats
from sensevoice_service.logs import FIELDS
from sensevoice_service.memory import MemoryReading
from sensevoice_service.metrics import Metrics, Sources
from sensevoice_service.pipeline import PipelineResult, Timings
from sensevoice_service.routes.app import build_app
from sensevoice_service.routes.connection import (
    AfterRefusal,
    connection_with,
    go_on,
    let_in,
)
from sensevoice_service.routes.services import OnProgress, Services
from sensevoice_service.status import ModelInfo, Status
from sensevoice_service.types import (
    DecodeOptions,
    Progress,
    Segment,
    ServiceError,
    Transcript,
    UnsupportedAudio,
    Upload,
    Word,
)

MODEL = ModelInfo("tiny", True, "cpu", "fp32", "/models/tiny", 1000)
PATIENCE_S = 10.0  # how long a test waits for what must come, before it fails


def transcript(text: str, language: str = "zh", duration_s: float = 1.5) -> Transcript:
    words = tuple(
        Word(k / 4, (k + 1) / 4, word) for k, word in enumerate(re.findall(r"\s*\S+", text))
    )
    segment = Segment(0.0, duration_s, text, language, "NEUTRAL", ("Speech",), words)
    return Transcript(text, language, "NEUTRAL", ("Speech",), duration_s, (segment,))


@dataclass
class FakePipeline:
    """Hears the bytes of a file as its words. Some words make it fail, wait or break."""

    errors: dict[bytes, ServiceError] = field(default_factory=dict)
    calls: list[tuple[str, DecodeOptions]] = field(default_factory=list)
    has_started: threading.Event = field(default_factory=threading.Event)
    was_cancelled: threading.Event = field(default_factory=threading.Event)

    async def transcribe(
        self, upload: Upload, options: DecodeOptions, on_progress: OnProgress | None = None
    ) -> PipelineResult:
        self.calls.append((upload.name, options))
        heard = upload.file.read(16)
        self.has_started.set()
        if heard == b"wait":
            await self._wait_for_ever()
        if heard == b"half" and on_progress is not None:
            on_progress(Progress(0.5, "half"))
            await self._wait_for_ever()
        if heard == b"break":
            raise RuntimeError("secret of the house")
        if heard == b"noise":
            raise UnsupportedAudio("not audio", param="files")
        if heard in self.errors:
            raise self.errors[heard]
        if on_progress is not None:
            text = heard.decode("latin-1")
            on_progress(Progress(0.5, text[:3]))
            on_progress(Progress(1.0, text[3:]))
        timings = Timings(decode_s=0.1, queue_s=0.2, infer_s=0.3)
        return PipelineResult(transcript(heard.decode("latin-1"), options.language), timings)

    async def _wait_for_ever(self) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.was_cancelled.set()
            raise


@dataclass
class FakeState:
    status: Status = "ready"
    model: ModelInfo | None = MODEL
    failure: str | None = None
    batches: BatchStats = field(default_factory=lambda: BatchStats(batches=7))
    gpu: dict[str, Any] | None = None

    def batch_stats(self) -> BatchStats:
        return self.batches

    def gpu_memory(self) -> dict[str, Any] | None:
        return self.gpu


@dataclass
class House:
    """The parts of one service, for tests to look at and to change."""

    settings: Settings
    pipeline: FakePipeline = field(default_factory=FakePipeline)
    state: FakeState = field(default_factory=FakeState)
    memory: MemoryReading = field(default_factory=lambda: MemoryReading(25, 100, 5))

    def __post_init__(self) -> None:
        self.admission = Admission(
            self.settings.MAX_CONCURRENT_REQUESTS,
            self.settings.MAX_WAITING_REQUESTS,
            self.settings.QUEUE_TIMEOUT_SEC,
            lambda: self.memory.percent,
            self.settings.MEMORY_LIMIT_PERCENT,
            request_timeout_s=self.settings.REQUEST_TIMEOUT_SEC,
        )

        self.metrics = Metrics(CollectorRegistry(), self.sources())

    def sources(self) -> Sources:
        return Sources(self.state, self.admission.stats, lambda: self.memory)

    def services(self) -> Services:
        return Services(
            self.pipeline, self.state, self.admission, lambda: self.memory, self.metrics
        )

    def app(self) -> FastAPI:
        return build_app(self.services(), self.settings)


def house(**settings: Any) -> House:
    return House(Settings(**settings))


class LogLines(logging.Handler):
    """Catches the records of a logger; ``next`` waits, since a line may follow its answer."""

    def __init__(self) -> None:
        super().__init__()
        self._records: queue.Queue[logging.LogRecord] = queue.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self._records.put(record)

    def next(self) -> dict[str, Any]:
        return dict(getattr(self._records.get(timeout=PATIENCE_S), FIELDS))

    def is_empty(self) -> bool:
        return self._records.empty()


@contextlib.contextmanager
def log_lines(name: str = "sensevoice_service.requests", level: str = "INFO") -> Iterator[LogLines]:
    logger, lines = logging.getLogger(name), LogLines()
    before = logger.level
    logger.addHandler(lines)
    logger.setLevel(level)
    try:
        yield lines
    finally:
        logger.setLevel(before)
        logger.removeHandler(lines)


class _Server(uvicorn.Server):
    """Tells when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    @property
    def port(self) -> int:
        return int(self.servers[0].sockets[0].getsockname()[1])


@contextlib.contextmanager
def serving(
    app: ASGIApp, header_timeout_s: float = PATIENCE_S, after_refusal: AfterRefusal = go_on
) -> Iterator[int]:
    """A real server in a thread, with the application's door where it has one; gives its port."""
    door = getattr(app.state, "door", None) if isinstance(app, FastAPI) else None
    config = uvicorn.Config(
        app,
        port=0,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
        http=connection_with(header_timeout_s, door or let_in, after_refusal),
        loop="uvloop",
    )
    server = _Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.is_up.wait(PATIENCE_S)
        yield server.port
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def multipart(*files: bytes, **fields: str) -> tuple[bytes, dict[str, str]]:
    """A form by hand, for clients that know none: body and headers."""
    parts = [
        b'--edge\r\nContent-Disposition: form-data; name="files"; filename="%d.wav"\r\n\r\n%b\r\n'
        % (number, content)
        for number, content in enumerate(files, 1)
    ]
    parts += [
        f'--edge\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    body = b"".join(parts) + b"--edge--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=edge"}
