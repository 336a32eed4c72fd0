"""What a scrape of a real server says of the requests that were really sent to it."""

from __future__ import annotations

import http.client
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from sensevoice_service.memory import MemoryReading
from tests.http_service import (
    PATIENCE_S,
    House,
    LogLines,
    house,
    log_lines,
    multipart,
    serving,
)
from tests.scrapes import Scrape, parse
from tests.test_routes_transport import Occupied, hang_up

TIMING = re.compile(r"(\w+);dur=(\d+\.\d)(?:, |$)")


@dataclass
class Served:
    """A running service; ``send`` gives the status of the answer, once it has been counted."""

    port: int
    lines: LogLines

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body or None, headers or {})
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def send(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> int:
        response, _ = self.ask(method, path, body, headers)
        assert self.lines.next()["path"] == path.partition("?")[0]
        return response.status

    def post(self, *files: bytes) -> int:
        return self.send("POST", "/transcribe", *multipart(*files))

    def scrape(self, accept: str = "") -> Scrape:
        response, body = self.ask("GET", "/metrics", headers={"Accept": accept})
        assert response.status == 200
        assert self.lines.next()["path"] == "/metrics"
        return parse(body, response.getheader("content-type", ""))


@contextmanager
def served(place: House) -> Iterator[Served]:
    """The line of a request follows its count, so whoever has read the line finds it counted."""
    with log_lines(level="DEBUG") as lines, serving(place.app()) as port:
        yield Served(port, lines)


def requests_of(scrape: Scrape) -> dict[tuple[str, str, str], float]:
    series = [(dict(labels), n) for labels, n in scrape.series("sensevoice_requests_total").items()]
    return {(one["route"], one["status"], one["outcome"]): n for one, n in series}


def shed_of(scrape: Scrape) -> dict[str, float]:
    series = scrape.series("sensevoice_shed_requests_total")
    return {dict(labels)["reason"]: value for labels, value in series.items() if value}


def test_the_counts_are_those_of_the_requests_sent() -> None:
    with served(house(MAX_UPLOAD_MB=1)) as service:
        assert [service.post(b"one") for _ in range(3)] == [200, 200, 200]
        assert service.post(b"one", b"two") == 200
        assert service.post(b"one", b"noise") == 200
        assert [service.post(b"noise"), service.post(b"")] == [415, 400]
        assert service.post(bytes(2**20)) == 413
        assert service.post() == 422
        assert service.send("POST", "/transcribe", b"{}", {"Content-Type": "text/plain"}) == 415
        assert service.send("GET", "/transcribe") == 405
        assert service.send("GET", "/health") == 200
        assert requests_of(service.scrape()) == {
            ("/transcribe", "200", "ok"): 4,
            ("/transcribe", "200", "partial"): 1,
            ("/transcribe", "415", "unsupported_audio"): 1,
            ("/transcribe", "400", "empty_file"): 1,
            ("/transcribe", "413", "upload_too_large"): 1,
            ("/transcribe", "422", "invalid_request"): 1,
            ("/transcribe", "415", "unsupported_media_type"): 1,
            ("/transcribe", "405", "method_not_allowed"): 1,
            ("/health", "200", "ok"): 1,
        }
        second = service.scrape("application/openmetrics-text")
    assert requests_of(second)["/metrics", "200", "ok"] == 1


def test_times_and_lengths_are_those_of_the_files_that_were_transcribed() -> None:
    with served(house()) as service:
        for files in ([b"one"], [b"one", b"two"], [b"one", b"noise"], [b"noise"]):
            service.post(*files)
        found = service.scrape()
    assert found.value("sensevoice_audio_seconds_total") == 6.0
    assert found.value("sensevoice_request_audio_seconds_count") == 3
    assert found.value("sensevoice_request_audio_seconds_bucket", le="2.5") == 2
    assert found.value("sensevoice_rtfx_count") == 3
    assert found.value("sensevoice_processing_seconds_total") > 0
    sums = {"queue": 0.6, "decode": 0.4, "infer": 1.2}
    for phase, sum_s in sums.items():
        assert found.value("sensevoice_phase_seconds_count", phase=phase) == 3
        assert found.value("sensevoice_phase_seconds_sum", phase=phase) == pytest.approx(sum_s)
    assert found.value("sensevoice_phase_seconds_count", phase="wait") == 4
    assert found.value("sensevoice_request_duration_seconds_count", route="/transcribe") == 4


def test_a_scrape_needs_no_slot_and_sees_who_has_one() -> None:
    place = house(MAX_CONCURRENT_REQUESTS=1, MAX_WAITING_REQUESTS=0)
    with served(place) as service:
        with Occupied(place, service.port):
            found = service.scrape()
            assert service.post(b"one") == 503
            refused = service.scrape()
        assert service.lines.next()["status"] == 499
        after = service.scrape()
    names = ("slots_in_use", "slots_limit", "requests_waiting", "requests_waiting_limit")
    assert [found.value(f"sensevoice_{name}") for name in names] == [1, 1, 0, 0]
    assert (shed_of(found), shed_of(refused)) == ({}, {"full": 1})
    assert after.value("sensevoice_slots_in_use") == 0
    assert requests_of(after)["/transcribe", "503", "overloaded"] == 1
    assert requests_of(after)["/transcribe", "499", "disconnected"] == 1


def test_who_waits_in_vain_is_counted_with_the_wait() -> None:
    place = house(MAX_CONCURRENT_REQUESTS=1, QUEUE_TIMEOUT_SEC=0.1)
    with served(place) as service, Occupied(place, service.port):
        assert service.post(b"one") == 503
        found = service.scrape()
    assert shed_of(found) == {"timeout": 1}
    wait_s = found.value("sensevoice_phase_seconds_sum", phase="wait")
    assert wait_s >= 0.098  # the event loop counts in ms


def test_who_gives_up_waiting_is_not_shed() -> None:
    place = house(MAX_CONCURRENT_REQUESTS=1)
    with served(place) as service, Occupied(place, service.port):
        waiting = Occupied(place, service.port)
        scrapes = (service.scrape() for _ in range(1_000))
        assert any(one.value("sensevoice_requests_waiting") for one in scrapes)
        hang_up(waiting.connection)
        assert service.lines.next()["outcome"] == "disconnected"
        assert shed_of(service.scrape()) == {}


def test_want_of_memory_and_of_a_model_are_told_apart() -> None:
    place = house()
    with served(place) as service:
        place.memory = MemoryReading(used_bytes=95, total_bytes=100, process_rss_bytes=5)
        assert service.post(b"one") == 503
        place.memory = MemoryReading(used_bytes=5, total_bytes=100, process_rss_bytes=5)
        place.state.status = "loading"
        assert [service.post(b"one") for _ in range(2)] == [503, 503]
        assert shed_of(service.scrape()) == {"memory": 1, "not_ready": 2}


def test_paths_that_do_not_exist_share_a_label() -> None:
    with served(house()) as service:
        for number in range(20):
            assert service.send("GET", f"/wp-admin/{number}") == 404
        assert service.send("GET", "/transcribe/") == 404
        assert requests_of(service.scrape()) == {("other", "404", "not_found"): 21}


def test_names_and_ids_of_clients_do_not_become_labels() -> None:
    with served(house()) as service:
        body, headers = multipart(b"one", keys="secret")
        service.send("POST", "/transcribe?q=secret", body, {**headers, "X-Request-Id": "secret"})
        _, text = service.ask("GET", "/metrics")
    assert b"secret" not in text


def test_a_request_under_way_is_not_yet_counted() -> None:
    with served(house()) as service:
        assert requests_of(service.scrape()) == {}
        assert requests_of(service.scrape()) == {("/metrics", "200", "ok"): 1}


def test_requests_at_once_are_all_counted() -> None:
    with served(house()) as service:
        senders = [
            threading.Thread(target=service.ask, args=("POST", "/transcribe", *multipart(b"one")))
            for _ in range(16)
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(PATIENCE_S)
            service.lines.next()
        found = service.scrape()
    assert requests_of(found) == {("/transcribe", "200", "ok"): 16}
    assert found.value("sensevoice_audio_seconds_total") == 24.0


def test_an_answer_that_breaks_off_is_counted_too() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"half"
        raise RuntimeError("too late")

    place = house()
    app = place.app()
    app.add_api_route("/break", lambda: StreamingResponse(pieces()))
    with pytest.raises(RuntimeError, match="too late"):
        TestClient(app).get("/break")
    found = parse(*place.metrics.exposition(""))
    assert requests_of(found) == {("other", "200", "aborted"): 1}


def test_a_service_that_loads_can_be_scraped() -> None:
    place = house()
    place.state.status, place.state.model = "loading", None
    with served(place) as service:
        found = service.scrape()
    assert found.value("sensevoice_state", state="loading") == 1
    assert found.series("sensevoice_model_info") == {}


def test_the_application_as_it_is_put_together_can_be_scraped_before_it_loads() -> None:
    from api import create_app

    app = create_app(house(MODEL="/nonexistent", MAX_CONCURRENT_REQUESTS=7).settings)
    answer = TestClient(app).get("/metrics")  # the lifespan, and so the loading, has not begun
    found = parse(answer.content, answer.headers["content-type"])
    assert found.value("sensevoice_state", state="loading") == 1
    assert found.value("sensevoice_slots_limit") == 7
    assert found.value("sensevoice_batches_total") == 0
    assert found.value("sensevoice_memory_limit_bytes") > 0


def test_scrapes_are_logged_for_debugging_only() -> None:
    with log_lines(level="INFO") as lines:
        assert TestClient(house().app()).get("/metrics").status_code == 200
        assert lines.is_empty()


def test_an_answer_is_fresh_and_only_read() -> None:
    client = TestClient(house().app())
    answer = client.get("/metrics")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert client.post("/metrics").status_code == 405


def test_all_formats_that_a_client_takes_are_looked_at() -> None:
    formats = [("Accept", "text/html"), ("Accept", "application/openmetrics-text")]
    answer = TestClient(house().app()).get("/metrics", headers=formats)
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")


def timings(place: House, *files: bytes) -> dict[str, float]:
    body, headers = multipart(*files)
    answer = TestClient(place.app()).post("/transcribe", content=body, headers=headers)
    return {
        phase: float(spent_ms)
        for phase, spent_ms in TIMING.findall(answer.headers.get("server-timing", ""))
    }


def test_an_answer_tells_its_times_in_milliseconds() -> None:
    found = timings(house(), b"one", b"two")
    assert list(found) == ["wait", "queue", "decode", "infer", "total"]
    assert (found["queue"], found["decode"], found["infer"]) == (200.0, 200.0, 600.0)
    assert found["total"] >= found["wait"] >= 0


def test_an_error_tells_the_times_that_are_known() -> None:
    assert list(timings(house(), b"noise")) == ["wait", "total"]
    assert timings(house(MEMORY_LIMIT_PERCENT=1.0), b"one") == {}


@pytest.mark.parametrize("path", ["/health", "/metrics", "/nowhere"])
def test_other_answers_have_no_times(path: str) -> None:
    assert "server-timing" not in TestClient(house().app()).get(path).headers
