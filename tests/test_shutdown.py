"""How the service ends, in a process of its own, in each state that a signal may find it in."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.audio_files import pcm16, voice, wav
from tests.http_service import multipart
from tests.server_process import PATIENT_S, ServerProcess, gated_service, make_ready

FOR_EVER = "86400"  # a setting in seconds: a test that waited it out would hang
SHORT = wav(pcm16(voice(1)))
TWO_CHUNKS = wav(pcm16(voice(5)))


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def post(server: ServerProcess, content: bytes = SHORT, **fields: str) -> httpx.Response:
    with server.client() as client:
        return client.post("/transcribe", files={"files": ("a.wav", content)}, data=fields)


def terminate(server: ServerProcess) -> None:
    """Send the signal and wait until it has been heard."""
    server.process.send_signal(signal.SIGTERM)
    server.logged("stopping: ")


def until_slots_are(server: ServerProcess, active: int, waiting: int) -> None:
    with server.client() as client:
        for _ in range(10_000):
            requests = client.get("/health").json()["requests"]
            if (requests["active"], requests["waiting"]) == (active, waiting):
                return
    raise AssertionError(requests)


def begin_upload(server: ServerProcess, body: bytes, headers: dict[str, str]) -> socket.socket:
    """Send half of a form; the rest is the caller's to send."""
    host, _, port = server.address.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENT_S)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = ["POST /transcribe HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines]
    connection.sendall("\r\n".join([*head, "", ""]).encode() + body[: len(body) // 2])
    until_slots_are(server, active=1, waiting=0)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def texts(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [str(text) for text in answer.json()["results"]]


def assert_refused(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert "stopping" in answer.json()["error"]["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 5


def assert_ended_well(server: ServerProcess) -> None:
    assert server.exit_status() == 0, server.log
    assert server.errors == []
    assert "Traceback" not in server.log


def test_while_it_loads_it_ends_without_a_drain() -> None:
    with gated_service(DRAIN_SEC=FOR_EVER) as server:
        assert server.address
        server.process.send_signal(signal.SIGTERM)
        assert_ended_well(server)


def test_idle_it_says_at_once_that_it_stops_and_listens_on_for_the_drain() -> None:
    with gated_service(DRAIN_SEC=FOR_EVER) as server:
        make_ready(server)
        terminate(server)
        with server.client() as client:
            ready, live = client.get("/health/ready"), client.get("/health/live")
        assert (ready.status_code, live.status_code) == (503, 200)
        assert ready.headers["connection"] == "close"
        assert_refused(post(server))


def test_after_the_drain_it_listens_no_more_and_ends() -> None:
    with gated_service(DRAIN_SEC="0.5") as server:
        make_ready(server)
        terminate(server)
        assert_ended_well(server)
        with pytest.raises(httpx.ConnectError):
            post(server)


def test_a_ctrl_c_ends_it_without_a_drain() -> None:
    with gated_service(DRAIN_SEC=FOR_EVER) as server:
        make_ready(server)
        server.process.send_signal(signal.SIGINT)
        assert_ended_well(server)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(pool: ThreadPoolExecutor, second: signal.Signals) -> None:
    with gated_service(SHUTDOWN_TIMEOUT_SEC=FOR_EVER) as server:
        make_ready(server)
        answer = pool.submit(post, server)
        server.logged("a batch is in")
        terminate(server)
        server.process.send_signal(second)
        assert server.exit_status() == 128 + second
        assert isinstance(answer.exception(PATIENT_S), httpx.RemoteProtocolError)


def test_a_first_signal_costs_no_answer_where_it_stops_by_itself_already() -> None:
    body, headers = multipart(SHORT)
    with gated_service() as server:
        make_ready(server)
        with begin_upload(server, body, headers) as connection:
            server.tell("break")
            assert [post(server).status_code for _ in range(3)] == [500] * 3
            server.logged("stopping: ")
            server.process.send_signal(signal.SIGTERM)
            connection.sendall(body[len(body) // 2 :])
            assert read_to_end(connection).startswith(b"HTTP/1.1 500 ")
        assert server.exit_status() == 3


def test_an_upload_under_way_is_received_and_answered() -> None:
    body, headers = multipart(SHORT)
    with gated_service() as server:
        make_ready(server)
        with begin_upload(server, body, headers) as connection:
            terminate(server)
            connection.sendall(body[len(body) // 2 :])
            server.tell("go")
            answer = read_to_end(connection)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"results":["w0"]' in answer
        assert_ended_well(server)


def test_an_upload_that_does_not_end_in_time_is_answered_503() -> None:
    body, headers = multipart(SHORT)
    with gated_service(SHUTDOWN_TIMEOUT_SEC="0") as server:
        make_ready(server)
        with begin_upload(server, body, headers) as connection:
            terminate(server)
            answer = read_to_end(connection)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert_ended_well(server)


def test_those_who_wait_and_run_are_all_answered(pool: ThreadPoolExecutor) -> None:
    with gated_service(MAX_CONCURRENT_REQUESTS="1") as server:
        make_ready(server)
        running = pool.submit(post, server)
        server.logged("a batch is in")
        waiting = pool.submit(post, server, TWO_CHUNKS, lang="en")
        until_slots_are(server, active=1, waiting=1)
        terminate(server)
        for _ in range(2):
            server.tell("go")
        assert texts(running.result(PATIENT_S)) == ["w0"]
        assert texts(waiting.result(PATIENT_S)) == ["w0"]
        assert_ended_well(server)


def test_a_hung_engine_does_not_hold_it_and_all_get_503(pool: ThreadPoolExecutor) -> None:
    with gated_service(MAX_CONCURRENT_REQUESTS="1", SHUTDOWN_TIMEOUT_SEC="1") as server:
        make_ready(server)
        running = pool.submit(post, server)
        server.logged("a batch is in")
        waiting = pool.submit(post, server)
        until_slots_are(server, active=1, waiting=1)
        terminate(server)
        assert_refused(running.result(PATIENT_S))
        assert_refused(waiting.result(PATIENT_S))
        assert_ended_well(server)


def test_a_decoder_that_hangs_does_not_hold_it_either(pool: ThreadPoolExecutor) -> None:
    with gated_service("deaf", SHUTDOWN_TIMEOUT_SEC="0") as server:
        make_ready(server)
        answer = pool.submit(post, server)
        server.logged("decoding hangs")
        terminate(server)
        assert server.exit_status() == 0
        assert isinstance(answer.exception(PATIENT_S), httpx.TransportError)


def events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, object]]]:
    name = ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


@pytest.mark.parametrize("is_hung", [False, True])
def test_a_stream_is_ended_as_it_should(is_hung: bool) -> None:
    cut = {"LARGE_FILE_DURATION_SEC": "3", "LARGE_FILE_CHUNK_SIZE_SEC": "3"}
    with gated_service(**cut, SHUTDOWN_TIMEOUT_SEC="1" if is_hung else FOR_EVER) as server:
        make_ready(server)
        server.tell("go")
        form = {"files": ("a.wav", TWO_CHUNKS)}
        with (
            server.client() as client,
            client.stream("POST", "/transcribe", files=form, data={"stream": "true"}) as answer,
        ):
            told = events(answer.iter_lines())
            assert next(told)[0] == "progress"
            server.logged("a batch is in", times=2)
            terminate(server)
            if not is_hung:
                server.tell("go")
            rest = list(told)
        assert [name for name, _ in rest if name != "progress"] == ["error" if is_hung else "done"]
        assert rest[-1][1].get("status") == (503 if is_hung else None)
        assert_ended_well(server)


def test_a_request_that_takes_too_long_is_answered_504(pool: ThreadPoolExecutor) -> None:
    with gated_service(REQUEST_TIMEOUT_SEC="1") as server:
        make_ready(server)
        answer = pool.submit(post, server).result(PATIENT_S)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timed_out")
        until_slots_are(server, active=0, waiting=0)
