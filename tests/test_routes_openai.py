"""``/v1`` as it lies on the wire; ``test_openai_client`` asks with OpenAI's own package."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from sensevoice_service.routes.openai_form import prompt_words
from sensevoice_service.routes.openai_schemas import (
    ModelList,
    OpenAiErrorAnswer,
    OpenAiModel,
    Transcription,
    VerboseTranscription,
)
from sensevoice_service.types import DecodeOptions, Overloaded
from tests.http_service import MODEL, FakeState, House, house, log_lines

if TYPE_CHECKING:
    import httpx2

PATH = "/v1/audio/transcriptions"


def post(place: House, content: bytes = b"hello world", **fields: Any) -> httpx2.Response:
    named = {name.replace("__", "[]"): value for name, value in fields.items()}
    sent: Any = {"file": ("a.wav", content)}
    return TestClient(place.app()).post(PATH, files=sent, data={"model": "whisper-1", **named})


def error(answer: httpx2.Response) -> dict[str, Any]:
    OpenAiErrorAnswer.model_validate(answer.json())
    return dict(answer.json()["error"])


def options(**fields: Any) -> DecodeOptions:
    place = house()
    answer = post(place, **fields)
    assert answer.status_code == 200, answer.text
    return place.pipeline.calls[0][1]


def events(answer: httpx2.Response) -> list[dict[str, Any]]:
    blocks = answer.text.removesuffix("\n\n").split("\n\n")
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def test_json_has_the_text_and_the_use() -> None:
    answer = post(house())
    assert answer.headers["content-type"] == "application/json"
    Transcription.model_validate(answer.json())
    usage = {"type": "duration", "seconds": 1.5}
    assert answer.json() == {"text": "hello world", "usage": usage}


@pytest.mark.parametrize(
    ("form", "media_type", "body"),
    [
        ("text", "text/plain", "hello world\n"),
        ("srt", "application/x-subrip", "1\n00:00:00,000 --> 00:00:00,800\nhello world\n"),
        ("vtt", "text/vtt", "WEBVTT\n\n00:00:00.000 --> 00:00:00.800\nhello world\n"),
    ],
)
def test_other_formats_are_plain(form: str, media_type: str, body: str) -> None:
    answer = post(house(), response_format=form)
    assert answer.headers["content-type"] == f"{media_type}; charset=utf-8"
    assert answer.text == body


def test_verbose_json_has_what_clients_insist_on_and_our_own() -> None:
    body = post(house(), response_format="verbose_json", language="zh").json()
    VerboseTranscription.model_validate(body)
    assert (body["task"], body["language"], body["duration"]) == ("transcribe", "chinese", 1.5)
    (segment,) = body["segments"]
    assert (segment["id"], segment["start"], segment["end"]) == (0, 0.0, 1.5)
    assert (segment["language"], segment["emotion"]) == ("zh", "NEUTRAL")
    assert segment["events"] == ["Speech"]
    assert "words" not in body


@pytest.mark.parametrize(
    ("fields", "has_segments", "has_words"),
    [
        ({}, True, False),
        ({"timestamp_granularities__": "segment"}, True, False),
        ({"timestamp_granularities__": "word"}, False, True),
        ({"timestamp_granularities": "word"}, False, True),
        ({"timestamp_granularities__": ["word", "segment"]}, True, True),
        ({"timestamp_granularities": "word,segment"}, True, True),
    ],
)
def test_times_are_of_what_was_asked_for(
    fields: dict[str, Any], has_segments: bool, has_words: bool
) -> None:
    body = post(house(), response_format="verbose_json", **fields).json()
    VerboseTranscription.model_validate(body)
    assert ("segments" in body, "words" in body) == (has_segments, has_words)
    if has_words:
        assert body["words"] == [
            {"word": "hello", "start": 0.0, "end": 0.25},
            {"word": "world", "start": 0.25, "end": 0.5},
        ]


def test_a_stream_has_deltas_that_join_to_the_text() -> None:
    answer = post(house(), stream="true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    *deltas, done = events(answer)
    assert {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert "".join(event["delta"] for event in deltas) == "hello world"
    usage = {"type": "duration", "seconds": 1.5}
    assert done == {"type": "transcript.text.done", "text": "hello world", "usage": usage}


def test_what_fails_before_a_word_is_said_has_a_status_of_its_own_in_a_stream_too() -> None:
    answer = post(house(), b"noise", stream="true")
    assert (answer.status_code, error(answer)["code"]) == (415, "unsupported_audio")


def test_a_request_has_its_line_in_the_log() -> None:
    place = house()
    with log_lines() as lines:
        post(place)
    line = lines.next()
    assert (line["files"], line["path"], line["outcome"]) == (1, PATH, "ok")
    assert place.pipeline.calls[0][0] == "a.wav"


@pytest.mark.parametrize(
    ("given", "language"),
    [
        ("", "auto"),
        ("auto", "auto"),
        ("zh", "zh"),
        ("EN", "en"),
        ("zh-CN", "zh"),
        ("zh_TW", "zh"),
        ("zh-HK", "yue"),
        ("zh-yue", "yue"),
        ("yue-Hant-HK", "yue"),
        ("en-US", "en"),
        ("english", "en"),
        ("Chinese", "zh"),
        ("mandarin", "zh"),
        ("Cantonese", "yue"),
        ("japanese", "ja"),
        ("kor", "ko"),
    ],
)
def test_a_language_is_understood_as_clients_write_it(given: str, language: str) -> None:
    assert options(language=given) == DecodeOptions(language=language)


@pytest.mark.parametrize(
    "fields", [{"language": "zh,en-GB"}, {"languages__": ["zh", "english"]}, {"languages": "zh,en"}]
)
def test_several_languages_limit_what_is_detected(fields: dict[str, Any]) -> None:
    assert options(**fields) == DecodeOptions(language="auto", among=("zh", "en"))


def test_words_to_expect_come_from_all_fields_that_may_have_them() -> None:
    found = options(hotwords="SenseVoice, 通义", keywords__=["Hangzhou"], prompt="one, two")
    assert found.hotwords == ("SenseVoice", "通义", "Hangzhou", "one", "two")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", ()),
        ("SenseVoice", ()),
        ("ZyntriQix, Digique Plus, B.R.I.C.K.", ("ZyntriQix", "Digique Plus", "B.R.I.C.K.")),
        ("通义、杭州；西湖", ("通义", "杭州", "西湖")),
        ("one\ntwo\n\none", ("one", "two")),
        ("a\ud800b, c\x00, \udfff, d", ("ab", "c", "d")),
        ("So, I went there, and this is what I have found.", ()),
        ("Well, how are you?", ()),
        ("Hello, world.", ()),
        ("你好，世界。", ()),
        ("a, word that is much too long to be one at all", ()),
        (", ".join(f"w{k}" for k in range(51)), ()),
        ("x" * 31 + ", y", ()),
    ],
)
def test_a_prompt_is_words_to_expect_only_where_it_is_a_list_of_them(
    prompt: str, words: tuple[str, ...]
) -> None:
    assert prompt_words(prompt) == words


def test_too_many_words_of_a_prompt_are_left_out_quietly() -> None:
    hotwords = ", ".join(f"h{k}" for k in range(99))
    found = options(hotwords=hotwords, prompt="one, two, three")
    assert len(found.hotwords) == 100
    assert found.hotwords[-1] == "one"


@pytest.mark.parametrize(("given", "use_itn"), [("", True), ("false", False), ("1", True)])
def test_itn_is_a_field_of_our_own(given: str, use_itn: bool) -> None:
    assert options(use_itn=given).use_itn is use_itn


def test_what_has_no_effect_is_taken() -> None:
    fields = {"temperature": "0.5", "include__": "logprobs", "chunking_strategy": "auto"}
    assert options(**fields, user="me", chunking_strategy__="x") == DecodeOptions()


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"language": "fr"}, "language", "auto, zh, en, yue, ja, ko"),
        ({"language": "auto,en"}, "language", "not both"),
        ({"languages__": ["en", "tlh"]}, "language", "auto, zh, en, yue, ja, ko"),
        ({"response_format": "xml"}, "response_format", "json, text, srt, vtt, verbose_json"),
        ({"response_format": "diarized_json"}, "response_format", "verbose_json"),
        ({"temperature": "1.1"}, "temperature", "0 to 1"),
        ({"temperature": "-0.1"}, "temperature", "0 to 1"),
        ({"temperature": "nan"}, "temperature", "0 to 1"),
        ({"temperature": "warm"}, "temperature", "0 to 1"),
        ({"stream": "maybe"}, "stream", "true or false"),
        ({"stream": "true", "response_format": "srt"}, "stream", "json or text"),
        ({"stream": "true", "response_format": "verbose_json"}, "stream", "json or text"),
        ({"use_itn": "maybe"}, "use_itn", "true or false"),
        ({"hotwords": "x" * 51}, "hotwords", "50 characters"),
        ({"keywords__": ["x" * 51]}, "keywords", "50 characters"),
        (
            {"timestamp_granularities__": "word"},
            "timestamp_granularities[]",
            "response_format=verbose_json",
        ),
        (
            {"timestamp_granularities__": "char", "response_format": "verbose_json"},
            "timestamp_granularities[]",
            "segment, word",
        ),
    ],
)
def test_a_wrong_field_is_400_and_named_with_what_is_allowed(
    fields: dict[str, Any], param: str, words: str
) -> None:
    place = house()
    answer = post(place, **fields)
    found = error(answer)
    assert (answer.status_code, found["type"]) == (400, "invalid_request_error")
    assert found["param"] == param
    assert words in found["message"]
    assert place.pipeline.calls == []
    assert place.admission.stats().active == 0


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no file"),
        ([("file", "a text")], "with a file name"),
        ([("file", ("a", b"x")), ("file", ("b", b"x"))], "one file is taken"),
        ([("files", ("a", b"x"))], "no file in the field file"),
    ],
)
def test_a_file_is_asked_for(files: list[Any], message: str) -> None:
    named = [part for part in files if isinstance(part[1], tuple)]
    plain = {name: value for name, value in files if isinstance(value, str)}
    parts: Any = named or [("other", ("a", b"x"))]
    answer = TestClient(house().app()).post(PATH, files=parts, data=plain)
    assert (answer.status_code, error(answer)["param"]) == (400, "file")
    assert message in error(answer)["message"]


@pytest.mark.parametrize(
    ("content", "status", "code", "param"),
    [
        (b"", 400, "empty_file", "file"),
        (b"noise", 415, "unsupported_audio", "file"),
        (b"busy", 503, "overloaded", None),
        (b"break", 500, "internal_error", None),
    ],
)
def test_errors_have_the_four_fields_of_openai_s(
    content: bytes, status: int, code: str, param: str | None
) -> None:
    place = house()
    place.pipeline.errors[b"busy"] = Overloaded("full", retry_after_s=3)
    answer = post(place, content)
    found = error(answer)
    assert set(answer.json()) == {"error"}
    assert set(found) == {"message", "type", "param", "code"}
    assert (answer.status_code, found["code"], found["param"]) == (status, code, param)
    assert answer.headers["x-request-id"]
    assert answer.headers.get("retry-after") == ("3" if status == 503 else None)


@pytest.mark.parametrize(
    ("method", "path", "settings", "status", "code"),
    [
        ("GET", "/v1/nothing", {}, 404, "not_found"),
        ("GET", PATH, {}, 405, "method_not_allowed"),
        ("GET", "/v1/models/gpt-4", {}, 404, "model_not_found"),
        ("GET", "/v1/models", {"API_KEYS": "key"}, 401, "invalid_api_key"),
        ("POST", PATH, {}, 415, "unsupported_media_type"),
        ("POST", PATH, {"MAX_UPLOAD_MB": 1}, 413, "upload_too_large"),
    ],
)
def test_refusals_before_the_route_have_that_shape_too(
    method: str, path: str, settings: dict[str, Any], status: int, code: str
) -> None:
    content = bytes(2**20 + 1) if status == 413 else None
    answer = TestClient(house(**settings).app()).request(method, path, content=content)
    found = error(answer)
    assert (answer.status_code, found["code"]) == (status, code)


def test_a_rate_that_is_used_up_has_openai_s_code() -> None:
    client = TestClient(house(RATE_LIMIT="1/hour").app())
    answers = [client.get("/v1/models") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    found = error(answers[1])
    assert (found["type"], found["code"]) == ("rate_limit_error", "rate_limit_exceeded")


def test_too_many_parts_are_400() -> None:
    fields: dict[str, Any] = {f"field{k}": "x" for k in range(80)}
    answer = post(house(), **fields)
    assert (answer.status_code, error(answer)["type"]) == (400, "invalid_request_error")


def test_the_model_is_listed_and_found_by_its_name_and_as_whisper() -> None:
    client = TestClient(house().app())
    listed = client.get("/v1/models").json()
    ModelList.model_validate(listed)
    (model,) = listed["data"]
    assert (model["id"], model["object"]) == ("tiny", "model")
    for name in ("tiny", "whisper-1"):
        found = client.get(f"/v1/models/{name}").json()
        OpenAiModel.model_validate(found)
        assert found == model


def test_a_model_of_a_hub_is_found_by_its_whole_id() -> None:
    place = house()
    place.state = FakeState(model=replace(MODEL, name="iic/SenseVoiceSmall"))
    client = TestClient(place.app())
    for name in ("iic/SenseVoiceSmall", "iic%2FSenseVoiceSmall"):
        assert client.get(f"/v1/models/{name}").json()["id"] == "iic/SenseVoiceSmall"
    assert client.get("/v1/models/SenseVoiceSmall").status_code == 404


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny"])
def test_while_it_loads_there_is_no_model(path: str) -> None:
    place = house()
    place.state = FakeState(status="loading", model=None)
    answer = TestClient(place.app()).get(path)
    assert (answer.status_code, error(answer)["code"]) == (503, "not_ready")
    assert int(answer.headers["retry-after"]) > 0
    assert post(place).status_code == 503
