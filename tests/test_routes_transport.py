"""What only a real server and real connections can show."""

from __future__ import annotations

import http.client
import json
import os
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests

from sensevoice_service.types import DecodeOptions
from tests.http_service import PATIENCE_S, House, house, log_lines, multipart, serving

MIB = 2**20


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)


def head(headers: dict[str, str], **more: str) -> bytes:
    lines = [f"{name}: {value}" for name, value in {**headers, "Host": "x", **more}.items()]
    return ("POST /transcribe HTTP/1.1\r\n" + "\r\n".join(lines) + "\r\n\r\n").encode()


def read_all(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def answer_of(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())


def hang_up(connection: socket.socket) -> None:
    """Close with a reset, as a killed client does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def post_by_http_client(port: int, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("POST", "/transcribe", body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def post_by_requests(port: int, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
    url = f"http://127.0.0.1:{port}/transcribe"
    response = requests.post(url, data=body, headers=headers, timeout=PATIENCE_S)
    return response.status_code, response.json()


def post_by_httpx(port: int, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
    url = f"http://127.0.0.1:{port}/transcribe"
    response = httpx.post(url, content=body, headers=headers, timeout=PATIENCE_S)
    return response.status_code, response.json()


def pieces_of(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 100_000):
        yield body[start : start + 100_000]


class Occupied:
    """Keeps a service at work on a request that does not end before the block does."""

    def __init__(self, place: House, port: int) -> None:
        self._place = place
        body, headers = multipart(b"wait")
        self.connection = connect(port)
        self.connection.sendall(head(headers, **{"Content-Length": str(len(body))}) + body)

    def __enter__(self) -> Occupied:
        assert self._place.pipeline.has_started.wait(PATIENCE_S)
        return self

    def __exit__(self, *_: object) -> None:
        hang_up(self.connection)
        assert self._place.pipeline.was_cancelled.wait(PATIENCE_S)


@pytest.mark.parametrize("post", [post_by_http_client, post_by_requests, post_by_httpx])
def test_a_client_that_sends_all_first_can_read_that_it_was_too_much(post: Any) -> None:
    place = house(MAX_UPLOAD_MB=4)
    body, headers = multipart(bytes(8 * MIB))
    with serving(place.app()) as port:
        status, answer = post(port, body, headers)
    assert (status, answer["error"]["code"]) == (413, "upload_too_large")
    assert place.pipeline.calls == []


@pytest.mark.parametrize("expect", [{}, {"Expect": "100-continue"}], ids=["", "unasked"])
@pytest.mark.parametrize("post", [post_by_http_client, post_by_requests, post_by_httpx])
def test_a_client_that_sends_all_first_can_read_that_the_service_is_full(
    post: Any, expect: dict[str, str]
) -> None:
    place = house(MAX_CONCURRENT_REQUESTS=1, MAX_WAITING_REQUESTS=0)
    body, headers = multipart(bytes(8 * MIB))
    headers |= expect
    with serving(place.app()) as port, Occupied(place, port):
        status, answer = post(port, body, headers)
        assert (status, answer["error"]["code"]) == (503, "overloaded")
        assert answer["error"]["param"] == "full"
    assert len(place.pipeline.calls) == 1


@pytest.mark.parametrize(
    "headers", [{"Content-Type": "application/json"}, {"Content-Type": "multipart/form-data"}]
)
def test_a_large_body_of_the_wrong_kind_gets_a_readable_refusal(headers: dict[str, str]) -> None:
    with serving(house().app()) as port:
        status, _ = post_by_http_client(port, bytes(8 * MIB), headers)
    assert status in (400, 415)


def test_a_body_declared_too_large_is_refused_before_it_is_sent() -> None:
    _, headers = multipart()
    with serving(house(MAX_UPLOAD_MB=1).app()) as port, connect(port) as connection:
        connection.sendall(head(headers, **{"Content-Length": "10000000000"}))
        assert answer_of(connection)[0] == 413


def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large() -> None:
    _, headers = multipart()
    part = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    with serving(house(MAX_UPLOAD_MB=1).app()) as port, connect(port) as connection:
        connection.sendall(head(headers, **{"Transfer-Encoding": "chunked"}))
        for piece in (part, bytes(MIB)):  # over the limit, and its end is never sent
            connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        status, answer = answer_of(connection)
    assert (status, answer["error"]["code"]) == (413, "upload_too_large")


def test_a_chunked_body_within_the_limit_is_taken() -> None:
    body, headers = multipart(bytes(300_000), keys="zeros")
    with serving(house().app()) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        connection.request("POST", "/transcribe", pieces_of(body), headers, encode_chunked=True)
        answer = json.loads(connection.getresponse().read())
        connection.close()
    assert answer["details"][0]["key"] == "zeros"


@pytest.mark.parametrize("limit_mb", [1, 512])
def test_a_client_that_waits_for_leave_is_asked_for_its_body_only_when_let_in(
    limit_mb: int,
) -> None:
    body, headers = multipart(bytes(2 * MIB))
    expecting = {"Content-Length": str(len(body)), "Expect": "100-continue"}
    with serving(house(MAX_UPLOAD_MB=limit_mb).app()) as port, connect(port) as connection:
        connection.sendall(head(headers, **expecting))
        if limit_mb == 1:
            assert read_all(connection).startswith(b"HTTP/1.1 413 ")
        else:
            assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
            connection.sendall(body)
            assert answer_of(connection)[0] == 200


def test_a_connection_serves_on_after_an_answer_and_ends_after_an_early_refusal() -> None:
    body, headers = multipart(b"hello")
    _, other = b"", {"Content-Type": "text/plain"}
    with serving(house().app()) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        for content in (headers, headers, other):
            connection.request("POST", "/transcribe", body, content)
            response = connection.getresponse()
            response.read()
            assert (response.getheader("connection") == "close") == (content is other)
        connection.close()


def test_a_body_that_is_cut_off_is_refused() -> None:
    body, headers = multipart(b"hello")
    with serving(house().app()) as port:
        status, answer = post_by_http_client(port, body[:-12], headers)
    assert (status, answer["error"]["code"]) == (400, "malformed_body")


def open_spools(folder: Path) -> list[str]:
    """Temporary files of this process in ``folder`` that are open, though they have no name."""
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:
            continue
    return [link for link in links if link.startswith(str(folder))]


def test_a_hang_up_during_the_upload_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spilled = threading.Event()
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", _telling(spilled))
    place = house(UPLOAD_MEMORY_MB=0)
    body, headers = multipart(bytes(2 * MIB))
    with (
        log_lines() as lines,
        log_lines("sensevoice_service.routes") as faults,
        log_lines("uvicorn.error", "ERROR") as server_faults,
        serving(place.app()) as port,
    ):
        connection = connect(port)
        connection.sendall(head(headers, **{"Content-Length": str(len(body))}) + body[:MIB])
        assert spilled.wait(PATIENCE_S)
        assert place.admission.stats().active == 1
        hang_up(connection)
        line = lines.next()
        assert (line["status"], line["outcome"]) == (499, "disconnected")
        assert place.admission.stats().active == 0
        assert open_spools(tmp_path) == []
        assert faults.is_empty()
        assert server_faults.is_empty()
    assert place.pipeline.calls == []


def _telling(event: threading.Event) -> Any:
    rollover = tempfile.SpooledTemporaryFile.rollover

    def roll(spool: Any) -> None:
        rollover(spool)
        event.set()

    return roll


def test_files_are_closed_after_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = house(UPLOAD_MEMORY_MB=0)
    seen: list[list[str]] = []
    work = place.pipeline.transcribe

    async def look(upload: Any, options: DecodeOptions, on_progress: Any = None) -> Any:
        seen.append(open_spools(tmp_path))
        return await work(upload, options, on_progress)

    place.pipeline.transcribe = look  # type: ignore[method-assign]
    body, headers = multipart(b"hello", b"noise")
    with log_lines() as lines, serving(place.app()) as port:
        assert post_by_http_client(port, body, headers)[0] == 200
        lines.next()
        assert [len(spools) for spools in seen] == [2, 2]
        assert open_spools(tmp_path) == []


def test_a_hang_up_during_the_work_cancels_it_and_frees_the_slot() -> None:
    place = house()
    with log_lines() as lines, serving(place.app()) as port:
        with Occupied(place, port):
            assert place.admission.stats().active == 1
        line = lines.next()
        assert (line["status"], line["outcome"], line["files"]) == (499, "disconnected", 1)
        assert place.admission.stats().active == 0


@pytest.mark.parametrize("size_bytes", [10, 400_000])
def test_a_hang_up_in_the_line_gives_up_the_place(size_bytes: int) -> None:
    place = house(MAX_CONCURRENT_REQUESTS=1)
    body, headers = multipart(bytes(size_bytes))
    with log_lines() as lines, serving(place.app()) as port, Occupied(place, port):
        connection = connect(port)
        connection.sendall(head(headers, **{"Content-Length": str(len(body))}) + body)
        hang_up(connection)
        line = lines.next()
        assert (line["status"], line["outcome"]) == (499, "disconnected")
        assert (place.admission.stats().active, place.admission.stats().waiting) == (1, 0)


def test_who_waits_in_vain_is_told_so() -> None:
    place = house(MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT_SEC=0.1)
    with serving(place.app()) as port, Occupied(place, port):
        status, answer = post_by_http_client(port, *multipart(b"hello"))
    assert (status, answer["error"]["code"]) == (503, "overloaded")
    assert answer["error"]["param"] == "timeout"


def test_those_who_wait_are_served_when_a_slot_comes_free() -> None:
    place = house(MAX_CONCURRENT_REQUESTS=1)
    body, headers = multipart(bytes(3 * MIB))
    answers: list[Any] = []
    with serving(place.app()) as port:
        with Occupied(place, port):
            waiting = threading.Thread(
                target=lambda: answers.append(post_by_http_client(port, body, headers))
            )
            waiting.start()
        waiting.join(PATIENCE_S)
    assert [status for status, _ in answers] == [200]
