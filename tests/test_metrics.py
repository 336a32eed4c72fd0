from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from sensevoice_service.batcher import BatchLimits, BatchStats
from sensevoice_service.memory import MemoryReading
from sensevoice_service.metrics import (
    PHASES,
    SHED_REASONS,
    EndedRequest,
    Metrics,
)
from tests.echo import Room, batchers, chunk, failure
from tests.http_service import MODEL, House, house
from tests.scrapes import Scrape, parse

ONE = EndedRequest(
    "/transcribe", 200, "ok", 2.0, {"wait": 0.25, "infer": 0.5}, audio_s=30.0, process_s=1.5
)
REFUSED = EndedRequest("/transcribe", 503, "overloaded", 0.25, {}, shed="full")


def scrape(place: House, accept: str = "") -> Scrape:
    return parse(*place.metrics.exposition(accept))


def test_a_request_is_counted_by_route_status_and_outcome() -> None:
    place = house()
    for request in (ONE, ONE, replace(ONE, outcome="partial"), REFUSED):
        place.metrics.request_ended(request)
    assert scrape(place).series("sensevoice_requests_total") == {
        (("outcome", "ok"), ("route", "/transcribe"), ("status", "200")): 2,
        (("outcome", "partial"), ("route", "/transcribe"), ("status", "200")): 1,
        (("outcome", "overloaded"), ("route", "/transcribe"), ("status", "503")): 1,
    }


def test_only_what_is_known_of_a_request_is_counted() -> None:
    place = house()
    place.metrics.request_ended(ONE)
    place.metrics.request_ended(REFUSED)
    found = scrape(place)
    counts = {phase: found.value("sensevoice_phase_seconds_count", phase=phase) for phase in PHASES}
    assert counts == {"wait": 1, "queue": 0, "decode": 0, "infer": 1}
    assert found.value("sensevoice_phase_seconds_sum", phase="infer") == 0.5
    assert found.value("sensevoice_request_duration_seconds_count", route="/transcribe") == 2
    assert found.value("sensevoice_request_duration_seconds_sum", route="/transcribe") == 2.25
    assert found.value("sensevoice_rtfx_count") == 1


def test_the_real_time_factor_follows_from_two_counters() -> None:
    place = house()
    place.metrics.request_ended(ONE)
    place.metrics.request_ended(replace(ONE, audio_s=10.0, process_s=0.5))
    found = scrape(place)
    assert found.value("sensevoice_audio_seconds_total") == 40
    assert found.value("sensevoice_processing_seconds_total") == 2
    assert found.value("sensevoice_request_audio_seconds_sum") == 40
    assert found.value("sensevoice_rtfx_sum") == 40  # 20 of each
    assert found.value("sensevoice_rtfx_bucket", le="10.0") == 0
    assert found.value("sensevoice_rtfx_bucket", le="20.0") == 2


def test_a_clock_that_stood_still_does_no_harm() -> None:
    place = house()
    place.metrics.request_ended(replace(ONE, process_s=0.0))
    assert scrape(place).value("sensevoice_rtfx_bucket", le="+Inf") == 1


def test_what_may_be_counted_later_is_there_at_0() -> None:
    found = scrape(house())
    shed = {
        reason: found.value("sensevoice_shed_requests_total", reason=reason)
        for reason in SHED_REASONS
    }
    assert shed == dict.fromkeys(SHED_REASONS, 0)
    assert found.value("sensevoice_audio_seconds_total") == 0


def test_services_in_one_process_count_apart() -> None:
    one, other = house(), house()
    one.metrics.request_ended(ONE)
    assert scrape(one).value("sensevoice_audio_seconds_total") == 30
    assert scrape(other).value("sensevoice_audio_seconds_total") == 0


def test_a_registry_takes_one_service_alone() -> None:
    place, registry = house(), CollectorRegistry()
    Metrics(registry, place.sources())
    with pytest.raises(ValueError, match="Duplicated"):
        Metrics(registry, place.sources())


def test_the_state_is_1_and_all_others_are_0() -> None:
    place = house()
    place.state.status = "stopping"
    states = scrape(place).series("sensevoice_state")
    assert {dict(labels)["state"]: value for labels, value in states.items()} == {
        "loading": 0,
        "ready": 0,
        "failed": 0,
        "stopping": 1,
    }


def test_the_model_is_told_once_there_is_one() -> None:
    place = house()
    labels = {"name": "tiny", "device": "cpu", "precision": "fp32", "demo": "true"}
    assert scrape(place).value("sensevoice_model_info", **labels) == 1
    place.state.model = replace(MODEL, is_demo=False, name='a "quoted"\nname')
    labels |= {"name": 'a "quoted"\nname', "demo": "false"}
    assert scrape(place).value("sensevoice_model_info", **labels) == 1
    place.state.model = None
    assert scrape(place).series("sensevoice_model_info") == {}


def test_the_batches_are_as_the_batcher_tells() -> None:
    place, room = house(), Room(max_padded_frames=50, poison=frozenset({2}))
    limits = BatchLimits(max_items=2, max_padded_frames=1_000, max_wait_s=0)
    with batchers() as make:
        batcher = make(room, limits=limits, start=False)
        futures = [batcher.submit(chunk(index, n_frames=40)) for index in range(3)]
        place.state.batches = batcher.stats()
        assert scrape(place).value("sensevoice_chunks_queued") == 3
        batcher.start()
        assert [failure(future) is None for future in futures] == [True, True, False]
        place.state.batches = batcher.stats()
    found = scrape(place)
    assert found.value("sensevoice_chunks_queued") == 0
    assert found.value("sensevoice_out_of_memory_total") == 1
    assert found.value("sensevoice_padded_frames_limit") == 40
    assert found.value("sensevoice_batches_total") == 2
    assert found.value("sensevoice_batch_chunks_total") == 2
    assert found.value("sensevoice_failed_chunks_total") == 1
    assert found.value("sensevoice_consecutive_failed_batches") == 1


def test_each_figure_of_the_batches_has_its_own_place() -> None:
    place = house()
    place.state.batches = BatchStats(
        **{field.name: 100 + number for number, field in enumerate(fields(BatchStats))}
    )
    stats, found = place.state.batches, scrape(place)
    names = {
        "sensevoice_batches_total": stats.batches,
        "sensevoice_batch_chunks_total": stats.items,
        "sensevoice_batch_frames_total": stats.frames,
        "sensevoice_batch_padded_frames_total": stats.padded_frames,
        "sensevoice_infer_seconds_total": stats.infer_s,
        "sensevoice_failed_batches_total": stats.failed_batches,
        "sensevoice_failed_chunks_total": stats.failed_items,
        "sensevoice_out_of_memory_total": stats.out_of_memory,
        "sensevoice_padded_frames_limit": stats.max_padded_frames,
        "sensevoice_consecutive_failed_batches": stats.consecutive_failures,
        "sensevoice_chunks_queued": stats.queued,
        "sensevoice_chunks_running": stats.running,
        "sensevoice_longest_batch_seconds": stats.longest_running_s,
    }
    assert {name: found.value(name) for name in names} == names


def test_memory_is_that_of_the_container_and_of_the_gpu() -> None:
    place = house()
    place.memory = MemoryReading(used_bytes=30, total_bytes=120, process_rss_bytes=5)
    found = scrape(place)
    assert found.value("sensevoice_memory_percent") == 25
    assert found.value("sensevoice_memory_used_bytes") == 30
    assert found.value("sensevoice_memory_limit_bytes") == 120
    assert found.series("sensevoice_gpu_memory_bytes") == {}
    first = {"used_bytes": 3, "total_bytes": 4, "process_bytes": 2}
    second = {"used_bytes": 1, "total_bytes": 4, "process_bytes": 1}
    place.state.gpu = {"used_bytes": 4, "devices": {"cuda:0": first, "cuda:1": second}}
    series = scrape(place).series("sensevoice_gpu_memory_bytes")
    names = [dict(labels) for labels in series]
    assert {(n["device"], n["kind"]): v for n, v in zip(names, series.values(), strict=True)} == {
        ("cuda:0", "used"): 3,
        ("cuda:0", "total"): 4,
        ("cuda:0", "process"): 2,
        ("cuda:1", "used"): 1,
        ("cuda:1", "total"): 4,
        ("cuda:1", "process"): 1,
    }


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc")
def test_the_process_tells_of_itself() -> None:
    assert scrape(house()).value("process_resident_memory_bytes") > 0


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/html,*/*;q=0.8", "text/plain; version=0.0.4; charset=utf-8"),
        (
            "application/openmetrics-text",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
        (
            "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3",
            "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores",
        ),
        ("application/openmetrics-text;version=x", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=1.0.x", "text/plain; version=0.0.4; charset=utf-8"),
    ],
)
def test_the_format_is_the_one_that_is_accepted(accept: str, media_type: str) -> None:
    place = house()
    place.metrics.request_ended(ONE)
    body, found = place.metrics.exposition(accept)
    assert found == media_type
    assert parse(body, found).value("sensevoice_audio_seconds_total") == 30
