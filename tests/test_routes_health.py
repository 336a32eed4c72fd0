from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from starlette.testclient import TestClient

from sensevoice_service import __version__
from sensevoice_service.batcher import BatchStats
from sensevoice_service.memory import MemoryReading
from sensevoice_service.routes.health_schemas import Batches, HealthAnswer, LiveAnswer, ReadyAnswer
from tests.http_service import House, house, log_lines
from tests.scrapes import parse


def troubled(trouble: str) -> House:
    place = house(MAX_CONCURRENT_REQUESTS=1, MAX_WAITING_REQUESTS=0)
    if trouble in ("loading", "failed", "stopping"):
        place.state.status = trouble  # type: ignore[assignment]
        place.state.model = None
        place.state.failure = "no such folder" if trouble == "failed" else None
    if trouble == "memory":
        place.memory = MemoryReading(used_bytes=95, total_bytes=100, process_rss_bytes=5)
    return place


def test_a_healthy_service_tells_all_of_itself() -> None:
    answer = TestClient(house(MAX_WAITING_REQUESTS=3).app()).get("/health")
    assert answer.status_code == 200
    body: dict[str, Any] = answer.json()
    HealthAnswer.model_validate(body)
    assert body["status"] == "healthy"
    assert body["reason"] is None
    assert body["model"]["source"] == "/models/tiny"
    assert (body["device"], body["precision"]) == ("cpu", "fp32")
    assert body["version"] == __version__
    assert body["uptime_s"] >= 0
    assert body["memory"] == {
        "usage": 25.0,
        "used_bytes": 25,
        "total_bytes": 100,
        "process_rss_bytes": 5,
    }
    assert body["requests"] == {"active": 0, "waiting": 0, "limit": 20, "max_waiting": 3}
    assert body["batches"] == asdict(BatchStats(batches=7))
    assert body["gpu"] is None


def test_it_shows_all_figures_of_the_batches() -> None:
    place = house()
    stats = BatchStats(mean_batch_size=2.5, padding_ratio=0.1, out_of_memory=3, max_padded_frames=9)
    place.state.batches = stats
    body = TestClient(place.app()).get("/health").json()
    assert HealthAnswer.model_validate(body).batches == Batches(**asdict(stats))
    assert list(body["batches"]) == list(Batches.model_fields)


@pytest.mark.parametrize(
    ("trouble", "status", "reason"),
    [
        ("loading", "loading", "the model is loading"),
        ("failed", "unhealthy", "no such folder"),
        ("stopping", "unhealthy", "the service is stopping"),
        ("memory", "overloaded", "the service is short of memory"),
    ],
)
def test_a_service_in_trouble_says_so(trouble: str, status: str, reason: str) -> None:
    client = TestClient(troubled(trouble).app())
    answer = client.get("/health")
    assert answer.status_code == 503
    HealthAnswer.model_validate(answer.json())
    assert (answer.json()["status"], answer.json()["reason"]) == (status, reason)
    ready = client.get("/health/ready")
    ReadyAnswer.model_validate(ready.json())
    assert (ready.status_code, ready.json()) == (503, {"ready": False, "status": status})
    assert client.get("/health/live").status_code == 200


async def test_a_service_without_a_free_place_is_overloaded() -> None:
    place = troubled("none")
    client = TestClient(place.app())
    async with place.admission.slot():
        assert client.get("/health").json()["status"] == "overloaded"
        assert client.get("/health/ready").status_code == 503
    assert client.get("/health").json()["status"] == "healthy"


def test_probes_are_short() -> None:
    client = TestClient(house().app())
    live, ready = client.get("/health/live"), client.get("/health/ready")
    LiveAnswer.model_validate(live.json())
    assert (live.status_code, live.json()) == (200, {"status": "alive"})
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "status": "healthy"})


def test_probes_are_logged_for_debugging_only() -> None:
    with log_lines(level="INFO") as lines:
        TestClient(troubled("memory").app()).get("/health/ready")
        assert lines.is_empty()
    with log_lines(level="DEBUG") as lines:
        TestClient(house().app()).get("/health/live")
        assert lines.next()["path"] == "/health/live"


def test_a_probe_that_is_told_no_is_not_counted_as_good() -> None:
    place = troubled("loading")
    TestClient(place.app()).get("/health")
    [(labels, count)] = (
        parse(*place.metrics.exposition("")).series("sensevoice_requests_total").items()
    )
    assert dict(labels) == {"outcome": "error", "route": "/health", "status": "503"}
    assert count == 1
