"""A service in a process of its own, and what it logs."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import httpx

from config import Settings

ROOT = Path(__file__).resolve().parents[1]
PATIENT_S = 20.0  # only a hang takes that long
ADDRESS = re.compile(r"Uvicorn running on (http://\S+)")


class ServerProcess:
    """Python with ``arguments``; ``client`` speaks to it, ``tell`` writes a line to its stdin."""

    def __init__(self, *arguments: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._has_ended = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def logged(self, pattern: str | re.Pattern[str], times: int = 1) -> re.Match[str]:
        """Wait until a line has been logged that many times."""

        def found() -> list[re.Match[str]]:
            return [match for line in self.lines if (match := re.search(pattern, line))]

        with self._changed:
            self._changed.wait_for(lambda: len(found()) >= times or self._has_ended, PATIENT_S)
            assert len(found()) >= times, self.log
            return found()[times - 1]

    @property
    def address(self) -> str:
        return self.logged(ADDRESS)[1]

    @contextlib.contextmanager
    def client(self) -> Iterator[httpx.Client]:
        with httpx.Client(base_url=self.address, timeout=PATIENT_S, trust_env=False) as client:
            yield client

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    @property
    def errors(self) -> list[str]:
        return [line for line in self.lines if " ERROR " in line]

    def exit_status(self) -> int:
        """Wait for its end; all that it logged is in ``lines`` then."""
        status = self.process.wait(PATIENT_S)
        self._reader.join(PATIENT_S)
        return status

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.exit_status()
        assert self.process.stderr is not None
        assert self.process.stdin is not None
        self.process.stderr.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


@contextlib.contextmanager
def running(
    *arguments: str, folder: Path, environment: Mapping[str, str], **settings: str
) -> Iterator[ServerProcess]:
    server = ServerProcess(*arguments, folder=folder, environment={**environment, **settings})
    try:
        yield server
    finally:
        server.end()


def gated_service(*arguments: str, **settings: str) -> AbstractContextManager[ServerProcess]:
    """``tests.gated_service`` with settings; its drain lasts no time."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in Settings.model_fields
    }
    environment = {**inherited, "PORT": "0", "DRAIN_SEC": "0", "no_proxy": "127.0.0.1"}
    module = ("-m", "tests.gated_service")
    return running(*module, *arguments, folder=ROOT, environment=environment, **settings)


def make_ready(server: ServerProcess) -> None:
    """Have a gated service load its model."""
    server.tell("load")
    with server.client() as client:
        assert until_ready(client)[-1].status_code == 200


def until_ready(client: httpx.Client) -> list[httpx.Response]:
    """Ask for its health until it is no longer loading; every answer on the way."""
    answers = [client.get("/health")]
    pause = threading.Event()
    while answers[-1].json()["status"] == "loading":
        assert len(answers) < PATIENT_S * 10
        pause.wait(0.1)
        answers.append(client.get("/health"))
    return answers
