"""Processes of the benchmark: output into a log, answers within a time, and an end by their ids."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
LOG_TAIL_CHARACTERS = 1_500
END_TIMEOUT_S = 15.0


class PeerError(Exception):
    """A participant did not start, did not answer in time or gave no result."""


class Process:
    """A command in the project's root, with its errors (and a server's output) in ``log``."""

    def __init__(
        self, command: Sequence[str], log: Path, env: Mapping[str, str], *, is_worker: bool
    ) -> None:
        self.log = log
        with log.open("wb") as sink:
            self.popen: subprocess.Popen[str] = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **env},
                stdin=subprocess.PIPE if is_worker else subprocess.DEVNULL,
                stdout=subprocess.PIPE if is_worker else sink,
                stderr=sink,
                text=True,
                encoding="utf-8",
            )

    def error(self, what: str) -> PeerError:
        tail = self.log.read_text("utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:].strip()
        return PeerError(f"{what}; the end of its log:\n{tail}")

    def wait_until(self, is_ready: Callable[[], bool], timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not is_ready():
            if (status := self.popen.poll()) is not None:
                raise self.error(f"ended with status {status} before it was ready")
            if time.monotonic() > deadline_s:
                raise self.error(f"not ready after {timeout_s:.0f} s")
            time.sleep(0.25)

    def stop(self) -> None:
        """End it and what it has started, with force if need be."""
        if self.popen.poll() is None:
            root = psutil.Process(self.popen.pid)
            family = [root, *root.children(recursive=True)]
            _signal(family, "terminate")
            _, alive = psutil.wait_procs(family, timeout=END_TIMEOUT_S)
            _signal(alive, "kill")
            self.popen.wait()
        if self.popen.stdin is not None:
            _close(self.popen.stdin)


class Worker:
    """A process that answers each line of JSON on its standard input with one line of JSON."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def answer(self, timeout_s: float) -> dict[str, Any]:
        """The next answer. Raises ``PeerError`` for one that tells of an error, too."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise self._process.error(f"no answer within {timeout_s:.0f} s") from None
        if line is None:
            raise self._process.error("ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._process.error(answer["error"])
        return answer

    def ask(self, request: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        stdin = self._process.popen.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
        except OSError:
            raise self._process.error("ended") from None
        return self.answer(timeout_s)

    def _read(self) -> None:
        stdout = self._process.popen.stdout
        assert stdout is not None
        with stdout:
            for line in stdout:
                self._lines.put(line)
        self._lines.put(None)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def _signal(processes: Sequence[psutil.Process], how: str) -> None:
    for process in processes:
        try:
            getattr(process, how)()
        except psutil.NoSuchProcess:
            continue


def _close(pipe: IO[str]) -> None:
    try:
        pipe.close()
    except OSError:  # a request that the process did not live to read
        return
