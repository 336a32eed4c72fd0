from __future__ import annotations

import asyncio
import gc
import io
import os
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sensevoice_service.audio import decode
from sensevoice_service.batch_call import Completion
from sensevoice_service.batcher import Batcher, BatchLimits
from sensevoice_service.chunker import cut
from sensevoice_service.pipeline import (
    INLINE_TOKENS,
    Pipeline,
    PipelinePolicy,
    PipelineResult,
    Queue,
    is_silent,
)
from sensevoice_service.types import (
    SAMPLE_RATE_HZ,
    AudioTooLong,
    Chunk,
    CorruptAudio,
    DecodeOptions,
    EmptyFile,
    Hypothesis,
    InferenceFailed,
    NotReady,
    ServiceError,
    UnsupportedAudio,
    Upload,
)
from tests.audio_files import Samples, decoded, encode, pcm16, upload, voice, wav
from tests.echo import VOCABULARY, EchoQueue, completion, policy, words
from tests.models import Model, chunk_of, noise

PATIENT_S = 20  # only a hang takes that long
REAL_MODEL = os.environ.get("SENSEVOICE_REAL_MODEL")
OPTIONS = DecodeOptions()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture(autouse=True)
async def complaints() -> AsyncIterator[list[dict[str, Any]]]:
    """What the event loop would log: exceptions that nobody took, and the like."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    yield found
    gc.collect()
    await asyncio.sleep(0)
    assert found == []


class HeldQueue:
    """Keeps every chunk waiting until the test answers it; the ``refused``-th is not taken."""

    def __init__(self, refused: int | None = None) -> None:
        self.refused = refused
        self.chunks: list[Chunk] = []
        self.futures: list[Future[Completion]] = []
        self.arrived = asyncio.Semaphore(0)

    def submit(self, chunk: Chunk) -> Future[Completion]:
        if len(self.futures) == self.refused:
            raise NotReady("the service is stopping")
        self.chunks.append(chunk)
        self.futures.append(Future())
        self.arrived.release()
        return self.futures[-1]

    async def receives(self, n_chunks: int) -> None:
        for _ in range(n_chunks):
            await asyncio.wait_for(self.arrived.acquire(), PATIENT_S)

    def waiting(self) -> list[int]:
        return [index for index, future in enumerate(self.futures) if not future.done()]

    def answer(self, index: int) -> None:
        self.futures[index].set_result(completion(self.chunks[index]))


class GatedFile(io.BytesIO):
    """A file whose reading stops at ``gate_byte`` until the test opens the gate."""

    def __init__(self, data: bytes, gate_byte: int) -> None:
        super().__init__(data)
        self.gate_byte = gate_byte
        self.reached = threading.Event()
        self.gate = threading.Event()
        self.n_reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.n_reads += 1
        if self.tell() >= self.gate_byte:
            self.reached.set()
            if not self.gate.wait(PATIENT_S):
                raise TimeoutError("the test opened no gate")
        return super().read(size)


def speech(duration_s: float) -> Samples:
    return voice(duration_s) * np.float32(0.5)


def recording(duration_s: float) -> bytes:
    return wav(pcm16(speech(duration_s)))


def n_chunks(data: bytes, policy: PipelinePolicy) -> int:
    return sum(1 for _ in cut(decode(upload(data), policy.audio), OPTIONS, policy.chunks))


async def settle(pool: ThreadPoolExecutor) -> None:
    """Let the pipeline go as far as it can: a step in the pool, and what follows from it."""
    loop = asyncio.get_running_loop()
    for _ in range(3):
        await loop.run_in_executor(pool, lambda: None)
        await asyncio.sleep(0)


def start(
    queue: Queue, pool: ThreadPoolExecutor, file: Upload, policy: PipelinePolicy
) -> asyncio.Task[PipelineResult]:
    pipeline = Pipeline(queue, pool, VOCABULARY, policy)
    return asyncio.create_task(pipeline.transcribe(file, OPTIONS))


async def outcome(task: asyncio.Task[PipelineResult]) -> PipelineResult:
    return await asyncio.wait_for(task, PATIENT_S)


async def test_the_text_has_every_chunk_in_its_order(pool: ThreadPoolExecutor) -> None:
    data, limits = recording(11), policy()
    result = await outcome(start(EchoQueue(), pool, upload(data), limits))
    assert n_chunks(data, limits) > 5
    assert result.transcript.text == words(n_chunks(data, limits))
    assert result.transcript.duration_s == 11.0


class TalkativeQueue:
    """Answers at once, with many words."""

    def __init__(self, n_tokens: int) -> None:
        self._n_tokens = n_tokens

    def submit(self, chunk: Chunk) -> Future[Completion]:
        frames = np.arange(self._n_tokens, dtype=np.int32)
        future: Future[Completion] = Future()
        future.set_result(Completion(Hypothesis(frames + 1, frames, frames, ()), 0.0, 0.0))
        return future


class CountingPool(ThreadPoolExecutor):
    n_tasks = 0

    def submit(self, *arguments: Any, **named: Any) -> Future[Any]:
        self.n_tasks += 1
        return super().submit(*arguments, **named)


@pytest.mark.parametrize(("n_tokens", "n_tasks"), [(INLINE_TOKENS, 1), (INLINE_TOKENS + 1, 2)])
async def test_the_merging_of_a_short_file_alone_keeps_the_event_loop(
    n_tokens: int, n_tasks: int
) -> None:
    with CountingPool(1) as pool:
        task = start(TalkativeQueue(n_tokens), pool, upload(recording(10)), policy(chunk_s=20))
        result = await outcome(task)
    assert len(result.transcript.text.split()) == n_tokens
    assert pool.n_tasks == n_tasks


async def test_the_last_of_several_chunks_is_merged_in_the_pool() -> None:
    data, limits = recording(5), policy()
    with CountingPool(1) as pool:
        result = await outcome(start(EchoQueue(), pool, upload(data), limits))
    n = n_chunks(data, limits)
    assert result.transcript.text == words(n)
    assert pool.n_tasks == n + 2  # one that merges all but the last, and one for that


async def test_what_is_done_is_merged_while_the_last_chunks_are_recognised() -> None:
    data, limits = recording(5), policy(in_flight=100)
    queue = HeldQueue()
    with CountingPool(1) as pool:
        task = start(queue, pool, upload(data), limits)
        n = n_chunks(data, limits)
        await queue.receives(n)
        await settle(pool)
        n_before = pool.n_tasks
        for index in range(n - 2):
            queue.answer(index)
        await settle(pool)
        assert pool.n_tasks == n_before + 3 + 1  # those of settling, and one that merges
        for index in (n - 2, n - 1):
            queue.answer(index)
        assert (await outcome(task)).transcript.text == words(n)


async def test_answers_in_another_order_change_nothing(pool: ThreadPoolExecutor) -> None:
    data, limits = recording(11), policy(in_flight=100)
    queue = HeldQueue()
    task = start(queue, pool, upload(data), limits)
    expected = n_chunks(data, limits)
    await queue.receives(expected)
    for index in reversed(range(expected)):
        queue.answer(index)
        await settle(pool)
    assert (await outcome(task)).transcript.text == words(expected)


async def test_chunks_carry_the_options_of_their_request(pool: ThreadPoolExecutor) -> None:
    queue = HeldQueue()
    options = DecodeOptions("ja", use_itn=False)
    pipeline = Pipeline(queue, pool, VOCABULARY, policy())
    task = asyncio.create_task(pipeline.transcribe(upload(recording(1)), options))
    await queue.receives(1)
    queue.answer(0)
    await outcome(task)
    assert [chunk.options for chunk in queue.chunks] == [options]


async def test_a_large_file_is_cut_though_it_is_short(pool: ThreadPoolExecutor) -> None:
    data = recording(11)
    whole = policy(chunk_s=2)
    limits = PipelinePolicy(
        whole.audio,
        type(whole.chunks)(whole_s=30, chunk_s=2),
        large_file_bytes=len(data) - 1,
        max_chunks_in_flight=4,
    )
    result = await outcome(start(EchoQueue(), pool, upload(data), limits))
    assert result.transcript.text == words(n_chunks(data, whole))


async def test_no_more_chunks_are_in_hand_than_allowed(pool: ThreadPoolExecutor) -> None:
    data, limits = recording(20), policy(in_flight=3)
    queue = HeldQueue()
    task = start(queue, pool, upload(data), limits)
    await queue.receives(3)
    while not task.done():
        await settle(pool)
        assert len(queue.waiting()) <= 3
        for index in queue.waiting()[:1]:
            queue.answer(index)
    assert len(queue.futures) == n_chunks(data, limits)
    assert task.result().transcript.text == words(len(queue.futures))


async def test_files_share_the_queue_and_keep_their_own_words(pool: ThreadPoolExecutor) -> None:
    pipeline = Pipeline(EchoQueue(), pool, VOCABULARY, policy())
    files = [recording(duration_s) for duration_s in (3, 9, 1, 6)]
    results = await asyncio.gather(*(pipeline.transcribe(upload(f), OPTIONS) for f in files))
    texts = [result.transcript.text for result in results]
    assert texts == [words(n_chunks(data, policy())) for data in files]


async def test_timings_tell_of_the_longest_wait_and_the_share_of_batches(
    pool: ThreadPoolExecutor,
) -> None:
    data, limits = recording(11), policy()
    timings = (await outcome(start(EchoQueue(), pool, upload(data), limits))).timings
    assert timings.decode_s > 0
    assert timings.queue_s == 0.25
    assert timings.infer_s == pytest.approx(n_chunks(data, limits) * 0.5)


async def test_who_cancels_gets_the_file_back_and_leaves_no_chunk_in_the_queue(
    pool: ThreadPoolExecutor,
) -> None:
    queue = HeldQueue()
    task = start(queue, pool, upload(recording(20)), policy(in_flight=3))
    await queue.receives(3)
    await settle(pool)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await outcome(task)
    assert len(queue.futures) == 3
    assert all(future.cancelled() for future in queue.futures)


@pytest.mark.parametrize("n_cancels", [1, 3])
async def test_a_cancelled_file_is_let_go_only_when_nothing_reads_it(
    pool: ThreadPoolExecutor, n_cancels: int
) -> None:
    data = recording(20)
    file = GatedFile(data, gate_byte=len(data) // 2)
    queue = HeldQueue()
    task = start(queue, pool, Upload(file, "speech", len(data)), policy(in_flight=100))
    assert await asyncio.to_thread(file.reached.wait, PATIENT_S)
    for _ in range(n_cancels):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
    file.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await outcome(task)
    n_reads = file.n_reads
    await settle(pool)
    assert file.n_reads == n_reads
    assert queue.futures
    assert all(future.cancelled() for future in queue.futures)


async def test_damage_that_is_met_after_a_cancel_is_no_concern(pool: ThreadPoolExecutor) -> None:
    samples = speech(20)
    samples[-1] = np.nan
    data = wav(samples.tobytes(), n_bits=32, kind=3)
    file = GatedFile(data, gate_byte=len(data) * 9 // 10)
    # The last two seconds are one step: it goes on to the damage.
    task = start(HeldQueue(), pool, Upload(file, "speech", len(data)), policy(chunk_s=30))
    assert await asyncio.to_thread(file.reached.wait, PATIENT_S)
    task.cancel()
    await asyncio.sleep(0)
    file.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await outcome(task)


async def test_a_cancel_before_the_first_step_runs_leaves_the_file_unread() -> None:
    data = recording(2)
    file = GatedFile(data, gate_byte=len(data))
    busy = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(busy.wait, PATIENT_S)
        task = start(EchoQueue(), pool, Upload(file, "speech", len(data)), policy())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outcome(task)
        busy.set()
    assert file.n_reads == 0


async def test_a_chunk_that_fails_ends_its_file_and_gives_up_the_others(
    pool: ThreadPoolExecutor,
) -> None:
    queue = HeldQueue()
    task = start(queue, pool, upload(recording(20)), policy(in_flight=3))
    await queue.receives(3)
    queue.futures[0].set_exception(InferenceFailed("the model failed on this audio"))
    with pytest.raises(InferenceFailed, match="failed on this audio"):
        await outcome(task)
    assert all(future.cancelled() for future in queue.futures[1:])


async def test_a_queue_that_takes_no_more_ends_the_file(pool: ThreadPoolExecutor) -> None:
    queue = HeldQueue(refused=2)
    task = start(queue, pool, upload(recording(20)), policy(in_flight=100))
    with pytest.raises(NotReady, match="stopping"):
        await outcome(task)
    assert len(queue.futures) == 2
    assert all(future.cancelled() for future in queue.futures)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EmptyFile),
        (wav(b""), EmptyFile),
        (b"these are no sounds", UnsupportedAudio),
        (recording(3), AudioTooLong),
    ],
    ids=["no bytes", "no samples", "no audio", "too long"],
)
async def test_what_the_decoder_refuses_is_refused(
    pool: ThreadPoolExecutor, data: bytes, error: type[ServiceError]
) -> None:
    with pytest.raises(error):
        await outcome(start(EchoQueue(), pool, upload(data), policy(max_audio_s=1)))


async def test_damage_in_the_middle_gives_up_the_chunks_before_it(
    pool: ThreadPoolExecutor,
) -> None:
    samples = speech(20)
    samples[-SAMPLE_RATE_HZ] = np.nan
    data = wav(samples.tobytes(), n_bits=32, kind=3)
    queue = HeldQueue()
    with pytest.raises(CorruptAudio, match="not numbers"):
        await outcome(start(queue, pool, upload(data), policy(in_flight=100)))
    assert len(queue.futures) > 3
    assert all(future.cancelled() for future in queue.futures)


async def test_memory_does_not_grow_with_the_length_of_a_file(pool: ThreadPoolExecutor) -> None:
    minutes = 20
    loud = pcm16(voice(1, rate_hz=8_000))
    file = upload(wav(loud * 60 * minutes, rate_hz=8_000))
    waveform_bytes = 60 * minutes * SAMPLE_RATE_HZ * 4
    task = start(EchoQueue(), pool, file, policy(chunk_s=20, in_flight=4))
    tracemalloc.start()
    try:
        result = await outcome(task)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.transcript.duration_s == pytest.approx(60 * minutes)
    assert peak_bytes < waveform_bytes / 5


@pytest.fixture
def batcher(small_model: Model) -> Iterator[Batcher]:
    limits = BatchLimits(max_items=8, max_padded_frames=1_024, max_wait_s=0.0)
    batcher = Batcher([small_model.engine], limits)
    batcher.start()
    yield batcher
    batcher.stop()


async def test_the_engine_is_heard_to_the_word(
    small_model: Model, batcher: Batcher, pool: ThreadPoolExecutor
) -> None:
    samples = noise(2 * SAMPLE_RATE_HZ)
    data = wav(samples.tobytes(), n_bits=32, kind=3)
    pipeline = Pipeline(batcher, pool, small_model.vocabulary, policy(chunk_s=20))
    result = await pipeline.transcribe(upload(data), OPTIONS)
    (heard,) = small_model.engine([chunk_of(np.clip(samples, -1, 1))])
    assert result.transcript.text == small_model.vocabulary.text(heard.token_ids)
    assert result.transcript.text
    assert result.timings.infer_s > 0
    assert result.timings.queue_s >= 0


@pytest.mark.parametrize("level", [0, 3])
async def test_silence_has_no_words_whatever_the_model_makes_of_it(
    small_model: Model, batcher: Batcher, pool: ThreadPoolExecutor, level: int
) -> None:
    """The random model hears words in anything."""
    samples = np.full(3 * SAMPLE_RATE_HZ, level, "<i2")
    (heard,) = small_model.engine([chunk_of((samples / 32_768).astype(np.float32))])
    assert small_model.vocabulary.text(heard.token_ids)
    pipeline = Pipeline(batcher, pool, small_model.vocabulary, policy(chunk_s=20))
    result = await pipeline.transcribe(upload(wav(samples.tobytes())), OPTIONS)
    assert result.transcript.text == ""
    assert result.transcript.segments == ()


async def test_a_faint_sound_is_no_silence(
    small_model: Model, batcher: Batcher, pool: ThreadPoolExecutor
) -> None:
    samples = np.tile(np.array([8, -8], "<i2"), SAMPLE_RATE_HZ)
    pipeline = Pipeline(batcher, pool, small_model.vocabulary, policy(chunk_s=20))
    result = await pipeline.transcribe(upload(wav(samples.tobytes())), OPTIONS)
    assert result.transcript.text


def test_one_sample_is_enough_not_to_be_silent() -> None:
    samples = np.zeros(10 * SAMPLE_RATE_HZ, np.float32)
    assert is_silent(samples)
    for place in (0, 1, 12_345, len(samples) - 1):
        for level in (1e-3, -1e-3):
            samples[place] = level
            assert not is_silent(samples)
            samples[place] = 0.0
    assert is_silent(samples[:1])


@pytest.mark.parametrize("codec", ["pcm_alaw", "pcm_mulaw", "g722"])
def test_silence_is_silent_in_the_codecs_of_telephones(codec: str) -> None:
    rate_hz = 16_000 if codec == "g722" else 8_000
    data = encode(np.zeros(rate_hz, np.float32), rate_hz, codec, "wav")
    assert is_silent(decoded(data))


def test_a_constant_offset_is_no_sound() -> None:
    assert is_silent(np.full(SAMPLE_RATE_HZ, 0.1, np.float32))


@pytest.mark.skipif(
    not REAL_MODEL, reason="SENSEVOICE_REAL_MODEL names no folder with the published model"
)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("zh", "开放时间早上9点至下午5点。"),
        (
            "en",
            "The tribal chieftain called for the boy, and presented him with 50 pieces of gold.",
        ),
    ],
    ids=["zh", "en"],
)
async def test_the_published_model_hears_its_own_examples(
    pool: ThreadPoolExecutor, name: str, text: str
) -> None:
    from tests.models import load_model

    folder = Path(str(REAL_MODEL))
    model = load_model(folder)
    batcher = Batcher([model.engine], BatchLimits(8, 1_024, 0.0))
    batcher.start()
    try:
        pipeline = Pipeline(batcher, pool, model.vocabulary, policy(chunk_s=20))
        example = upload((folder / "example" / f"{name}.mp3").read_bytes())
        result = await pipeline.transcribe(example, DecodeOptions("auto", use_itn=True))
    finally:
        batcher.stop()
    assert result.transcript.text == text
    assert result.transcript.language == name
