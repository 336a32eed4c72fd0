from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from starlette.responses import Response
from starlette.testclient import TestClient

from sensevoice_service.logs import FIELDS
from sensevoice_service.routes import connection as connection_module
from sensevoice_service.routes.connection import AfterRefusal, go_on
from tests.hostile import connect, read_all
from tests.http_service import PATIENCE_S, House, house, multipart, serving

KEY = "k" * 32
MIB = 2**20


def post(path: str = "/transcribe", **headers: str) -> dict[str, Any]:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": path, "headers": raw}


def full_house(**settings: Any) -> House:
    """Where nobody finds a place once the only slot is taken."""
    return house(MAX_CONCURRENT_REQUESTS=1, MAX_WAITING_REQUESTS=0, **settings)


async def test_who_finds_no_place_is_told_what_the_application_would_say(
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = full_house()
    app = place.app()
    async with place.admission.slot():
        answer = app.state.door(post(**{"x-request-id": "one"}))
    assert isinstance(answer, Response)
    error = json.loads(bytes(answer.body))["error"]
    assert (answer.status_code, error["code"], error["param"]) == (503, "overloaded", "full")
    assert error["request_id"] == answer.headers["x-request-id"] == "one"
    assert 1 <= int(answer.headers["retry-after"]) <= 5
    assert answer.headers["x-content-type-options"] == "nosniff"
    (line,) = caplog.records
    fields = getattr(line, FIELDS)
    assert (line.levelname, fields["status"], fields["shed"]) == ("WARNING", 503, "full")
    assert 'sensevoice_shed_requests_total{reason="full"} 1.0' in scrape(place)


async def test_clients_of_openai_are_told_in_its_shape() -> None:
    place = full_house()
    door = place.app().state.door
    async with place.admission.slot():
        answer = door(post("/v1/audio/transcriptions"))
    assert answer is not None
    assert set(json.loads(bytes(answer.body))["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", ["/transcribe", "/v1/audio/transcriptions"])
def test_door_and_application_say_the_same(path: str) -> None:
    app = house(MEMORY_LIMIT_PERCENT=1.0).app()
    given = {"x-request-id": "one"}
    files = {"files": b"hello", "file": b"hello"}
    theirs = TestClient(app).post(path, files=files, data={"model": "tiny"}, headers=given)
    ours = app.state.door(post(path, **given))
    assert (ours.status_code, theirs.status_code) == (503, 503)
    assert json.loads(ours.body) == theirs.json()
    assert theirs.json()["error"]["param"] == "memory"
    varying = {"retry-after", "content-length", "connection"}
    assert {name: ours.headers[name] for name in ours.headers if name not in varying} == {
        name: theirs.headers[name] for name in theirs.headers if name not in varying
    }
    assert "retry-after" in ours.headers
    assert "retry-after" in theirs.headers


@pytest.mark.parametrize(
    "scope",
    [
        {**post(), "method": "GET"},
        post("/health"),
        post("/"),
        post(origin="https://a.page"),
    ],
)
async def test_the_application_answers_what_is_no_work_and_what_a_page_asks(
    scope: dict[str, Any],
) -> None:
    place = full_house()
    door = place.app().state.door
    async with place.admission.slot():
        assert door(scope) is None


async def test_who_finds_a_place_is_let_in() -> None:
    assert house().app().state.door(post()) is None


async def test_only_who_has_a_key_is_told_that_there_is_no_place() -> None:
    place = full_house(API_KEYS=KEY)
    door = place.app().state.door
    async with place.admission.slot():
        assert door(post(authorization=f"Bearer {KEY}")) is not None
        assert door(post(authorization="Bearer wrong")) is None
        assert door(post()) is None


def test_where_clients_have_a_rate_all_requests_are_the_applications() -> None:
    assert house(RATE_LIMIT="1/day").app().state.door is None


@pytest.fixture
def occupied() -> Iterator[tuple[House, int]]:
    """A service whose only slot is taken, and its port."""
    with occupying(full_house()) as (place, port):
        yield place, port


@contextmanager
def occupying(place: House, after_refusal: AfterRefusal = go_on) -> Iterator[tuple[House, int]]:
    body, headers = multipart(b"wait")
    lines = {**headers, "Host": "x", "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    with serving(place.app(), after_refusal=after_refusal) as port, connect(port) as holder:
        holder.sendall(f"POST /transcribe HTTP/1.1\r\n{head}\r\n".encode() + body)
        assert place.pipeline.has_started.wait(PATIENCE_S)
        yield place, port


def scrape(place: House) -> str:
    return place.metrics.exposition("text/plain")[0].decode()


def test_a_client_that_sends_all_first_can_read_it(occupied: tuple[House, int]) -> None:
    place, port = occupied
    body, headers = multipart(bytes(8 * MIB))
    for _ in range(3):
        url = f"http://127.0.0.1:{port}/transcribe"
        answer = requests.post(url, data=body, headers=headers, timeout=PATIENCE_S)
        assert (answer.status_code, answer.headers["connection"]) == (503, "close")
        assert answer.json()["error"]["param"] == "full"
    assert 'sensevoice_shed_requests_total{reason="full"} 3.0' in scrape(place)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param("Content-Length: 5\r\n", b"hello", id="whole body"),
        pytest.param("Content-Length: 0\r\n", b"", id="no body"),
        pytest.param("", b"", id="no length"),
        pytest.param(
            "Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n", id="whole chunks"
        ),
        pytest.param("Content-Length: 5\r\nExpect: 100-continue\r\n", b"", id="waits for leave"),
        pytest.param("Content-Length: 5\r\n", b"helloPOST /transcribe HTTP/1.1\r\n\r\n", id="more"),
    ],
)
def test_the_connection_ends_with_one_answer(
    occupied: tuple[House, int], headers: str, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, port = occupied
    monkeypatch.setattr(connection_module, "LONGEST_DRAIN_S", 3_600.0)
    with connect(port) as connection:
        head = f"POST /transcribe HTTP/1.1\r\nHost: x\r\n{headers}\r\n"
        connection.sendall(head.encode() + body)
        received = read_all(connection)
    assert received.count(b"HTTP/1.1 ") == 1
    assert received.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert received.lower().count(b"connection: close\r\n") == 1
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == "overloaded"


def test_a_body_that_comes_later_is_read_to_its_end(occupied: tuple[House, int]) -> None:
    _, port = occupied
    with connect(port) as connection:
        head = f"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: {2 * MIB}\r\n\r\n"
        connection.sendall(head.encode() + bytes(MIB))
        assert connection.recv(65536).startswith(b"HTTP/1.1 503 ")
        connection.sendall(bytes(MIB))
        assert read_all(connection) == b""


def test_a_door_is_asked_anew_for_each_request(occupied: tuple[House, int]) -> None:
    _, port = occupied
    live = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    work = b"POST /transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    with connect(port) as connection:
        connection.sendall(live + work + live)
        received = read_all(connection)
    statuses = [part[:3] for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"503"]


def test_after_each_refusal_the_loop_is_told_and_after_nothing_else() -> None:
    refused_on: list[asyncio.AbstractEventLoop] = []
    with occupying(full_house(), refused_on.append) as (_, port):
        url = f"http://127.0.0.1:{port}"
        for _ in range(2):
            answer = requests.post(f"{url}/transcribe", b"hello", timeout=PATIENCE_S)
            assert answer.status_code == 503
        assert requests.get(f"{url}/health/live", timeout=PATIENCE_S).status_code == 200
    assert len(refused_on) == 2
    assert len(set(refused_on)) == 1
