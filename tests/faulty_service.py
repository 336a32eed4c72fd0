"""The service as it is but for its engine, in this process, for faults to happen within it."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from sensevoice_service.audio import AudioLimits, decode
from sensevoice_service.batcher import Batcher
from sensevoice_service.chunker import ChunkPolicy
from sensevoice_service.isolation import DecoderLimits, DecoderProcesses
from sensevoice_service.pipeline import Pipeline, PipelinePolicy
from sensevoice_service.service import LoadedModel, Service
from sensevoice_service.types import Chunk, Hypothesis
from tests.audio_files import pcm16, voice, wav
from tests.echo import NO_WAIT, ONE_BY_ONE, VOCABULARY, recognise
from tests.hostile import (
    MIB,
    PATIENT_S,
    Body,
    Footprint,
    form,
    get,
    living_children,
    post,
    unchanged,
    until,
)
from tests.http_service import MODEL, House, house, serving

POLICY = PipelinePolicy(
    audio=AudioLimits(max_audio_s=3_600),
    chunks=ChunkPolicy(whole_s=2.0, chunk_s=2.0),
    large_file_bytes=2**40,
    max_chunks_in_flight=2,
)
CLIP, LONG = wav(pcm16((voice(1.0) / 2).astype("float32"))), wav(bytes(2 * 60 * 16_000))


@dataclass
class Engine:
    """Hears a file's n-th chunk as ``wn``; fails on loud ones, waits while ``gate`` is shut."""

    fails_on: float = 2.0
    fails_always: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Event = field(default_factory=threading.Event)
    heard: list[int] = field(default_factory=list)

    def __call__(self, chunks: Sequence[Chunk]) -> list[Hypothesis]:
        self.entered.set()
        assert self.gate.wait(PATIENT_S)
        self.heard += [chunk.index for chunk in chunks]
        loud = any(float(abs(chunk.samples).max()) >= self.fails_on for chunk in chunks)
        if self.fails_always or loud:
            raise RuntimeError("the device is on fire")
        return recognise(chunks)


class Echoing:
    """The service as it is, but for its engine; ``port`` is real."""

    def __init__(self, engine: Engine, *, isolated: bool = False, **settings: Any) -> None:
        self.engine = engine
        self.gave_up = threading.Event()
        self.pool = ThreadPoolExecutor(3)
        self.decoders = DecoderProcesses(DecoderLimits(256 * MIB, timeout_s=3.0, max_idle=3))
        self.isolated = isolated
        self.settings = settings

    def _load(self, _stop: threading.Event) -> LoadedModel:
        one_by_one = not self.engine.gate.is_set()
        self.batcher = Batcher([self.engine], ONE_BY_ONE if one_by_one else NO_WAIT)
        decoder = self.decoders.decode if self.isolated else decode
        pipeline = Pipeline(self.batcher, self.pool, VOCABULARY, POLICY, decoder)
        return LoadedModel(MODEL, self.batcher, pipeline, lambda: None, self.decoders.stop)

    @contextmanager
    def serving(self) -> Iterator[int]:
        service = Service(self._load, self.gave_up.set)
        place = House(house(**self.settings).settings, state=service)  # type: ignore[arg-type]
        place.pipeline = service  # type: ignore[assignment]
        self.place = place
        service.start()
        try:
            until(lambda: service.status == "ready")
            with serving(place.app()) as port:
                yield port
        finally:
            self.engine.gate.set()
            service.stop(PATIENT_S)
            self.pool.shutdown()

    @contextmanager
    def unharmed(self, port: int) -> Iterator[None]:
        """As the function of that name; a shut gate stands open for it alone."""
        engine, is_open = self.engine, self.engine.gate.is_set()
        engine.gate.set()
        with unharmed(self.place, port, form(CLIP, CLIP)):
            if not is_open:
                engine.gate.clear()
            engine.entered.clear()
            engine.heard.clear()
            yield
            engine.gate.set()


def opened() -> threading.Event:
    gate = threading.Event()
    gate.set()
    return gate


def posting(port: int, body: Body, answers: list[Any]) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(post(port, body)))
    thread.start()
    return thread


def footprint(place: House) -> Footprint:
    """Of this process, which is the service's too."""
    process = psutil.Process()
    links = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(os.readlink(link))
    stats = place.admission.stats()
    return Footprint(
        descriptors=process.num_fds(),
        threads=process.num_threads(),
        spools=sum(link.startswith(tempfile.gettempdir()) for link in links),
        decoders=len(living_children(process)),
        busy=stats.active + stats.waiting,
    )


@contextmanager
def unharmed(place: House, port: int, good: Body) -> Iterator[None]:
    """Whatever happens within the block, the service is afterwards what it was before."""
    texts = settle(port, good)
    baseline = unchanged(lambda: footprint(place), 0.2)
    yield
    until(lambda: footprint(place).is_within(baseline))
    assert get(port, "/health/ready")[0] == 200
    status, body = post(port, good)
    assert (status, body["results"]) == (200, texts)


def settle(port: int, good: Body) -> list[str]:
    """Use as many threads as any test here does; the texts of the good files."""
    answers: list[Any] = []
    threads = [posting(port, good, answers) for _ in range(8)]
    for thread in threads:
        thread.join(PATIENT_S)
    assert [status for status, _ in answers] == [200] * 8
    return list(answers[0][1]["results"])
