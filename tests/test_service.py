from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest

from sensevoice_service.batcher import Batcher, BatchLimits, BatchStats
from sensevoice_service.pipeline import Pipeline
from sensevoice_service.service import LoadedModel, Service
from sensevoice_service.status import ModelInfo
from sensevoice_service.types import (
    Chunk,
    DecodeOptions,
    Hypothesis,
    InferenceFailed,
    ModelError,
    NotReady,
)
from tests.audio_files import pcm16, upload, voice, wav
from tests.echo import VOCABULARY, chunk, policy, recognise

PATIENT_S = 20  # only a hang takes that long
INFO = ModelInfo("echo", False, "cpu", "fp32", "/models/echo", 7)
RECORDING = wav(pcm16(voice(1)))
OPTIONS = DecodeOptions()
CHUNK = chunk(0)

Load = Callable[[threading.Event], LoadedModel]


@dataclass
class Gate:
    """A recogniser that waits to be let through."""

    entered: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def __call__(self, chunks: Sequence[Chunk]) -> list[Hypothesis]:
        self.entered.set()
        assert self.opened.wait(PATIENT_S)
        return recognise(chunks)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def failures() -> list[bool]:
    """One entry for each time that the service says it cannot go on."""
    return []


@pytest.fixture
def start(failures: list[bool]) -> Iterator[Callable[[Load], Service]]:
    services = []

    def start(load: Load) -> Service:
        services.append(Service(load, lambda: failures.append(True)))
        services[-1].start()
        return services[-1]

    yield start
    for service in services:
        service.stop(timeout_s=PATIENT_S)
    wait_for_load()


def wait_for_load() -> None:
    for thread in threading.enumerate():
        if thread.name == "load-model":
            thread.join(PATIENT_S)
            assert not thread.is_alive()


def loaded(
    pool: ThreadPoolExecutor, worker: Callable[[Sequence[Chunk]], list[Hypothesis]] = recognise
) -> LoadedModel:
    batcher = Batcher([worker], BatchLimits(max_items=8, max_padded_frames=1_000, max_wait_s=0))
    pipeline = Pipeline(batcher, pool, VOCABULARY, policy())
    return LoadedModel(INFO, batcher, pipeline, lambda: {"used_bytes": 5})


Start = Callable[[Load], Service]


async def test_while_the_model_loads_there_is_nothing_to_work_with(
    start: Start, pool: ThreadPoolExecutor
) -> None:
    may_load = threading.Event()

    def load(_stop: threading.Event) -> LoadedModel:
        assert may_load.wait(PATIENT_S)
        return loaded(pool)

    service = start(load)
    assert service.status == "loading"
    assert (service.model, service.gpu_memory(), service.failure) == (None, None, None)
    assert service.batch_stats() == BatchStats()
    with pytest.raises(NotReady, match="not loaded"):
        await service.transcribe(upload(RECORDING), OPTIONS)

    may_load.set()
    wait_for_load()
    await service.transcribe(upload(RECORDING), OPTIONS)


async def test_once_loaded_it_transcribes_and_tells_of_its_model(
    start: Start, pool: ThreadPoolExecutor, failures: list[bool]
) -> None:
    service = start(lambda _: loaded(pool))
    wait_for_load()
    result = await service.transcribe(upload(RECORDING), OPTIONS)
    assert result.transcript.text == "w0"
    assert service.status == "ready"
    assert service.model == INFO
    assert service.gpu_memory() == {"used_bytes": 5}
    assert service.batch_stats().items == 1
    assert failures == []


def test_without_one_of_its_inference_threads_it_gives_up(
    start: Start,
    pool: ThreadPoolExecutor,
    failures: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = loaded(pool)

    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(model.batcher, "_note", no_memory)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    service = start(lambda _: model)
    wait_for_load()
    with pytest.raises(NotReady):
        model.batcher.submit(CHUNK).result(PATIENT_S)
    for thread in model.batcher._threads:
        thread.join(PATIENT_S)
    assert service.failure == "an inference thread has ended"
    assert failures == [True]


@pytest.mark.parametrize(("device", "counts"), [("cpu", True), ("cuda:0", False)])
def test_the_cores_have_a_backlog_where_the_model_runs_on_them(
    start: Start, pool: ThreadPoolExecutor, device: str, counts: bool
) -> None:
    gate = Gate()
    model = loaded(pool, gate)
    service = start(lambda _: replace(model, info=replace(INFO, device=device)))
    assert service.cpu_backlog_s() == 0
    wait_for_load()
    gate.opened.set()
    model.batcher.submit(CHUNK).result(PATIENT_S)
    gate.opened.clear()
    gate.entered.clear()
    running = model.batcher.submit(CHUNK)
    assert gate.entered.wait(PATIENT_S)
    queued = model.batcher.submit(CHUNK)
    assert (service.cpu_backlog_s() > 0) is counts
    gate.opened.set()
    running.result(PATIENT_S)
    queued.result(PATIENT_S)


async def test_once_stopped_it_takes_no_work(start: Start, pool: ThreadPoolExecutor) -> None:
    service = start(lambda _: loaded(pool))
    wait_for_load()
    service.stop(timeout_s=PATIENT_S)
    assert service.status == "stopping"
    with pytest.raises(NotReady, match="stopping"):
        await service.transcribe(upload(RECORDING), OPTIONS)


def test_what_is_running_may_finish_before_it_stops(start: Start, pool: ThreadPoolExecutor) -> None:
    gate = Gate()
    model = loaded(pool, gate)
    service = start(lambda _: model)
    wait_for_load()
    answer = model.batcher.submit(Chunk(voice(1), 0, 0, OPTIONS))
    assert gate.entered.wait(PATIENT_S)
    stopping = threading.Thread(target=service.stop, args=(PATIENT_S,))
    stopping.start()
    gate.opened.set()
    stopping.join(PATIENT_S)
    assert answer.result(timeout=0).hypothesis.token_ids.tolist() == [1]


def test_what_does_not_finish_in_time_is_refused(start: Start, pool: ThreadPoolExecutor) -> None:
    gate = Gate()
    model = loaded(pool, gate)
    service = start(lambda _: model)
    wait_for_load()
    answer = model.batcher.submit(Chunk(voice(1), 0, 0, OPTIONS))
    assert gate.entered.wait(PATIENT_S)
    service.stop(timeout_s=0)
    with pytest.raises(NotReady):
        answer.result(timeout=0)
    gate.opened.set()


async def test_a_batch_that_fails_leaves_it_ready(start: Start, pool: ThreadPoolExecutor) -> None:
    def fail(_chunks: Sequence[Chunk]) -> list[Hypothesis]:
        raise RuntimeError("out of memory")

    service = start(lambda _: loaded(pool, fail))
    wait_for_load()
    with pytest.raises(InferenceFailed):
        await service.transcribe(upload(RECORDING), OPTIONS)
    assert service.status == "ready"


def test_without_its_inference_thread_it_has_failed(start: Start, pool: ThreadPoolExecutor) -> None:
    model = loaded(pool)
    service = start(lambda _: model)
    wait_for_load()
    model.batcher.stop(timeout_s=PATIENT_S)
    assert service.status == "failed"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModelError("there is no such folder"), "there is no such folder"),
        (RuntimeError("no space"), "the model could not be loaded: RuntimeError('no space')"),
    ],
    ids=["expected", "unexpected"],
)
def test_a_model_that_cannot_be_had_is_told_once(
    start: Start,
    failures: list[bool],
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    reason: str,
) -> None:
    def load(_stop: threading.Event) -> LoadedModel:
        raise error

    service = start(load)
    wait_for_load()
    assert (service.status, service.failure) == ("failed", reason)
    assert service.model is None
    assert failures == [True]
    told = [record for record in caplog.records if record.getMessage() == reason]
    assert [record.levelno for record in told] == [logging.ERROR]
    has_traceback = any(record.exc_info for record in caplog.records)
    assert has_traceback == (not isinstance(error, ModelError))


def test_a_stop_ends_a_load_under_way_which_is_no_failure(
    start: Start, failures: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    def load(stop: threading.Event) -> LoadedModel:
        assert stop.wait(PATIENT_S)
        raise ModelError("the download was stopped")

    service = start(load)
    service.stop(timeout_s=0)
    wait_for_load()
    assert (service.status, service.failure) == ("stopping", None)
    assert failures == []
    assert caplog.records == []


def test_a_model_that_comes_after_the_stop_is_not_left_running(
    start: Start, pool: ThreadPoolExecutor
) -> None:
    model = loaded(pool)

    def load(stop: threading.Event) -> LoadedModel:
        assert stop.wait(PATIENT_S)
        return model

    service = start(load)
    service.stop(timeout_s=0)
    wait_for_load()
    assert service.status == "stopping"
    with pytest.raises(NotReady):
        model.batcher.submit(Chunk(voice(1), 0, 0, OPTIONS))
