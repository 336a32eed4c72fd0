"""The forms in which ``POST /transcribe`` answers: JSON, text, subtitles, and events."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from dataclasses import dataclass
from typing import Any

import pytest
import srt  # type: ignore[import-untyped]
import webvtt
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from sensevoice_service.routes import work
from sensevoice_service.routes.schemas import (
    ErrorAnswer,
    ErrorEvent,
    ProgressEvent,
    TextEvent,
    TranscribeAnswer,
)
from sensevoice_service.types import CorruptAudio, Progress, TimedOut
from tests.http_service import PATIENCE_S, House, house, log_lines, multipart, serving

CONTENT_TYPES = {
    "json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}


def post(place: House, *contents: bytes, **fields: str) -> Any:
    sent = [("files", (f"{k}.wav", content)) for k, content in enumerate(contents, 1)]
    return TestClient(place.app()).post("/transcribe", files=sent, data=fields)


@dataclass(frozen=True)
class Told:
    name: str
    data: Any


def events_of(body: str) -> list[Told]:
    assert body.endswith("\n\n")
    blocks = [block.split("\n") for block in body[:-2].split("\n\n")]
    assert all(len(block) == 2 for block in blocks)
    return [
        Told(name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in blocks
    ]


@pytest.mark.parametrize("form", CONTENT_TYPES)
def test_each_format_has_its_media_type(form: str) -> None:
    answer = post(house(), b"hello", response_format=form)
    assert (answer.status_code, answer.headers["content-type"]) == (200, CONTENT_TYPES[form])


def test_text_has_a_line_for_each_file_in_order() -> None:
    answer = post(house(), b"one", "第二".encode(), b"three", response_format="TEXT")
    assert answer.text == "one\n" + "第二".encode().decode("latin-1") + "\nthree\n"


def test_text_is_no_json_string() -> None:
    assert post(house(), b'say "so"', response_format="text").content == b'say "so"\n'


def test_subtitles_are_read_by_parsers() -> None:
    (cue,) = srt.parse(post(house(), b"good morning", response_format="srt").text)
    assert (cue.content, cue.end.total_seconds()) == ("good morning", 0.8)
    (caption,) = webvtt.from_string(
        post(house(), b"good morning", response_format="vtt").text
    ).captions
    assert (caption.text, caption.end) == ("good morning", "00:00:00.800")


def test_subtitles_keep_the_rules_of_the_settings() -> None:
    place = house(
        SUBTITLE_LINE_LATIN=4, SUBTITLE_LINES=1, SUBTITLE_MIN_SEC=0.1, SUBTITLE_MAX_SEC=0.2
    )
    cues = list(srt.parse(post(place, b"good day all", response_format="srt").text))
    assert [cue.content for cue in cues] == ["good", "day", "all"]
    assert [cue.end.total_seconds() for cue in cues] == [0.2, 0.45, 0.7]
    wide = post(house(SUBTITLE_LINE_LATIN=4), b"good day all", response_format="srt")
    assert len(list(srt.parse(wide.text))) == 2


def test_words_have_times_where_they_are_asked_for() -> None:
    body = post(house(), b"good morning", timestamps="word").json()
    TranscribeAnswer.model_validate(body)
    assert body["details"][0]["segments"][0]["words"] == [
        {"word": "good", "start_s": 0.0, "end_s": 0.25},
        {"word": "morning", "start_s": 0.25, "end_s": 0.5},
    ]


@pytest.mark.parametrize(("timestamps", "n_segments"), [("none", 0), ("segment", 1), ("", 1)])
def test_words_have_no_times_unless_they_are_asked_for(timestamps: str, n_segments: int) -> None:
    body = post(house(), b"good morning", timestamps=timestamps).json()
    TranscribeAnswer.model_validate(body)
    segments = body["details"][0]["segments"]
    assert len(segments) == n_segments
    assert all("words" not in segment for segment in segments)


def test_text_has_no_place_for_the_error_of_a_file() -> None:
    answer = post(house(), b"one", b"noise", b"", response_format="text", keys="a,b,c")
    assert answer.status_code == 415
    ErrorAnswer.model_validate(answer.json())
    assert answer.json()["error"]["message"] == "2 of 3 files failed; the first, b: not audio"


def test_the_body_of_long_audio_is_made_beside_the_event_loop() -> None:
    threads: list[int] = []

    async def here() -> None:
        threads.append(threading.get_ident())
        for audio_s in (work.INLINE_AUDIO_S, work.INLINE_AUDIO_S + 1):
            threads.append(await work.rendered(threading.get_ident, audio_s))

    asyncio.run(here())
    assert threads[0] == threads[1] != threads[2]


@pytest.mark.parametrize("form", CONTENT_TYPES)
def test_a_stream_ends_with_the_body_that_there_would_have_been(form: str) -> None:
    place = house()
    whole = post(place, b"good morning", response_format=form, keys="a")
    answer = post(place, b"good morning", response_format=form, keys="a", stream="true")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *steps, done = events_of(answer.text)
    assert {step.name for step in steps} == {"progress"}
    assert done.name == "done"
    if form == "json":
        expected = whole.json()
        for body in (expected, done.data):
            del body["processing_time"]
        assert done.data == expected
    else:
        TextEvent.model_validate(done.data)
        assert done.data == {"text": whole.text}


def test_the_progress_of_each_file_adds_up_to_its_text() -> None:
    answer = post(house(), b"good morning", b"noise", b"good day", keys="a,b,c", stream="true")
    *steps, done = events_of(answer.text)
    for step in steps:
        ProgressEvent.model_validate(step.data)
    for index, key, text in ((0, "a", "good morning"), (1, "b", ""), (2, "c", "good day")):
        of_file = [step.data for step in steps if step.data["file"] == index]
        assert "".join(step["text"] for step in of_file) == text
        assert {step["key"] for step in of_file} <= {key}
    assert done.data["message"] == "1 of 3 files failed"


def test_a_stream_fills_in_the_log() -> None:
    with log_lines() as lines:
        post(house(), b"one", b"two", stream="true")
    line = lines.next()
    assert (line["status"], line["outcome"], line["files"]) == (200, "ok", 2)
    assert (line["audio_s"], line["infer_ms"]) == (3.0, 600.0)


@pytest.mark.parametrize(
    ("contents", "status", "code"),
    [((b"noise",), 415, "unsupported_audio"), ((b"", b""), 400, "empty_file"), ((), 422, None)],
)
def test_what_fails_at_once_is_answered_with_its_own_status(
    contents: tuple[bytes, ...], status: int, code: str | None
) -> None:
    place = house()
    answer = post(place, *contents, stream="true", response_format="json")
    if not contents:
        body, headers = multipart(stream="true")
        answer = TestClient(place.app()).post("/transcribe", content=body, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == (code or "invalid_request")
    assert place.admission.stats().active == 0


class Watched:
    """An application that tells when the first piece of an answer was sent."""

    def __init__(self, place: House) -> None:
        self._app = place.app()
        self.has_told = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_tell(message: Message) -> None:
            await send(message)
            if message.get("body"):
                self.has_told.set()

        await self._app(scope, receive, send_and_tell)


@pytest.mark.parametrize(
    "failure", [CorruptAudio("cut off", param="files"), TimedOut("it took too long")]
)
def test_what_fails_later_is_the_last_event(failure: Any) -> None:
    place = house()
    app = Watched(place)

    async def fail_half_way(upload: Any, options: Any, on_progress: Any = None) -> Any:
        on_progress(Progress(0.5, "half"))
        await asyncio.wait_for(app.has_told.wait(), PATIENCE_S)
        raise failure

    place.pipeline.transcribe = fail_half_way  # type: ignore[method-assign]
    with log_lines() as lines:
        sent = [("files", ("1.wav", b"hello"))]
        answer = TestClient(app).post("/transcribe", files=sent, data={"stream": "1"})
    first, last = events_of(answer.text)
    assert first.data == {"file": 0, "key": "1.wav", "fraction": 0.5, "text": "half"}
    assert last.name == "error"
    ErrorEvent.model_validate(last.data)
    assert last.data["status"] == failure.status
    assert last.data["error"]["code"] == failure.code
    assert last.data["error"]["request_id"] == answer.headers["x-request-id"]
    assert lines.next()["outcome"] == failure.code
    assert place.admission.stats().active == 0


def test_a_client_that_breaks_off_a_stream_frees_its_slot() -> None:
    place = house()
    body, headers = multipart(b"half", stream="true")
    with log_lines() as lines, serving(place.app()) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
            connection.sendall(request_head(headers, len(body)) + body)
            answer = b""
            while b"half" not in answer:
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert place.admission.stats().active == 1
        assert place.pipeline.was_cancelled.wait(PATIENCE_S)
        line = lines.next()
        assert (line["status"], line["outcome"]) == (200, "disconnected")
        assert place.admission.stats().active == 0


def request_head(headers: dict[str, str], n_bytes: int) -> bytes:
    lines = {**headers, "Host": "x", "Content-Length": str(n_bytes)}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST /transcribe HTTP/1.1\r\n{head}\r\n".encode()
