"""What a listener hears of a file while it is recognised."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from sensevoice_service.audio import decode
from sensevoice_service.batch_call import Completion
from sensevoice_service.chunker import cut
from sensevoice_service.isolation import DecoderLimits, DecoderProcesses
from sensevoice_service.pipeline import Pipeline, PipelineResult, Queue
from sensevoice_service.tags import Vocabulary
from sensevoice_service.types import (
    SAMPLE_RATE_HZ,
    Chunk,
    DecodeOptions,
    Hypothesis,
    InferenceFailed,
    Progress,
    lfr_frames,
)
from tests import test_merge
from tests.audio_files import pcm16, upload, voice, wav
from tests.echo import VOCABULARY, EchoQueue, completion, policy

PATIENT_S = 20  # only a hang takes that long
OPTIONS = DecodeOptions()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def recording(duration_s: float) -> bytes:
    """Without a pause, so that chunks overlap."""
    return wav(pcm16(voice(duration_s) * np.float32(0.5)))


async def hear(
    queue: Queue,
    pool: ThreadPoolExecutor,
    data: bytes,
    *,
    vocabulary: Vocabulary = VOCABULARY,
    in_flight: int = 4,
) -> tuple[PipelineResult, list[Progress]]:
    told: list[Progress] = []
    pipeline = Pipeline(queue, pool, vocabulary, policy(in_flight=in_flight))
    task = pipeline.transcribe(upload(data), OPTIONS, told.append)
    return await asyncio.wait_for(task, PATIENT_S), told


class RandomQueue:
    """Hears any words and marks of the vocabulary, at once."""

    def __init__(self, seed: int, pieces: tuple[str, ...]) -> None:
        self._rng = np.random.default_rng(seed)
        self._ids = [test_merge.IDS[piece] for piece in pieces]
        self.overlaps = 0

    def submit(self, chunk: Chunk) -> Future[Completion]:
        self.overlaps += chunk.overlap_samples > 0
        n_frames = lfr_frames(len(chunk.samples))
        density = self._rng.uniform(0, 0.6) * self._rng.integers(2)
        frames = np.flatnonzero(self._rng.random(n_frames) < density).astype(np.int32)
        ids = self._rng.choice(self._ids, len(frames)).astype(np.int32)
        future: Future[Completion] = Future()
        future.set_result(Completion(Hypothesis(ids, frames, frames, ()), 0.0, 0.0))
        return future


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    "pieces",
    [
        (*test_merge.WORDS, *test_merge.REST),
        (*test_merge.HANZI, "，", ","),
        test_merge.PIECES[3:],
    ],
    ids=["English", "Chinese", "mixed"],
)
async def test_all_texts_put_together_are_the_text_of_the_transcript(
    pool: ThreadPoolExecutor, pieces: tuple[str, ...], seed: int
) -> None:
    queue = RandomQueue(seed, pieces)
    vocabulary = test_merge.VOCABULARY
    result, told = await hear(queue, pool, recording(20), vocabulary=vocabulary)
    assert queue.overlaps > 5
    assert "".join(progress.text for progress in told) == result.transcript.text
    assert any(progress.text for progress in told[:-1])


@pytest.mark.parametrize("in_flight", [1, 4, 100])
async def test_each_chunk_is_told_of_and_the_fractions_rise_to_one(
    pool: ThreadPoolExecutor, in_flight: int
) -> None:
    data = recording(20)
    result, told = await hear(EchoQueue(), pool, data, in_flight=in_flight)
    chunks = list(cut(decode(upload(data), policy().audio), OPTIONS, policy().chunks))
    assert len(told) == len(chunks) > 5
    fractions = [progress.fraction for progress in told]
    assert all(before < after for before, after in pairwise(fractions))
    assert fractions[-1] == 1
    length_samples = result.transcript.duration_s * SAMPLE_RATE_HZ
    recognised = [chunk.end_sample / length_samples for chunk in chunks]
    assert fractions == pytest.approx(recognised, rel=0.15)


async def test_the_fractions_are_the_same_where_another_process_decodes(
    pool: ThreadPoolExecutor,
) -> None:
    processes = DecoderProcesses(DecoderLimits(memory_bytes=2**29, timeout_s=30, max_idle=1))
    told: list[Progress] = []
    try:
        pipeline = Pipeline(EchoQueue(), pool, VOCABULARY, policy(), processes.decode)
        await pipeline.transcribe(upload(recording(20)), OPTIONS, told.append)
    finally:
        processes.stop()
    _, expected = await hear(EchoQueue(), pool, recording(20))
    assert [one.text for one in told] == [one.text for one in expected]
    fractions = [one.fraction for one in expected]
    assert [one.fraction for one in told] == pytest.approx(fractions, rel=0.15)


async def test_a_file_of_one_chunk_is_told_once(pool: ThreadPoolExecutor) -> None:
    _, told = await hear(EchoQueue(), pool, recording(1))
    assert told == [Progress(1.0, "w0")]


class HeldQueue:
    """Keeps every chunk waiting until the test answers it."""

    def __init__(self) -> None:
        self.held: asyncio.Queue[tuple[Chunk, Future[Completion]]] = asyncio.Queue()

    def submit(self, chunk: Chunk) -> Future[Completion]:
        future: Future[Completion] = Future()
        self.held.put_nowait((chunk, future))
        return future


async def test_a_chunk_is_told_of_while_the_next_ones_are_in_hand(
    pool: ThreadPoolExecutor,
) -> None:
    queue = HeldQueue()
    told: asyncio.Queue[Progress] = asyncio.Queue()
    pipeline = Pipeline(queue, pool, VOCABULARY, policy(in_flight=100))
    task = asyncio.create_task(pipeline.transcribe(upload(recording(9)), OPTIONS, told.put_nowait))
    texts = []
    while True:
        getting = asyncio.create_task(queue.held.get())
        done, _ = await asyncio.wait(
            {task, getting}, timeout=PATIENT_S, return_when=asyncio.FIRST_COMPLETED
        )
        if task in done:
            getting.cancel()
            break
        chunk, future = getting.result()
        future.set_result(completion(chunk))
        texts.append((await asyncio.wait_for(told.get(), PATIENT_S)).text)
    assert texts[:3] == ["", "w0", " w1"]
    assert "".join(texts) == (await task).transcript.text


async def test_the_listener_is_called_on_the_event_loop(pool: ThreadPoolExecutor) -> None:
    threads = list[int]()
    pipeline = Pipeline(EchoQueue(), pool, VOCABULARY, policy())
    await pipeline.transcribe(
        upload(recording(9)), OPTIONS, lambda _: threads.append(threading.get_ident())
    )
    assert len(threads) > 3
    assert set(threads) == {threading.get_ident()}


async def test_nothing_is_told_of_a_file_after_it_failed(pool: ThreadPoolExecutor) -> None:
    class FailsOnTheThird:
        def submit(self, chunk: Chunk) -> Future[Completion]:
            future: Future[Completion] = Future()
            if chunk.index == 2:
                future.set_exception(InferenceFailed("the model failed on this audio"))
            else:
                future.set_result(completion(chunk))
            return future

    told: list[Progress] = []
    pipeline = Pipeline(FailsOnTheThird(), pool, VOCABULARY, policy())
    with pytest.raises(InferenceFailed):
        await pipeline.transcribe(upload(recording(20)), OPTIONS, told.append)
    assert [progress.text for progress in told] == ["", "w0"]


async def test_a_listener_that_fails_ends_its_file(pool: ThreadPoolExecutor) -> None:
    queue = HeldQueue()

    def fail(_: Progress) -> None:
        raise ConnectionResetError("nobody listens")

    pipeline = Pipeline(queue, pool, VOCABULARY, policy(in_flight=3))
    task = asyncio.create_task(pipeline.transcribe(upload(recording(20)), OPTIONS, fail))
    held = [await asyncio.wait_for(queue.held.get(), PATIENT_S) for _ in range(3)]
    chunk, future = held[0]
    future.set_result(completion(chunk))
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(task, PATIENT_S)
    assert all(future.cancelled() for _, future in held[1:])


async def test_silence_is_told_of_as_no_words(pool: ThreadPoolExecutor) -> None:
    data = wav(bytes(2 * SAMPLE_RATE_HZ * 9))
    result, told = await hear(EchoQueue(), pool, data)
    assert result.transcript.text == ""
    assert {progress.text for progress in told} == {""}
    assert told[-1].fraction == 1
