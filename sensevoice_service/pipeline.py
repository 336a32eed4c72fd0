"""The whole way of one file, from upload to transcript."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sensevoice_service.audio import AudioLimits, decode
from sensevoice_service.batch_call import Completion
from sensevoice_service.chunker import ChunkPolicy, cut
from sensevoice_service.merge import Merger
from sensevoice_service.progress import Gauge, Teller
from sensevoice_service.tags import Vocabulary
from sensevoice_service.types import (
    Block,
    Chunk,
    ChunkResult,
    DecodeOptions,
    Hypothesis,
    Progress,
    Transcript,
    Upload,
)

_T = TypeVar("_T")

# Four steps of 16 bits: a swing below this is nothing to hear, whatever a model makes of it.
SILENCE_PEAK = 4 / 32_768
FEW_SAMPLES = 256
# Chunks of a file that share a task of the pool; at a file's end no more are left to be merged.
MERGED_AT_ONCE = 8
# A file of one chunk with no more tokens, some ten seconds of speech, is merged in half a
# millisecond. To hand that to a thread and take it back costs a busy event loop about as much.
INLINE_TOKENS = 64


@dataclass(frozen=True)
class Timings:
    """Time spent decoding, the longest wait of a chunk, and the share of the device's time."""

    decode_s: float
    queue_s: float
    infer_s: float


@dataclass(frozen=True)
class PipelineResult:
    transcript: Transcript
    timings: Timings


@dataclass(frozen=True)
class PipelinePolicy:
    """How files are cut, how long they may be, and how much of one may be in hand at once."""

    audio: AudioLimits
    chunks: ChunkPolicy
    large_file_bytes: int
    max_chunks_in_flight: int


class Queue(Protocol):
    """The batcher, as it is seen from here."""

    def submit(self, chunk: Chunk) -> Future[Completion]: ...


class Decode(Protocol):
    """As ``audio.decode``: blocks of a file, each step of which may be taken in another thread."""

    def __call__(self, upload: Upload, limits: AudioLimits, /) -> Generator[Block, None, None]: ...


class Pipeline:
    """Decodes in ``pool``, recognises through ``queue``; shared by all requests."""

    def __init__(
        self,
        queue: Queue,
        pool: Executor,
        vocabulary: Vocabulary,
        policy: PipelinePolicy,
        decode: Decode = decode,
    ) -> None:
        self._decode = decode
        self._queue = queue
        self._pool = pool
        self._vocabulary = vocabulary
        self._policy = policy

    async def transcribe(
        self,
        upload: Upload,
        options: DecodeOptions,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> PipelineResult:
        """Raises ``ServiceError``; when cancelled, ends once nothing reads the file any more.

        ``on_progress`` is called on the event loop for each chunk, in the order of the file.
        """
        policy = self._policy
        blocks = self._decode(upload, policy.audio)
        gauge = Gauge(upload)
        watched = blocks if on_progress is None else gauge.watch(blocks)
        teller = None if on_progress is None else Teller(on_progress, gauge)
        is_large = upload.size_bytes > policy.large_file_bytes
        source = _ChunkSource(cut(watched, options, policy.chunks, is_large=is_large), self._pool)
        draft = _Draft(self._vocabulary, self._pool, teller)
        running: deque[_Recognition] = deque()

        async def take_oldest() -> None:
            await draft.grow(await running.popleft().finish())

        try:
            while (found := await source.next()) is not None:
                if len(running) == policy.max_chunks_in_flight:
                    await take_oldest()
                running.append(_Recognition(found, self._queue.submit(found.chunk)))
                while len(running) > 1 and running[0].is_done:
                    await take_oldest()
            while len(running) > 1:
                if not running[0].is_done:
                    await draft.catch_up()
                await take_oldest()
            await draft.catch_up()
            return await draft.conclude(await running.popleft().finish(), source.spent_s)
        finally:
            for recognition in running:
                recognition.cancel()
            await source.close()
            blocks.close()


class _Draft:
    """A transcript in the making. It is merged in the pool: that may take long for an event loop.

    Where nobody listens, several are merged in one task, those at the end of a file while the last
    are being recognised, and a short file without the pool.
    """

    def __init__(self, vocabulary: Vocabulary, pool: Executor, teller: Teller | None) -> None:
        self._merger = Merger(vocabulary)
        self._pool = pool
        self._teller = teller
        self._unmerged: list[ChunkResult] = []
        self._queue_s = self._infer_s = 0.0

    async def grow(self, one: _Recognised) -> None:
        self._take(one)
        if self._teller is not None:
            text = await self._in_pool(self._merge)
            self._teller.gained(text, one.result.end_sample)
        elif len(self._unmerged) == MERGED_AT_ONCE:
            await self.catch_up()

    async def catch_up(self) -> None:
        if self._unmerged:
            await self._in_pool(self._merge)

    async def conclude(self, last: _Recognised, decode_s: float) -> PipelineResult:
        is_only = last.result.start_sample == 0
        self._take(last)
        is_short = is_only and len(last.result.hypothesis.token_ids) <= INLINE_TOKENS
        transcript = self._finish() if is_short else await self._in_pool(self._finish)
        if self._teller is not None:
            self._teller.concluded(transcript.text)
        return PipelineResult(transcript, Timings(decode_s, self._queue_s, self._infer_s))

    def _take(self, one: _Recognised) -> None:
        self._unmerged.append(one.result)
        completion = one.completion
        self._queue_s = max(self._queue_s, completion.queue_s)
        self._infer_s += completion.infer_s

    async def _in_pool(self, step: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, step)

    def _merge(self) -> str:
        results, self._unmerged = self._unmerged, []
        return "".join([self._merger.add(result) for result in results])

    def _finish(self) -> Transcript:
        n_samples = self._unmerged[-1].end_sample
        self._merge()
        return self._merger.finish(n_samples)


@dataclass(frozen=True, eq=False)
class _Found:
    """A chunk, and what is heard of it without a model."""

    chunk: Chunk
    is_silent: bool


class _ChunkSource:
    """An iterator of chunks, each step of which runs in a thread."""

    def __init__(self, chunks: Iterator[Chunk], pool: Executor) -> None:
        self._chunks = chunks
        self._pool = pool
        self._step: Future[_Found | None] | None = None
        self._is_ended = False
        self.spent_s = 0.0

    async def next(self) -> _Found | None:
        if self._is_ended:
            return None
        self._step = self._pool.submit(self._advance)
        found = await asyncio.wrap_future(self._step)
        self._is_ended = found is None or not found.chunk.has_followers
        return found

    async def close(self) -> None:
        """Wait for a step under way: a generator cannot be closed while it runs."""
        step = self._step
        while step is not None and not (step.done() or step.cancel()):
            with suppress(asyncio.CancelledError):
                await asyncio.gather(asyncio.wrap_future(step), return_exceptions=True)

    def _advance(self) -> _Found | None:
        began_s = time.perf_counter()
        try:
            chunk = next(self._chunks, None)
            return None if chunk is None else _Found(chunk, is_silent(chunk.samples))
        finally:
            self.spent_s += time.perf_counter() - began_s


@dataclass(frozen=True)
class _Recognised:
    result: ChunkResult
    completion: Completion


class _Recognition:
    """A chunk on its way through the queue; its samples are not kept here."""

    def __init__(self, found: _Found, future: Future[Completion]) -> None:
        chunk = found.chunk
        self._span = (chunk.start_sample, chunk.end_sample, chunk.overlap_samples)
        self._is_silent = found.is_silent
        self._future = future

    async def finish(self) -> _Recognised:
        completion = await asyncio.wrap_future(self._future)
        hypothesis = completion.hypothesis
        if self._is_silent:
            hypothesis = _without_tokens(hypothesis)
        return _Recognised(ChunkResult(*self._span, hypothesis), completion)

    @property
    def is_done(self) -> bool:
        return self._future.done()

    def cancel(self) -> None:
        self._future.cancel()


def is_silent(samples: NDArray[np.float32]) -> bool:
    """Of most audio a few samples tell."""
    few = samples[:: len(samples) // FEW_SAMPLES + 1]
    return _peak(few) < SILENCE_PEAK and _peak(samples) < SILENCE_PEAK


def _peak(samples: NDArray[np.float32]) -> float:
    """Around the middle: silence in A-law and of many recorders is a constant that is not 0."""
    return (float(samples.max()) - float(samples.min())) / 2


def _without_tokens(hypothesis: Hypothesis) -> Hypothesis:
    none = np.empty(0, np.int32)
    return replace(hypothesis, token_ids=none, first_frames=none, last_frames=none)
