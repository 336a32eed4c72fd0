from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sensevoice_service.cli.bodies import Heard
from sensevoice_service.cli.files import UsageError
from sensevoice_service.cli.form import PIECE_BYTES
from sensevoice_service.cli.jobs import FileFailed
from sensevoice_service.cli.remote import Patience, RemoteRecogniser, Server, transcript_of
from sensevoice_service.formats import FileOutcome, file_body, model_body
from sensevoice_service.subtitles import SubtitleRules
from sensevoice_service.types import (
    DecodeOptions,
    ModelError,
    Overloaded,
    Segment,
    TimedOut,
    Transcript,
    Word,
)
from tests.http_service import MODEL, house, serving, transcript

ENGLISH = DecodeOptions(language="en", use_itn=False)
RULES = SubtitleRules(max_lines=1)


def server_at(port: int, path: str = "") -> Server:
    return Server.at(f"http://127.0.0.1:{port}{path}")


def audio(folder: Path, content: bytes, name: str = "a.wav") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


class Waits:
    """Takes the place of sleeping, and may change the world meanwhile."""

    def __init__(self, then: Callable[[], None] = lambda: None) -> None:
        self.waits_s: list[float] = []
        self._then = then

    def __call__(self, wait_s: float) -> None:
        self.waits_s.append(wait_s)
        self._then()


@contextlib.contextmanager
def recogniser(app: FastAPI, waits: Waits | None = None) -> Iterator[RemoteRecogniser]:
    with serving(app) as port:
        yield RemoteRecogniser(
            server_at(port), ENGLISH, RULES, Patience(max_tries=3), sleep=waits or Waits()
        )


def refusing(app: FastAPI, response: Response, times: int) -> FastAPI:
    """The service behind a proxy that turns the first requests away without reading them."""
    outer, left = FastAPI(), [times]

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        left[0] -= 1
        await (response if left[0] >= 0 else app)(scope, receive, send)

    outer.mount("/", proxy)
    return outer


def test_a_file_is_sent_with_its_name_and_options_and_its_transcript_comes_back(
    tmp_path: Path,
) -> None:
    parts = house()
    with recogniser(parts.app()) as hear:
        found = hear(audio(tmp_path, b"good morning", 'so "called" 早.wav'))
    assert found == Heard(transcript("good morning", "en"), model_body(MODEL), RULES)
    [(name, options)] = parts.pipeline.calls
    assert name == "so %22called%22 早.wav"
    assert options == ENGLISH


def test_a_service_with_keys_is_opened_by_the_key(tmp_path: Path) -> None:
    path = audio(tmp_path, b"good morning")
    with serving(house(API_KEYS="one,two").app()) as port:
        url = f"http://127.0.0.1:{port}"
        opened = RemoteRecogniser(Server.at(url, "two"), ENGLISH, RULES)
        assert opened(path).transcript.text == "good morning"
        for key in ("", "three"):
            with pytest.raises(FileFailed, match="API key"):
                RemoteRecogniser(Server.at(url, key), ENGLISH, RULES)(path)


@pytest.mark.parametrize("key", ["ключ", "a\nb", "a\r\nX-Other: b"])
def test_a_key_that_fits_no_header_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match="API key"):
        Server.at("http://127.0.0.1", key)


def test_a_key_is_not_shown() -> None:
    assert "s3cret" not in repr(Server.at("http://127.0.0.1", "s3cret"))


def test_a_file_of_many_pieces_arrives_whole(tmp_path: Path) -> None:
    parts, sizes = house(), []
    transcribe = parts.pipeline.transcribe

    async def measure(upload: Any, options: DecodeOptions, on_progress: Any = None) -> Any:
        sizes.append(upload.size_bytes)
        return await transcribe(upload, options, on_progress)

    parts.pipeline.transcribe = measure  # type: ignore[method-assign]
    with recogniser(parts.app()) as hear:
        hear(audio(tmp_path, b"x" * (3 * PIECE_BYTES + 1)))
    assert sizes == [3 * PIECE_BYTES + 1]


def test_a_file_that_fails_has_the_message_of_the_service(tmp_path: Path) -> None:
    waits = Waits()
    with recogniser(house().app(), waits) as hear:
        with pytest.raises(FileFailed, match=r"^not audio$"):
            hear(audio(tmp_path, b"noise"))
        with pytest.raises(FileNotFoundError):
            hear(tmp_path / "gone.wav")
    assert waits.waits_s == []


def test_a_file_too_large_for_the_service_is_refused_with_its_message(tmp_path: Path) -> None:
    with (
        recogniser(house(MAX_UPLOAD_MB=1).app()) as hear,
        pytest.raises(FileFailed, match="1 MiB"),
    ):
        hear(audio(tmp_path, b"x" * 3 * 2**20))


def test_a_busy_service_is_asked_again_after_the_time_that_it_names(tmp_path: Path) -> None:
    parts = house()
    parts.state.status = "loading"
    waits = Waits(lambda: setattr(parts.state, "status", "ready"))
    with recogniser(parts.app(), waits) as hear:
        assert hear(audio(tmp_path, b"morning")).transcript.text == "morning"
    assert waits.waits_s == [5.0]


def test_a_service_that_stays_busy_is_given_up(tmp_path: Path) -> None:
    parts = house()
    parts.pipeline.errors[b"later"] = Overloaded("no room", retry_after_s=10_000)
    waits = Waits()
    with (
        recogniser(parts.app(), waits) as hear,
        pytest.raises(FileFailed, match=r"^no room, after 3 tries$"),
    ):
        hear(audio(tmp_path, b"later"))
    assert waits.waits_s == [60.0, 60.0]


def test_a_file_that_takes_too_long_is_not_sent_again(tmp_path: Path) -> None:
    parts = house()
    parts.pipeline.errors[b"slow"] = TimedOut("decoding the file takes too long")
    waits = Waits()
    with (
        recogniser(parts.app(), waits) as hear,
        pytest.raises(FileFailed, match=r"^decoding the file takes too long$"),
    ):
        hear(audio(tmp_path, b"slow"))
    assert waits.waits_s == []


@pytest.mark.parametrize("advice", ["", "soon", "Fri, 31 Dec 2027 23:59:59 GMT"])
def test_without_a_time_in_seconds_the_waits_double(advice: str, tmp_path: Path) -> None:
    waits = Waits()
    busy = Response("away", 502, {"Retry-After": advice} if advice else {})
    with recogniser(refusing(house().app(), busy, times=2), waits) as hear:
        # More than the buffers of a connection hold, so that the refusal comes while it is sent.
        hear(audio(tmp_path, b"x" * 8 * 2**20))
    assert waits.waits_s == [1.0, 2.0]


def test_a_connection_that_breaks_is_tried_again(tmp_path: Path) -> None:
    waits = Waits()
    with serving(house().app()) as port:
        hear = RemoteRecogniser(server_at(port), ENGLISH, RULES, Patience(max_tries=2), waits)
    with pytest.raises(FileFailed, match=r"connection .* after 2 tries"):
        hear(audio(tmp_path, b"morning"))
    assert waits.waits_s == [1.0]


def test_where_nothing_answers_there_is_no_model() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ModelError, match=f"no service at 127.0.0.1:{port}"):
        RemoteRecogniser(server_at(port), ENGLISH, RULES)


def test_another_kind_of_server_is_told_from_a_service(tmp_path: Path) -> None:
    other = FastAPI()
    other.add_api_route("/transcribe", lambda: {"hello": "world"}, methods=["POST"])
    path = audio(tmp_path, b"morning")
    with recogniser(other) as hear, pytest.raises(FileFailed, match="no transcript"):
        hear(path)
    with recogniser(FastAPI()) as hear, pytest.raises(FileFailed, match="HTTP status 404"):
        hear(path)


def test_the_service_may_lie_under_a_path(tmp_path: Path) -> None:
    outer = FastAPI()
    outer.mount("/speech", house().app())
    with serving(outer) as port:
        hear = RemoteRecogniser(server_at(port, "/speech/"), ENGLISH, RULES)
        assert hear(audio(tmp_path, b"morning")).transcript.text == "morning"


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://here", "http://", "http://here:port", "http://[::1"]
)
def test_an_address_of_another_shape_is_wrong_usage(url: str) -> None:
    with pytest.raises(UsageError, match="--server"):
        Server.at(url)


def test_ports_have_their_defaults() -> None:
    assert Server.at("https://[::1]") == Server(True, "::1", 443, "")
    assert Server.at("http://here/x/") == Server(False, "here", 80, "/x")


def test_an_answer_gives_back_the_transcript_that_it_was_made_of() -> None:
    segments = (
        Segment(0.5, 1.5, "hello world", "en", "NEUTRAL", ("Speech",)),
        Segment(2.0, 3.0, "你好", "zh", "HAPPY", ("Speech", "BGM")),
    )
    made = Transcript("hello world你好", "en", "NEUTRAL", ("Speech", "BGM"), 4.0, segments)
    assert transcript_of(file_body(FileOutcome("a.wav", made))) == made


def test_words_of_an_answer_get_back_the_spaces_of_their_text() -> None:
    detail: MutableMapping[str, Any] = file_body(FileOutcome("a.wav", transcript("hi there, you")))
    times = {"start_s": 0.0, "end_s": 0.5}
    words = [{"word": word, **times} for word in ("hi", "there,", "you")]
    detail["segments"][0]["words"] = words
    [segment] = transcript_of(detail).segments
    assert segment.words == tuple(Word(0.0, 0.5, text) for text in ("hi", " there,", " you"))
    detail["segments"][0]["words"] = words[::-1]
    assert transcript_of(detail).segments[0].words == ()


def test_a_path_of_any_characters_can_be_asked() -> None:
    assert Server.at("http://127.0.0.1/a b/é%20c/").prefix == "/a%20b/%C3%A9%20c"
