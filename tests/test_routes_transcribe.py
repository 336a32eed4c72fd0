from __future__ import annotations

import asyncio
import gzip
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from sensevoice_service.routes.forms import CHARSETS
from sensevoice_service.routes.schemas import ErrorAnswer, TranscribeAnswer
from sensevoice_service.types import AudioTooLong, CorruptAudio, DecodeOptions, Overloaded
from tests.http_service import PATIENCE_S, House, house, log_lines, multipart

if TYPE_CHECKING:
    import httpx2

File = tuple[str, tuple[str, bytes]]


def files(*contents: bytes) -> list[File]:
    return [("files", (f"{number}.wav", content)) for number, content in enumerate(contents, 1)]


def post(place: House, sent: list[File], **fields: str) -> httpx2.Response:
    return TestClient(place.app()).post("/transcribe", files=sent, data=fields)


def error(answer: httpx2.Response) -> dict[str, Any]:
    """The error of an answer, which must be of the one shape."""
    ErrorAnswer.model_validate(answer.json())
    found = answer.json()["error"]
    assert found["request_id"] == answer.headers["x-request-id"]
    return dict(found)


def test_one_file_gives_its_text() -> None:
    answer = post(house(), files(b"hello"))
    assert answer.status_code == 200
    body = answer.json()
    TranscribeAnswer.model_validate(body)
    assert body["message"] == "success"
    assert body["results"] == ["hello"]
    assert body["details"][0]["key"] == "1.wav"
    assert body["details"][0]["duration_s"] == 1.5
    assert body["model"]["name"] == "tiny"
    assert body["model"]["demo"] is True


def test_several_files_are_answered_in_the_order_sent() -> None:
    body = post(house(), files(b"one", b"two", b"three"), keys="a, b ,c").json()
    assert body["results"] == ["one", "two", "three"]
    assert [detail["key"] for detail in body["details"]] == ["a", "b", "c"]


def test_keys_may_come_in_a_field_for_each_file() -> None:
    form = {"keys": ["a", " b", "c"]}
    answer = TestClient(house().app()).post(
        "/transcribe", files=files(b"one", b"two", b"three"), data=form
    )
    assert [detail["key"] for detail in answer.json()["details"]] == ["a", "b", "c"]


def test_a_key_in_a_field_of_its_own_may_have_a_comma() -> None:
    form = {"keys": ["a, x", "b"]}
    answer = TestClient(house().app()).post("/transcribe", files=files(b"one", b"two"), data=form)
    assert [detail["key"] for detail in answer.json()["details"]] == ["a, x", "b"]


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("=?utf-8?B?5rWL6K+VLndhdg==?=", "测试.wav"),
        ("=?utf-8?Q?caf=C3=A9.wav?=", "café.wav"),
        ("=?utf-8?B?5?=", "=?utf-8?B?5?="),
        ("=?none?Q?a?=", "=?none?Q?a?="),
        ("=??=", "=??="),
    ],
)
def test_names_are_read_as_mail_writes_them_too(sent: str, name: str) -> None:
    body = post(house(), [("files", (sent, b"hello"))]).json()
    assert body["details"][0]["key"] == name


def test_languages_and_hotwords_may_come_in_a_field_for_each() -> None:
    place = house()
    form = {"lang": ["zh", "", "en"], "hotwords": ["one, two", "three"]}
    TestClient(place.app()).post("/transcribe", files=files(b"one"), data=form)
    (_, options) = place.pipeline.calls[0]
    assert (options.language, options.among) == ("auto", ("zh", "en"))
    assert options.hotwords == ("one", "two", "three")


def test_a_browsers_field_without_a_file_is_no_file() -> None:
    body, headers = multipart(b"hello")
    empty = b'--edge\r\nContent-Disposition: form-data; name="files"; filename=""\r\n\r\n\r\n'
    client = TestClient(house().app())
    answer = client.post("/transcribe", content=empty + body, headers=headers)
    assert answer.json()["results"] == ["hello"]
    answer = client.post("/transcribe", content=empty + b"--edge--\r\n", headers=headers)
    assert (answer.status_code, error(answer)["param"]) == (422, "files")
    assert "no file" in error(answer)["message"]


def test_files_of_a_request_are_worked_on_at_once() -> None:
    place = house()
    work, meeting, n_here = place.pipeline.transcribe, asyncio.Event(), 0

    async def meet_first(upload: Any, options: Any, on_progress: Any = None) -> Any:
        nonlocal n_here
        n_here += 1
        if n_here == 3:
            meeting.set()
        await asyncio.wait_for(meeting.wait(), PATIENCE_S)
        return await work(upload, options, on_progress)

    place.pipeline.transcribe = meet_first  # type: ignore[method-assign]
    assert post(place, files(b"one", b"two", b"three")).status_code == 200


def test_the_log_adds_up_the_times_of_the_files() -> None:
    place = house()
    with log_lines() as lines:
        assert post(place, files(b"one", b"two")).status_code == 200
    line = lines.next()
    assert (line["files"], line["audio_s"], line["decode_ms"]) == (2, 3.0, 200.0)
    assert (line["queue_ms"], line["infer_ms"]) == (200.0, 600.0)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\music\\song.mp3", "song.mp3"),
        ("会议.wav", "会议.wav"),
        ("a\x7fb.wav", "ab.wav"),
        ("x" * 300, "x" * 200),
        ("folder/", "audio1"),
    ],
)
def test_a_file_is_called_by_the_plain_part_of_its_name(name: str, key: str) -> None:
    place = house()
    body = post(place, [("files", (name, b"hello"))]).json()
    assert body["details"][0]["key"] == key
    assert place.pipeline.calls[0][0] == ("" if key == "audio1" else key)


@pytest.mark.parametrize(
    ("fields", "language", "use_itn"),
    [
        ({}, "auto", True),
        ({"lang": "", "use_itn": ""}, "auto", True),
        ({"lang": "yue", "use_itn": "false"}, "yue", False),
        ({"lang": " EN ", "use_itn": "True"}, "en", True),
        ({"use_itn": "0"}, "auto", False),
        ({"use_itn": "on", "unknown": "ignored"}, "auto", True),
        ({"lang": "yue, YUE"}, "yue", True),
        ({"lang": ","}, "auto", True),
    ],
)
def test_the_options_reach_the_pipeline(
    fields: dict[str, str], language: str, use_itn: bool
) -> None:
    place = house()
    assert post(place, files(b"hello"), **fields).status_code == 200
    options = place.pipeline.calls[0][1]
    assert options == DecodeOptions(language, use_itn)


def test_the_languages_to_choose_from_reach_the_pipeline_once_each() -> None:
    place = house()
    assert post(place, files(b"hello"), lang="zh, EN,zh,").status_code == 200
    assert place.pipeline.calls[0][1] == DecodeOptions("auto", among=("zh", "en"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", ()),
        (" , \n", ()),
        ("Hangzhou", ("Hangzhou",)),
        (
            "通义，魔搭、 阿里 ,Hang  zhou\r\nnew\tYork\n通义",
            ("通义", "魔搭", "阿里", "Hang zhou", "new York"),
        ),
        ("a" * 50, ("a" * 50,)),
        (",".join(map(str, range(100))), tuple(map(str, range(100)))),
    ],
)
def test_the_hot_words_reach_the_pipeline_once_each(given: str, words: tuple[str, ...]) -> None:
    place = house()
    assert post(place, files(b"hello"), hotwords=given).status_code == 200
    assert place.pipeline.calls[0][1] == DecodeOptions(hotwords=words)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"lang": "fr"}, "lang", "auto, zh, en, yue, ja, ko"),
        ({"lang": "zh,fr"}, "lang", "auto, zh, en, yue, ja, ko"),
        ({"lang": "auto,zh"}, "lang", "not both"),
        ({"hotwords": ",".join(map(str, range(101)))}, "hotwords", "101 words or phrases"),
        ({"hotwords": "fine," + "a" * 51}, "hotwords", "over 50 characters"),
        ({"stream": "perhaps"}, "stream", "true or false"),
        ({"response_format": "srt"}, "files", "srt takes one file, 2 were sent"),
        ({"response_format": "vtt"}, "files", "vtt takes one file, 2 were sent"),
        ({"use_itn": "perhaps"}, "use_itn", "true or false"),
        ({"keys": "a,b,c"}, "keys", "3 for 2 files"),
        ({"keys": "a"}, "keys", "1 for 2 files"),
        ({"keys": "a,"}, "keys", "empty name"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, str], param: str, words: str) -> None:
    place = house()
    answer = post(place, files(b"one", b"two"), **fields)
    assert answer.status_code == 422
    found = error(answer)
    assert found["type"] == "invalid_request_error"
    assert found["code"] == "invalid_request"
    assert found["param"] == param
    assert words in found["message"]
    assert place.pipeline.calls == []


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": "doc"}, "response_format", "one of json, text, srt, vtt"),
        ({"timestamps": "letter"}, "timestamps", "one of none, segment, word"),
        *(
            (
                {"response_format": form, "timestamps": "word"},
                "timestamps",
                f"response_format={form} has no place for the times of words",
            )
            for form in ("text", "srt", "vtt")
        ),
    ],
)
@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_form_of_answer_that_there_is_not_is_named_with_those_there_are(
    fields: dict[str, str], param: str, words: str, stream: str
) -> None:
    place = house()
    answer = post(place, files(b"one"), **fields, stream=stream)
    assert answer.status_code == 400
    found = error(answer)
    assert (found["type"], found["code"]) == ("invalid_request_error", "unsupported_format")
    assert found["param"] == param
    assert words in found["message"]
    assert place.pipeline.calls == []


@pytest.mark.parametrize("field", ["lang", "keys", "hotwords", "response_format", "stream"])
def test_a_file_in_the_place_of_text_is_refused(field: str) -> None:
    answer = post(house(), [*files(b"hello"), (field, ("x.txt", b"en"))])
    assert (answer.status_code, error(answer)["param"]) == (422, field)


def test_a_form_without_files_is_refused() -> None:
    body, headers = multipart(lang="en")
    answer = TestClient(house().app()).post("/transcribe", content=body, headers=headers)
    assert (answer.status_code, error(answer)["param"]) == (422, "files")


def test_text_in_the_place_of_files_is_refused() -> None:
    body, headers = multipart(files="hello")
    answer = TestClient(house().app()).post("/transcribe", content=body, headers=headers)
    assert answer.status_code == 422
    assert "with a file name" in error(answer)["message"]


def test_more_files_than_allowed_are_refused() -> None:
    answer = post(house(MAX_FILES=2), files(b"one", b"two", b"three"))
    assert answer.status_code == 400
    assert "3 files were sent, at most 2" in error(answer)["message"]


def test_a_flood_of_parts_is_refused_before_it_is_read() -> None:
    answer = post(house(MAX_FILES=2), files(*[b"x"] * 100))
    assert answer.status_code == 400
    assert "more than 2 files and 32 text fields" in error(answer)["message"]


def test_a_form_has_32_text_fields_at_most() -> None:
    place = house(MAX_FILES=2)
    fields = {f"field{number}": "x" for number in range(32)}
    assert post(place, files(b"one"), **fields).status_code == 200
    answer = post(place, files(b"one"), **fields, one_more="x")
    assert answer.status_code == 400
    assert "more than 2 files and 32 text fields" in error(answer)["message"]


def test_a_form_has_128_kib_of_text_at_most() -> None:
    halves = {"keys": "k" * 50_000, "one": "," * 60_000}
    assert post(house(), files(b"hello"), **halves).status_code == 200
    answer = post(house(), files(b"hello"), **halves, two="," * 60_000)
    assert answer.status_code == 400
    assert "more than 128 KiB of text" in error(answer)["message"]


def test_an_oversized_text_field_is_refused() -> None:
    answer = post(house(), files(b"hello"), keys="k" * 70_000)
    assert (answer.status_code, error(answer)["code"]) == (400, "malformed_body")


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("audio/wav", 415),
        ("multipart/mixed; boundary=edge", 415),
        ("", 415),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=", 400),
    ],
)
def test_a_body_of_another_kind_is_refused_by_its_header(content_type: str, status: int) -> None:
    place = house()
    headers = {"Content-Type": content_type}
    answer = TestClient(place.app()).post("/transcribe", content=b"{}", headers=headers)
    assert answer.status_code == status
    assert error(answer)["code"] == {415: "unsupported_media_type", 400: "malformed_body"}[status]


def cut_off(body: bytes) -> bytes:
    return body[: -len(b"--edge--\r\n")]


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"no form at all",
        b"--edge\r\n",
        b"--edge\r\nContent-Disposition: form-data\r\n\r\nno name\r\n--edge--\r\n",
        b"--edge\r\nno colon here\r\n\r\nx\r\n--edge--\r\n",
        cut_off(multipart(b"hello")[0]),
        multipart(b"hello")[0].replace(b"--edge--", b"--other--"),
    ],
)
def test_a_broken_form_is_refused(broken: bytes) -> None:
    place = house()
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    answer = TestClient(place.app()).post("/transcribe", content=broken, headers=headers)
    assert (answer.status_code, error(answer)["code"]) == (400, "malformed_body")
    assert place.pipeline.calls == []
    assert place.admission.stats().active == 0


@pytest.mark.parametrize("charset", ["idna", "punycode", "base64", "no-such-thing", "utf-16"])
def test_a_charset_that_forms_do_not_have_is_refused(charset: str) -> None:
    body, _ = multipart(b"hello", keys="é")
    headers = {"Content-Type": f"multipart/form-data; boundary=edge; charset={charset}"}
    answer = TestClient(house().app()).post("/transcribe", content=body, headers=headers)
    assert (answer.status_code, error(answer)["code"]) == (400, "malformed_body")


@pytest.mark.parametrize("charset", CHARSETS)
def test_a_form_may_be_in_a_charset_of_old(charset: bytes) -> None:
    body, _ = multipart(b"hello", keys="KEY")
    is_chinese = charset.startswith((b"utf", b"gb", b"big5"))
    key = "中文" if is_chinese else "plain"
    headers = {"Content-Type": f"multipart/form-data; boundary=edge; charset={charset.decode()}"}
    content = body.replace(b"KEY", key.encode(charset.decode()))
    answer = TestClient(house().app()).post("/transcribe", content=content, headers=headers)
    assert [detail["key"] for detail in answer.json()["details"]] == [key]


def test_a_compressed_form_is_refused_as_such() -> None:
    body, headers = multipart(b"hello")
    client, headers = TestClient(house().app()), {**headers, "Content-Encoding": "gzip"}
    answer = client.post("/transcribe", content=gzip.compress(body), headers=headers)
    assert (answer.status_code, error(answer)["code"]) == (415, "unsupported_media_type")
    assert "compressed" in error(answer)["message"]


def test_a_form_without_its_last_line_break_is_taken() -> None:
    body, headers = multipart(b"hello")
    answer = TestClient(house().app()).post("/transcribe", content=body[:-2], headers=headers)
    assert answer.json()["results"] == ["hello"]


def test_one_bad_file_loses_nothing_else() -> None:
    place = house()
    with log_lines() as lines:
        answer = post(place, files(b"one", b"noise", b"three", b""))
    assert answer.status_code == 200
    body = answer.json()
    TranscribeAnswer.model_validate(body)
    assert body["message"] == "2 of 4 files failed"
    assert body["results"] == ["one", "", "three", ""]
    errors = [detail["error"] for detail in body["details"]]
    assert errors[0] is None
    assert errors[1] == {"status": 415, "code": "unsupported_audio", "message": "not audio"}
    assert errors[3] == {"status": 400, "code": "empty_file", "message": "the file is empty"}
    assert lines.next()["outcome"] == "partial"


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "empty_file"),
        (b"noise", 415, "unsupported_audio"),
        (b"torn", 422, "corrupt_audio"),
        (b"long", 413, "audio_too_long"),
        (b"busy", 503, "overloaded"),
    ],
)
def test_a_single_bad_file_is_an_error_of_its_own_status(
    content: bytes, status: int, code: str
) -> None:
    place = house()
    place.pipeline.errors = {
        b"torn": CorruptAudio("cut off"),
        b"long": AudioTooLong("too long"),
        b"busy": Overloaded("later", retry_after_s=3),
    }
    answer = post(place, files(content))
    assert (answer.status_code, error(answer)["code"]) == (status, code)
    assert answer.headers.get("retry-after") == ("3" if status == 503 else None)
    assert error(answer)["type"] == (
        "overloaded_error" if status == 503 else "invalid_request_error"
    )


def test_where_all_files_fail_the_first_speaks_for_all() -> None:
    answer = post(house(), files(b"noise", b""))
    assert answer.status_code == 415
    assert error(answer)["message"] == "all 2 files failed; the first: not audio"


def test_a_fault_in_one_file_is_logged_and_leaves_the_others_alone() -> None:
    with log_lines("sensevoice_service.routes", "ERROR") as lines:
        answer = post(house(), files(b"break", b"two"))
        assert lines.next() == {"id": answer.headers["x-request-id"]}
    assert answer.json()["results"] == ["", "two"]
    assert answer.json()["details"][0]["error"]["code"] == "internal_error"
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("status", "words", "retry_after"),
    [
        ("loading", "still loading", "5"),
        ("stopping", "stopping", "5"),
        ("failed", "cannot be used", None),
    ],
)
def test_nothing_is_taken_before_the_model_is_ready(
    status: Any, words: str, retry_after: str | None
) -> None:
    place = house()
    place.state.status = status
    answer = post(place, files(b"hello"))
    assert (answer.status_code, error(answer)["code"]) == (503, "not_ready")
    assert words in error(answer)["message"]
    assert error(answer)["param"] == status
    assert answer.headers.get("retry-after") == retry_after
    assert place.pipeline.calls == []


def test_accepted_work_is_answered_while_the_service_stops() -> None:
    place = house()
    heard = place.pipeline.transcribe

    async def stop_meanwhile(upload: Any, options: Any, on_progress: Any = None) -> Any:
        place.state.status = "stopping"
        return await heard(upload, options, on_progress)

    place.pipeline.transcribe = stop_meanwhile  # type: ignore[method-assign]
    assert post(place, files(b"hello")).json()["results"] == ["hello"]


def test_short_memory_is_told_with_a_time_to_come_back() -> None:
    place = house(MEMORY_LIMIT_PERCENT=20.0)
    answer = post(place, files(b"hello"))
    assert (answer.status_code, error(answer)["code"]) == (503, "overloaded")
    assert (error(answer)["type"], error(answer)["param"]) == ("overloaded_error", "memory")
    assert int(answer.headers["retry-after"]) >= 1


def test_the_slot_is_free_after_each_outcome() -> None:
    place = house()
    for sent in (files(b"hello"), files(b"noise"), files(b"break"), []):
        post(place, sent, lang="en")
        assert place.admission.stats().active == 0


def test_file_names_and_texts_stay_out_of_the_log() -> None:
    with log_lines() as lines:
        post(house(), [("files", ("private.wav", b"hello"))], keys="secret")
    line = str(lines.next())
    assert "private" not in line
    assert "secret" not in line
    assert "hello" not in line


def test_file_names_are_logged_where_that_is_asked_for() -> None:
    with log_lines() as lines:
        post(house(LOG_FILENAMES=True), [("files", ("dir/priv\x7fate.wav", b"hello"))])
    assert lines.next()["names"] == "private.wav"


def test_a_large_file_reaches_the_pipeline_whole_from_disk() -> None:
    place = house(UPLOAD_MEMORY_MB=0)
    content = bytes(range(256)) * 2000
    heard: list[bytes] = []
    work = place.pipeline.transcribe

    async def keep(upload: Any, options: Any, on_progress: Any = None) -> Any:
        assert upload.size_bytes == len(content)
        assert upload.file.seekable()
        heard.append(upload.file.read())
        upload.file.seek(0)
        return await work(upload, options, on_progress)

    place.pipeline.transcribe = keep  # type: ignore[method-assign]
    assert post(place, files(content)).status_code == 200
    assert heard == [content]
