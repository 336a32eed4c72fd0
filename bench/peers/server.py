"""A participant that is a server on the loopback interface, with its clients."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench.peers.process import Process
from bench.peers.worker import Run


@dataclass(frozen=True)
class Route:
    """Where a server takes a file, under what name, with what else, and where its text is."""

    path: str
    file_field: str
    form: Mapping[str, str]
    text_of: Callable[[Any], str]


class Server:
    """A server on the loopback interface and its clients, one connection each."""

    def __init__(self, process: Process, url: str, route: Route, timeout_s: float) -> None:
        self.url = url
        self._process = process
        self._route = route
        self._client = httpx.Client(base_url=url, timeout=timeout_s, trust_env=False)

    def wait_until_ready(self, path: str, timeout_s: float) -> None:
        """Until ``GET path`` answers 200."""
        self._process.wait_until(lambda: self._is_ready(path), timeout_s)

    def post_json(self, path: str, content: Mapping[str, Any]) -> None:
        self._post(path, json=content)

    def run(self, paths: Sequence[Path], at_once: int) -> Run:
        bodies = [(path.name, path.read_bytes()) for path in paths]
        with ThreadPoolExecutor(at_once) as clients:
            began_s = time.perf_counter()
            texts = list(clients.map(self._recognise, bodies))
            return Run(time.perf_counter() - began_s, texts)

    def stop(self) -> None:
        self._client.close()
        self._process.stop()

    def _recognise(self, body: tuple[str, bytes]) -> str:
        route = self._route
        return route.text_of(
            self._post(route.path, files={route.file_field: body}, data=dict(route.form))
        )

    def _post(self, path: str, **content: Any) -> Any:
        try:
            answer = self._client.post(path, **content)
        except httpx.HTTPError as error:
            raise self._process.error(f"{type(error).__name__}: {error}") from None
        if answer.status_code != 200:
            raise self._process.error(f"status {answer.status_code}: {answer.text[:300]}")
        return answer.json()

    def _is_ready(self, path: str) -> bool:
        try:
            return self._client.get(path, timeout=5).status_code == 200
        except httpx.HTTPError:
            return False
