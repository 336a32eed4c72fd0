"""Recognisers for tests of what is around them: they hear which chunk it is, and no audio."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from sensevoice_service.audio import AudioLimits
from sensevoice_service.batch_call import Completion, Worker
from sensevoice_service.batcher import Batcher, BatchLimits
from sensevoice_service.chunker import ChunkPolicy
from sensevoice_service.pipeline import PipelinePolicy
from sensevoice_service.tags import Vocabulary
from sensevoice_service.types import (
    FRAME_SAMPLES,
    PROMPT_FRAMES,
    Chunk,
    DecodeOptions,
    DeviceOutOfMemory,
    Hypothesis,
    lfr_frames,
)

PATIENT_S = 30  # only a hang takes that long
NO_WAIT = BatchLimits(max_items=16, max_padded_frames=2000, max_wait_s=0)
ONE_BY_ONE = BatchLimits(max_items=1, max_padded_frames=2000, max_wait_s=0)
N_WORDS = 500


def _decode(ids: list[int]) -> str:
    return " ".join(f"w{token_id - 1}" for token_id in ids)


VOCABULARY = Vocabulary.from_pieces(["<blank>", *(f"▁w{n}" for n in range(N_WORDS))], _decode)


def hear(chunk: Chunk) -> Hypothesis:
    """Of a file's n-th chunk the word wn, in its middle, where no neighbour overlaps it."""
    frame = np.array([lfr_frames(len(chunk.samples)) // 2], np.int32)
    return Hypothesis(np.array([chunk.index + 1], np.int32), frame, frame, ())


def recognise(chunks: Sequence[Chunk]) -> list[Hypothesis]:
    return [hear(chunk) for chunk in chunks]


def completion(chunk: Chunk) -> Completion:
    return Completion(hear(chunk), queue_s=0.25, infer_s=0.5)


def words(n_chunks: int) -> str:
    """The text of a file of as many chunks."""
    return " ".join(f"w{n}" for n in range(n_chunks))


class EchoQueue:
    """Answers at once."""

    def submit(self, chunk: Chunk) -> Future[Completion]:
        future: Future[Completion] = Future()
        future.set_result(completion(chunk))
        return future


def policy(
    *, chunk_s: float = 2.0, in_flight: int = 4, max_audio_s: float = 7_200.0
) -> PipelinePolicy:
    return PipelinePolicy(
        audio=AudioLimits(max_audio_s=max_audio_s),
        chunks=ChunkPolicy(whole_s=chunk_s, chunk_s=chunk_s),
        large_file_bytes=2**40,
        max_chunks_in_flight=in_flight,
    )


def chunk(index: int, n_frames: int = 20) -> Chunk:
    samples = np.broadcast_to(np.float32(0), ((n_frames - PROMPT_FRAMES) * FRAME_SAMPLES,))
    return Chunk(samples, start_sample=0, index=index, options=DecodeOptions())


def echo(chunks: Sequence[Chunk]) -> list[Hypothesis]:
    """A worker that hears each chunk's index and length."""
    none = np.empty(0, np.int32)
    return [
        Hypothesis(np.array([c.index, len(c.samples)], np.int32), none, none, ()) for c in chunks
    ]


@dataclass
class Recorder:
    """Echoes, and keeps the indices and frames of every batch; ``poison`` is what it fails on."""

    poison: frozenset[int] = frozenset()
    error: BaseException = field(default_factory=lambda: RuntimeError("poisoned"))
    batches: list[list[int]] = field(default_factory=list)
    frames: list[list[int]] = field(default_factory=list)

    def __call__(self, chunks: Sequence[Chunk]) -> list[Hypothesis]:
        self.batches.append([c.index for c in chunks])
        self.frames.append([c.n_frames for c in chunks])
        if self.poison & {c.index for c in chunks}:
            raise self.error
        return echo(chunks)


@dataclass
class Gate(Recorder):
    """A recorder that says when it was entered and goes on when it is opened."""

    entered: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def __call__(self, chunks: Sequence[Chunk]) -> list[Hypothesis]:
        self.entered.set()
        assert self.opened.wait(PATIENT_S)
        return super().__call__(chunks)


@dataclass
class Room(Recorder):
    """A recorder on a device with memory for so many padded frames."""

    max_padded_frames: int = 0

    def __call__(self, chunks: Sequence[Chunk]) -> list[Hypothesis]:
        hypotheses = super().__call__(chunks)
        if self.padded_frames[-1] > self.max_padded_frames:
            raise DeviceOutOfMemory(f"{self.padded_frames[-1]} padded frames")
        return hypotheses

    @property
    def padded_frames(self) -> list[int]:
        return [len(frames) * max(frames) for frames in self.frames]


class FakeClock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


MakeBatcher = Callable[..., Batcher]


@contextmanager
def batchers() -> Iterator[MakeBatcher]:
    """Gives a maker of batchers, and stops at the end all that it made."""
    made: list[tuple[Batcher, tuple[Worker, ...]]] = []

    def make(
        *workers: Worker,
        limits: BatchLimits = NO_WAIT,
        clock: Callable[[], float] | None = None,
        start: bool = True,
    ) -> Batcher:
        batcher = Batcher(workers, limits, clock) if clock else Batcher(workers, limits)
        made.append((batcher, workers))
        if start:
            batcher.start()
        return batcher

    try:
        yield make
    finally:
        for batcher, workers in made:
            for worker in workers:
                if isinstance(worker, Gate):
                    worker.opened.set()
            batcher.stop(drain=False)


def heard(future: Future[Completion]) -> int:
    return int(future.result(PATIENT_S).hypothesis.token_ids[0])


def failure(future: Future[Completion]) -> BaseException | None:
    return future.exception(PATIENT_S)
