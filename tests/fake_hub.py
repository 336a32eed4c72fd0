"""A hub on the loopback that speaks both hubs' protocols, as far as a download needs them."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sensevoice_service.published import PUBLISHED_IDS

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Serves ``files``; of model.pt only the first half where ``half`` is set, then goes silent
    (``stall``) or hangs up (``cut``)."""

    daemon_threads = True

    def __init__(self, files: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = files
        self.half = ""
        self.closing = threading.Event()
        self.sent: list[str] = []
        self.resumed_at: list[int] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of these tests."""


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        if "no-such-model" in url.path:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif url.path == "/":
            self._answer(b"a hub")
        elif "/revision/" in url.path:
            self._answer_json({"id": PUBLISHED_IDS["hf"], "sha": COMMIT, "siblings": []})
        elif "/tree/" in url.path:
            self._answer_json([_hugging_face_entry(path) for path in self._files()])
        elif "/resolve/" in url.path:
            self._send_file(url.path.rsplit("/", 1)[1])
        elif url.path.endswith("/repo/files"):
            entries = [_modelscope_entry(path) for path in self._files()]
            self._answer_json({"Code": 200, "Success": True, "Data": {"Files": entries}})
        elif url.path.endswith("/repo"):
            self._send_file(query["FilePath"][0])
        else:
            self.send_error(404)

    def _files(self) -> list[Path]:
        return sorted(path for path in self.server.files.iterdir() if path.is_file())

    def _answer_json(self, content: Any) -> None:
        self._answer(json.dumps(content).encode(), **{"Content-Type": "application/json"})

    def _answer(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _send_file(self, name: str) -> None:
        body = (self.server.files / name).read_bytes()
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            self.server.resumed_at.append(start)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if self.command == "GET":
            self._send_body(name, body, start)

    def _send_body(self, name: str, body: bytes, start: int) -> None:
        if self.server.half and name == "model.pt":
            self.wfile.write(body[start : len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            if self.server.half == "stall":
                self.server.closing.wait()
            return
        self.server.sent.append(name)
        self.wfile.write(body[start:])


def _hugging_face_entry(path: Path) -> dict[str, Any]:
    oid = hashlib.sha1(path.read_bytes()).hexdigest()
    return {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": oid}


def _modelscope_entry(path: Path) -> dict[str, Any]:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"Path": path.name, "Type": "blob", "Size": path.stat().st_size, "Sha256": sha256}
