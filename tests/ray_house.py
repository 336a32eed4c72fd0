"""``python -m tests.ray_house``: copies of the service on Ray, with the model of ``fixed_time``.

``HOST`` and ``PORT`` are those of the environment. A line on stdin is a JSON object of the number
of ``replicas``, of Ray's ``headroom`` and of settings; once they serve it is answered with a line.
The end of stdin ends all.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
PATIENT_S = 120.0  # only a hang takes that long
LOG_TAIL_CHARACTERS = 4_000
CPUS = 8  # that Ray believes in: its copies do nothing but wait
MARK = "RAY_HOUSE_OF_TESTS"  # in the environment of every process of a house, whoever its parent


class HouseEnded(Exception):
    """The process of a house is gone; the end of its log."""


class House:
    """A Ray in a process of its own."""

    def __init__(self, module: str, folder: Path, environment: dict[str, str]) -> None:
        self.port = free_port()
        self._mark = uuid.uuid4().hex
        self._log = (folder / "log").open("w+b")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env={
                **os.environ,
                "PORT": str(self.port),
                "RAY_TMPDIR": str(folder),
                # A busy machine is no reason to start a proxy anew.
                "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
                "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
                **_haproxy_files(folder),
                MARK: self._mark,
                **environment,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def deploy(self, replicas: int, model: str, **order: Any) -> None:
        """Returns when they serve."""
        self.say({"replicas": replicas, "MODEL": model, **order})
        self.hear("served")

    def say(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(order)}\n")
        self._process.stdin.flush()

    def hear(self, start: str) -> None:
        """Waits for a line that starts so. Raises ``HouseEnded``."""
        while not (line := self._lines.get(timeout=PATIENT_S)).startswith(start):
            if line == "ended":
                raise HouseEnded(self._log_tail())

    def _log_tail(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-LOG_TAIL_CHARACTERS:]

    def processes(self, *names: str) -> list[psutil.Process]:
        """Its own and Ray's whose title or program has one of the names in it; none given: all."""
        return [
            process
            for process in psutil.process_iter()
            if _environment(process).get(MARK) == self._mark
            and (not names or any(name in _title(process) for name in names))
        ]

    def interrupt(self) -> int:
        """The exit status after the signal that a terminal sends to all that it runs."""
        os.killpg(self._process.pid, signal.SIGINT)
        return self._process.wait(PATIENT_S)

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENT_S)
        psutil.wait_procs(self.processes(), timeout=5)
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(PATIENT_S)
        self._reader.join(PATIENT_S)
        self._process.stdout.close()
        self._log.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip())
        self._lines.put("ended")


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.Error:
        return ""


def _haproxy_files(folder: Path) -> dict[str, str]:
    names = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "SERVER_STATE_BASE": "",
        "SERVER_STATE_FILE": "state",
        "METRICS_SOCKET_PATH": "metrics.sock",
    }
    return {f"RAY_SERVE_HAPROXY_{key}": str(folder / "ha" / file) for key, file in names.items()}


def free_port() -> int:
    """None of those that the system gives away by itself, nor of those of Ray's workers.

    It is free now, and a Ray of many processes takes dozens of the others until it is bound.
    """
    while True:
        with socket.socket() as found, contextlib.suppress(OSError):
            found.bind(("127.0.0.1", random.randrange(20_000, 32_000)))
            return int(found.getsockname()[1])


@contextlib.contextmanager
def house(module: str = "tests.ray_house", **environment: str) -> Iterator[House]:
    # A short path: those of Ray's sockets are limited.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        built = House(module, Path(folder), environment)
        try:
            yield built
        finally:
            built.end()


def main() -> None:
    # Here, since Ray is to be imported with the environment that the process was given; and the
    # first sets more of it.
    from deploy.ray_local import start_ray, stop_ray

    from ray import serve  # isort: skip

    from config import load_settings
    from deploy.ray_plan import HEADROOM, Plan
    from deploy.ray_serve import NAME, application
    from tests.fixed_time import load

    start_ray(load_settings(), cpus=CPUS, log=False)
    for line in sys.stdin:
        order = json.loads(line)
        count, headroom = order.pop("replicas"), order.pop("headroom", HEADROOM)
        settings = load_settings(DECODE_ISOLATION="thread", **order)
        plan = Plan(min_replicas=count, max_replicas=count)
        copies = application(plan, settings, load, headroom)
        serve.run(copies, name=NAME, route_prefix="/")
        print("served", flush=True)
    stop_ray()


if __name__ == "__main__":
    main()
