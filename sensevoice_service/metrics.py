"""What monitoring may know of the service, counted here and rendered for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from sensevoice_service.admission import AdmissionStats
from sensevoice_service.memory import MemoryReading
from sensevoice_service.status import ServiceState, Status

PHASES = ("wait", "queue", "decode", "infer")
SHED_REASONS = ("full", "timeout", "memory", "not_ready")

# From a word on a GPU to hours of speech on a CPU.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_AUDIO_SECONDS = (1, 2.5, 5, 10, 15, 30, 60, 300, 900, 3_600, 7_200, 21_600)
_RTFX = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
_LEAST_PROCESS_S = 1e-6  # no division by a clock that stood still

# The fields of ``BatchStats``, and what they are called here.
_BATCH_COUNTERS = {
    "batches": ("sensevoice_batches", "Calls of the model that gave an answer."),
    "items": ("sensevoice_batch_chunks", "Chunks recognised."),
    "frames": ("sensevoice_batch_frames", "60 ms frames recognised."),
    "padded_frames": ("sensevoice_batch_padded_frames", "The same with padding."),
    "infer_s": ("sensevoice_infer_seconds", "Seconds in the model, of all inference threads."),
    "failed_batches": ("sensevoice_failed_batches", "Calls of the model that failed."),
    "failed_items": ("sensevoice_failed_chunks", "Chunks that failed."),
    "out_of_memory": ("sensevoice_out_of_memory", "Calls that did not fit the device."),
}
_BATCH_GAUGES = {
    "max_padded_frames": (
        "sensevoice_padded_frames_limit",
        "Most padded frames in a batch: fewer for a while after one did not fit.",
    ),
    "consecutive_failures": (
        "sensevoice_consecutive_failed_batches",
        "Failed batches since the last good one.",
    ),
    "queued": ("sensevoice_chunks_queued", "Chunks that wait for the model."),
    "running": ("sensevoice_chunks_running", "Chunks in the model."),
    "longest_running_s": (
        "sensevoice_longest_batch_seconds",
        "Age of the oldest batch that still runs.",
    ),
}


@dataclass(frozen=True)
class EndedRequest:
    """What is known of a request at its end; what is not known is not counted.

    ``route`` must come from a fixed list, whatever path was asked for. ``status`` is 0 where no
    answer was begun. ``phases_s`` has some of ``PHASES``, ``shed`` is one of ``SHED_REASONS``.
    ``audio_s`` is the audio that got a transcript, ``process_s`` the time this took without slot
    and upload.
    """

    route: str
    status: int
    outcome: str
    total_s: float
    phases_s: Mapping[str, float]
    audio_s: float | None = None
    process_s: float | None = None
    shed: str | None = None


@dataclass(frozen=True)
class Sources:
    """Who is asked at each scrape; none of them may block."""

    state: ServiceState
    admission: Callable[[], AdmissionStats]
    memory: Callable[[], MemoryReading]


class Metrics:
    """The counts of one service, in a registry that nobody else writes to."""

    def __init__(self, registry: CollectorRegistry, sources: Sources) -> None:
        self._registry = registry
        self._requests = self._counter(
            "requests",
            "Requests that have ended; status 0 is a connection that ended before an answer.",
            "route",
            "status",
            "outcome",
        )
        self._shed = self._counter("shed_requests", "Requests turned away with 503.", "reason")
        self._audio = self._counter("audio_seconds", "Audio that got a transcript.")
        self._process = self._counter(
            "processing_seconds",
            "Time from the end of an upload to its transcripts, added up over requests.",
        )
        self._durations = self._histogram(
            "request_duration_seconds", "Time from a request to the end of its answer.", "route"
        )
        self._phases = self._histogram(
            "phase_seconds",
            "Waiting for a slot, a chunk's longest wait in the queue, decoding, and the share of"
            " the device's time, a request.",
            "phase",
        )
        self._lengths = self._histogram(
            "request_audio_seconds", "Audio transcribed, a request.", buckets=_AUDIO_SECONDS
        )
        self._rtfx = self._histogram(
            "rtfx", "Seconds of audio a second of processing, a request.", buckets=_RTFX
        )
        # A series that is there from the start shows its first count as an increase.
        for phase in PHASES:
            self._phases.labels(phase)
        for reason in SHED_REASONS:
            self._shed.labels(reason)
        registry.register(StateCollector(sources))
        ProcessCollector(registry=registry)

    def request_ended(self, request: EndedRequest) -> None:
        self._requests.labels(request.route, request.status, request.outcome).inc()
        self._durations.labels(request.route).observe(request.total_s)
        for phase, spent_s in request.phases_s.items():
            self._phases.labels(phase).observe(spent_s)
        if request.shed is not None:
            self._shed.labels(request.shed).inc()
        if request.audio_s is not None and request.process_s is not None:
            self._audio.inc(request.audio_s)
            self._process.inc(request.process_s)
            self._lengths.observe(request.audio_s)
            self._rtfx.observe(request.audio_s / max(request.process_s, _LEAST_PROCESS_S))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All of it and its media type, in the format that the header ``Accept`` prefers."""
        try:
            encode, media_type = choose_encoder(accept)
        except TypeError:  # a version that is not made of numbers
            encode, media_type = choose_encoder("")
        return encode(self._registry), media_type

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"sensevoice_{name}", description, labels, registry=self._registry)

    def _histogram(
        self, name: str, description: str, *labels: str, buckets: tuple[float, ...] = _SECONDS
    ) -> Histogram:
        return Histogram(
            f"sensevoice_{name}", description, labels, registry=self._registry, buckets=buckets
        )


class StateCollector(Collector):
    """Reads snapshots when it is scraped: nothing has to be kept in step meanwhile."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        yield from _state_metrics(self._sources.state)
        yield from _batch_metrics(asdict(self._sources.state.batch_stats()))
        yield from _admission_metrics(self._sources.admission())
        yield from _memory_metrics(self._sources.memory())
        yield from _gpu_metrics(self._sources.state.gpu_memory())


def _state_metrics(state: ServiceState) -> Iterable[Metric]:
    now, model = state.status, state.model
    states = GaugeMetricFamily(
        "sensevoice_state", "1 for what the service is, 0 for what it is not.", labels=["state"]
    )
    for name in get_args(Status):
        states.add_metric([name], name == now)
    about = InfoMetricFamily("sensevoice_model", "The model that answers.")
    if model is not None:
        about.add_metric(
            [],
            {
                "name": model.name,
                "device": model.device,
                "precision": model.precision,
                "demo": str(model.is_demo).lower(),
            },
        )
    return states, about


def _batch_metrics(stats: Mapping[str, float]) -> Iterator[Metric]:
    for field, (name, description) in _BATCH_COUNTERS.items():
        yield CounterMetricFamily(name, description, value=stats[field])
    for field, (name, description) in _BATCH_GAUGES.items():
        yield GaugeMetricFamily(name, description, value=stats[field])


def _admission_metrics(stats: AdmissionStats) -> Iterable[Metric]:
    return (
        GaugeMetricFamily("sensevoice_slots_in_use", "Requests worked on.", stats.active),
        GaugeMetricFamily("sensevoice_slots_limit", "Requests worked on at once.", stats.limit),
        GaugeMetricFamily(
            "sensevoice_requests_waiting", "Requests that wait for a slot.", stats.waiting
        ),
        GaugeMetricFamily(
            "sensevoice_requests_waiting_limit",
            "Requests that may wait for a slot.",
            stats.max_waiting,
        ),
    )


def _memory_metrics(reading: MemoryReading) -> Iterable[Metric]:
    return (
        GaugeMetricFamily(
            "sensevoice_memory_percent",
            "Memory in use, of the container's limit or the host's.",
            reading.percent,
        ),
        GaugeMetricFamily("sensevoice_memory_used_bytes", "The same.", reading.used_bytes),
        GaugeMetricFamily("sensevoice_memory_limit_bytes", "All of it.", reading.total_bytes),
    )


def _gpu_metrics(memory: Mapping[str, Any] | None) -> Iterable[Metric]:
    family = GaugeMetricFamily(
        "sensevoice_gpu_memory_bytes",
        "Memory of the GPU: in use by all, there is in total, held by this process.",
        labels=["device", "kind"],
    )
    devices = (memory or {}).get("devices", {})
    for device, reading in devices.items():
        for name, n_bytes in reading.items():
            family.add_metric([device, name.removesuffix("_bytes")], n_bytes)
    return (family,)
