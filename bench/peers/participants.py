"""Each participant's one way to start, behind one interface to run it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.peers.process import PeerError, Process, Worker, free_port
from bench.peers.server import Route, Server
from bench.peers.worker import Run

WORKER_START_TIMEOUT_S = 900.0  # the first start of sherpa-onnx makes its model
SERVER_START_TIMEOUT_S = 240.0
RUN_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Setup:
    """What all participants share. ``funasr_folder`` is ``folder`` with ``threads`` written into
    its configuration; ``scratch`` goes when the benchmark ends, ``cache`` stays. ``running`` holds
    what was started and has to be stopped."""

    folder: Path
    funasr_folder: Path
    scratch: Path
    cache: Path
    threads: int
    xinference: Path | None
    running: list[Process] = field(default_factory=list)


class Participant(Protocol):
    """Up and idle until ``run``; both methods raise ``PeerError``."""

    def run(self, paths: Sequence[Path], at_once: int) -> Run: ...

    def stop(self) -> None: ...


class InProcess:
    """A worker that has the model in its own process; it takes one file at a time."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._worker = Worker(process)
        self._worker.answer(WORKER_START_TIMEOUT_S)

    def run(self, paths: Sequence[Path], at_once: int) -> Run:
        if at_once != 1:
            raise PeerError("a worker takes one file at a time")
        answer = self._worker.ask({"run": [str(path) for path in paths]}, RUN_TIMEOUT_S)
        return Run(answer["wall_s"], answer["texts"])

    def stop(self) -> None:
        self._process.stop()


OUR_ROUTE = Route("/transcribe", "files", {"lang": "auto"}, lambda answer: answer["results"][0])
OPENAI_PATH = "/v1/audio/transcriptions"


def start(name: str, setup: Setup) -> Participant:
    """Start one of ``PARTICIPANTS`` and wait until it is ready. Raises ``PeerError``."""
    n_before = len(setup.running)
    try:
        return PARTICIPANTS[name](setup, name)
    except PeerError:
        for process in setup.running[n_before:]:
            process.stop()
        raise


def start_our_server(setup: Setup, name: str) -> Participant:
    port = free_port()
    env = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "MODEL": str(setup.folder),
        "DEVICE": "cpu",
        "QUANTIZE": "auto",
        "MEMORY_LIMIT_PERCENT": "100",  # the peers hold memory, too
        "LOG_LEVEL": "WARNING",
    }
    process = spawn(setup, name, [sys.executable, "api.py"], env=env)
    return serving(process, port, "/health/ready", OUR_ROUTE)


def start_funasr_server(setup: Setup, name: str) -> Participant:
    port = free_port()
    command = [str(Path(sys.executable).with_name("funasr-server")), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--device", "cpu", "--model-path", str(setup.funasr_folder)]
    route = Route(OPENAI_PATH, "file", {"model": "custom"}, lambda answer: answer["text"])
    return serving(spawn(setup, name, command), port, "/health", route)


def start_upstream(setup: Setup, name: str) -> Participant:
    port = free_port()
    command = [*module("upstream_server", setup.funasr_folder, setup), "--port", str(port)]
    route = Route("/transcribe", "file", {}, lambda answer: answer["text"])
    return serving(spawn(setup, name, command), port, "/health", route)


def start_xinference(setup: Setup, name: str) -> Participant:
    """Its own model of this name, from our folder and without the voice activity detector that
    it would download; without the virtual environment that it would make, and without accounts."""
    assert setup.xinference is not None
    port, uid = free_port(), "sensevoice"
    command = [str(setup.xinference.with_name("xinference-local")), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--log-level", "WARNING"]
    env = {
        "XINFERENCE_HOME": str(setup.scratch / "xinference"),
        "XINFERENCE_ENABLE_VIRTUAL_ENV": "0",
        "XINFERENCE_AUTH_ADVANCED": "0",
    }
    route = Route(OPENAI_PATH, "file", {"model": uid}, lambda answer: answer["text"])
    server = serving(spawn(setup, name, command, env=env), port, "/v1/models", route)
    launch = {
        "model_uid": uid,
        "model_name": "SenseVoiceSmall",
        "model_type": "audio",
        "model_engine": "PyTorch",
        "model_path": str(setup.funasr_folder),
        "vad_model": None,
        "disable_update": True,
        "disable_pbar": True,
    }
    server.post_json("/v1/models", launch)
    return server


def worker_of(name_of_module: str, *options: str) -> Callable[[Setup, str], Participant]:
    def start_worker(setup: Setup, name: str) -> Participant:
        is_funasr = name_of_module == "funasr_model"
        folder = setup.funasr_folder if is_funasr else setup.folder
        command = [*module(name_of_module, folder, setup), *options]
        if name_of_module == "sherpa":
            command += ["--cache", str(setup.cache)]
        return InProcess(spawn(setup, name, command, is_worker=True))

    return start_worker


PARTICIPANTS: Mapping[str, Callable[[Setup, str], Participant]] = {
    "ours-http": start_our_server,
    "ours": worker_of("ours", "--quantize", "auto"),
    "ours-fp32": worker_of("ours", "--quantize", "off"),
    "funasr-server": start_funasr_server,
    "xinference": start_xinference,
    "upstream": start_upstream,
    "funasr": worker_of("funasr_model"),
    "sherpa-int8": worker_of("sherpa"),
}


def module(name: str, folder: Path, setup: Setup) -> list[str]:
    command = [sys.executable, "-m", f"bench.peers.{name}"]
    return [*command, "--model", str(folder), "--threads", str(setup.threads)]


def spawn(
    setup: Setup,
    name: str,
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    is_worker: bool = False,
) -> Process:
    threads = {"OMP_NUM_THREADS": str(setup.threads)}
    try:
        log = setup.scratch / f"{name}.log"
        process = Process(command, log, threads | dict(env or {}), is_worker=is_worker)
    except OSError as error:
        raise PeerError(f"cannot be started: {error}") from None
    setup.running.append(process)
    return process


def serving(process: Process, port: int, ready_path: str, route: Route) -> Server:
    server = Server(process, f"http://127.0.0.1:{port}", route, RUN_TIMEOUT_S)
    server.wait_until_ready(ready_path, SERVER_START_TIMEOUT_S)
    return server
