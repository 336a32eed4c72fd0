"""``/v1`` as OpenAI's own Python package finds it, on a server with a real port."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import srt  # type: ignore[import-untyped]
import webvtt
from openai import OpenAI
from openai.types.audio import (
    Transcription,
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionVerbose,
)

from config import Settings
from sensevoice_service.types import (
    CorruptAudio,
    InferenceFailed,
    Overloaded,
    Progress,
    ServiceError,
    StorageFull,
    TimedOut,
)
from tests.http_service import PATIENCE_S, House, house, log_lines, serving
from tests.server_process import running, until_ready

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "samples" / "hello.wav"
KEY = "sk-Rm9yIHRlc3RzIGFsb25l"
TEXT = "hello world good morning"


@contextmanager
def speaking_to(address: str, key: str = "none", max_retries: int = 0) -> Iterator[OpenAI]:
    with (
        openai.DefaultHttpxClient(trust_env=False) as http,
        OpenAI(
            base_url=f"{address}/v1",
            api_key=key,
            max_retries=max_retries,
            timeout=PATIENCE_S,
            http_client=http,
        ) as client,
    ):
        yield client


@contextmanager
def client_of(place: House, **options: Any) -> Iterator[OpenAI]:
    with (
        serving(place.app()) as port,
        speaking_to(f"http://127.0.0.1:{port}", **options) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def demo_address() -> Iterator[str]:
    """``python api.py`` with the demo model and a key."""
    inherited = {
        name: value for name, value in os.environ.items() if name not in Settings.model_fields
    }
    settings = {"MODEL": "demo", "PORT": "0", "API_KEYS": KEY, "DRAIN_SEC": "0"}
    with running("api.py", folder=ROOT, environment=inherited, **settings) as server:
        with server.client() as http:
            assert until_ready(http)[-1].json()["status"] == "healthy", server.log
        yield server.address


@pytest.fixture
def demo(demo_address: str) -> Iterator[OpenAI]:
    with speaking_to(demo_address, KEY) as client:
        yield client


def sample() -> tuple[str, bytes]:
    return SAMPLE.name, SAMPLE.read_bytes()


def test_json_is_the_default_and_has_the_text(demo: OpenAI) -> None:
    with SAMPLE.open("rb") as file:
        answer = demo.audio.transcriptions.create(file=file, model="whisper-1")
    assert isinstance(answer, Transcription)
    assert answer.text == TEXT
    assert answer.usage is not None
    assert answer.usage.type == "duration"
    assert answer.usage.seconds == pytest.approx(1.974, abs=0.001)


def test_plain_formats_are_strings_that_other_parsers_read(demo: OpenAI) -> None:
    create = demo.audio.transcriptions.create
    text = create(file=sample(), model="any", response_format="text")
    assert text == TEXT + "\n"
    (subtitle,) = srt.parse(create(file=sample(), model="any", response_format="srt"))
    assert subtitle.content == TEXT
    (caption,) = webvtt.from_string(
        create(file=sample(), model="any", response_format="vtt")
    ).captions
    assert caption.text == TEXT


def test_verbose_json_has_words_and_segments_on_the_file_s_clock(demo: OpenAI) -> None:
    answer = demo.audio.transcriptions.create(
        file=sample(),
        model="any",
        language="en",
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert isinstance(answer, TranscriptionVerbose)
    assert (answer.text, answer.language) == (TEXT, "english")
    assert answer.duration == pytest.approx(1.974, abs=0.001)
    assert answer.words is not None
    assert [word.word for word in answer.words] == TEXT.split()
    times = [time for word in answer.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= answer.duration
    assert answer.segments is not None
    (segment,) = answer.segments
    assert (segment.text, segment.id) == (TEXT, 0)
    assert segment.model_extra is not None
    assert segment.model_extra["language"] == "en"
    assert segment.model_extra["events"] == ["Speech"]
    for number in (segment.avg_logprob, segment.no_speech_prob, segment.compression_ratio):
        assert isinstance(number, float)


def test_a_stream_s_deltas_join_to_the_text(demo: OpenAI) -> None:
    stream = demo.audio.transcriptions.create(file=sample(), model="any", stream=True)
    *deltas, done = list(stream)
    assert all(isinstance(event, TranscriptionTextDeltaEvent) for event in deltas)
    assert isinstance(done, TranscriptionTextDoneEvent)
    assert "".join(event.delta for event in deltas if event.type == "transcript.text.delta") == TEXT
    assert done.text == TEXT


def test_the_model_is_told(demo: OpenAI) -> None:
    (model,) = demo.models.list().data
    assert (model.id, model.object) == ("demo", "model")
    assert demo.models.retrieve("whisper-1") == model
    with pytest.raises(openai.NotFoundError) as caught:
        demo.models.retrieve("gpt-4o")
    assert caught.value.code == "model_not_found"


def test_a_wrong_key_is_an_authentication_error(demo_address: str) -> None:
    with speaking_to(demo_address, "sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.audio.transcriptions.create(file=sample(), model="any")
        assert caught.value.code == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_a_file_that_is_no_audio_is_not_sent_again(demo_address: str) -> None:
    with speaking_to(demo_address, KEY, max_retries=2) as client:
        answers: list[int] = []
        client._client.event_hooks["response"].append(lambda one: answers.append(one.status_code))
        with pytest.raises(openai.APIStatusError) as caught:
            client.audio.transcriptions.create(file=("a.wav", b"no audio at all"), model="any")
    assert (caught.value.status_code, caught.value.code) == (415, "unsupported_audio")
    assert caught.value.param == "file"
    assert answers == [415]


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", openai.BadRequestError, 400),
        (b"noise", openai.APIStatusError, 415),
        (b"torn", openai.UnprocessableEntityError, 422),
        (b"busy", openai.InternalServerError, 503),
    ],
)
def test_each_error_is_of_its_class(
    content: bytes, kind: type[openai.APIStatusError], status: int
) -> None:
    place = house()
    place.pipeline.errors |= {b"torn": CorruptAudio("damaged"), b"busy": Overloaded("full")}
    with client_of(place) as client, pytest.raises(kind) as caught:
        client.audio.transcriptions.create(file=("a.wav", content), model="any")
    assert type(caught.value) is kind
    assert caught.value.status_code == status
    assert caught.value.request_id


@pytest.mark.parametrize(
    "options",
    [
        {"language": "fr"},
        {"response_format": "diarized_json"},
        {"timestamp_granularities": ["word"]},
        {"temperature": 2},
        {"response_format": "srt", "stream": True},
    ],
)
def test_a_wrong_field_is_a_bad_request(options: dict[str, Any]) -> None:
    with client_of(house()) as client, pytest.raises(openai.BadRequestError) as caught:
        client.audio.transcriptions.create(file=("a.wav", b"hello"), model="any", **options)
    assert caught.value.param is not None


def test_fields_of_openai_s_newest_models_and_of_our_own_are_understood() -> None:
    place = house()
    with client_of(place) as client:
        client.audio.transcriptions.create(
            file=("a.wav", b"hello"),
            model="gpt-transcribe",
            languages=["zh", "en"],
            keywords=["SenseVoice", "Hang Zhou"],
            chunking_strategy="auto",
            include=["logprobs"],
            temperature=0,
            extra_body={"use_itn": False, "hotwords": "通义"},
        )
    ((_, options),) = place.pipeline.calls
    assert (options.among, options.use_itn) == (("zh", "en"), False)
    assert options.hotwords == ("通义", "SenseVoice", "Hang Zhou")


@pytest.mark.parametrize("fails", [False, True])
def test_a_delta_comes_while_the_rest_is_still_worked_on(fails: bool) -> None:
    place = house()
    work, is_read = place.pipeline.transcribe, threading.Event()

    async def go_on_when_read(upload: Any, options: Any, on_progress: Any = None) -> Any:
        on_progress(Progress(0.5, "hel"))
        assert await asyncio.to_thread(is_read.wait, PATIENCE_S)
        if fails:
            raise CorruptAudio("the rest is damaged")
        on_progress(Progress(1.0, "lo"))
        return await work(upload, options)

    place.pipeline.transcribe = go_on_when_read  # type: ignore[method-assign]
    with client_of(place) as client:
        stream = client.audio.transcriptions.create(
            file=("a.wav", b"hello"), model="any", stream=True
        )
        first = next(stream)
        assert first.type == "transcript.text.delta"
        assert first.delta == "hel"
        is_read.set()
        if fails:
            with pytest.raises(openai.APIError, match="the rest is damaged"):
                list(stream)
        else:
            assert [event.type for event in stream] == [
                "transcript.text.delta",
                "transcript.text.done",
            ]


def test_a_stream_that_is_left_gives_up_its_slot() -> None:
    place = house()
    with log_lines() as lines, client_of(place) as client:
        with client.audio.transcriptions.create(
            file=("a.wav", b"half"), model="any", stream=True
        ) as stream:
            assert next(stream).type == "transcript.text.delta"
            assert place.admission.stats().active == 1
        assert place.pipeline.was_cancelled.wait(PATIENCE_S)
        assert lines.next()["outcome"] == "disconnected"
        assert place.admission.stats().active == 0


@pytest.mark.parametrize("error", [InferenceFailed("no"), TimedOut("no"), StorageFull("no")])
def test_a_file_on_which_the_service_failed_is_not_sent_again(error: ServiceError) -> None:
    place = house()
    place.pipeline.errors[b"hello"] = error
    with client_of(place, max_retries=2) as client, pytest.raises(openai.InternalServerError):
        client.audio.transcriptions.create(file=("a.wav", b"hello"), model="any")
    assert len(place.pipeline.calls) == 1


def test_an_overloaded_service_is_asked_again() -> None:
    place = house()
    place.pipeline.errors[b"hello"] = Overloaded("full", retry_after_s=0)
    with client_of(place, max_retries=1) as client, pytest.raises(openai.InternalServerError):
        client.audio.transcriptions.create(file=("a.wav", b"hello"), model="any")
    assert len(place.pipeline.calls) == 2


def test_a_rate_that_is_used_up_is_a_rate_limit_error() -> None:
    with client_of(house(RATE_LIMIT="1/hour")) as client:
        client.models.list()
        with pytest.raises(openai.RateLimitError) as caught:
            client.models.list()
    assert caught.value.code == "rate_limit_exceeded"
    assert int(caught.value.response.headers["retry-after"]) > 3000


def test_a_large_file_that_is_refused_is_an_error_that_can_be_read() -> None:
    large = ("a.wav", io.BytesIO(bytes(8 * 2**20)))
    with (
        client_of(house(API_KEYS=KEY), key="sk-wrong") as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.audio.transcriptions.create(file=large, model="any")
