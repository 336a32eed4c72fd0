"""Recognition by a running service, over HTTP."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from sensevoice_service.cli.bodies import Heard
from sensevoice_service.cli.files import UsageError
from sensevoice_service.cli.form import Form
from sensevoice_service.cli.jobs import FileFailed
from sensevoice_service.subtitles import SubtitleRules
from sensevoice_service.types import (
    DecodeOptions,
    ModelError,
    Segment,
    TimedOut,
    Transcript,
    Word,
)

N_JOBS = 8
CONNECT_TIMEOUT_S = 10.0
# Nothing is heard from a service while it works on a long file.
ANSWER_TIMEOUT_S = 3600.0
# What services and the proxies before them say when a later try may do better.
BUSY = {429, 502, 503, 504}
TIMED_OUT = TimedOut.code  # the file itself took too long, and would again


@dataclass(frozen=True)
class Patience:
    """Waits double from ``first_wait_s``, unless the service says how long; none is longer than
    ``longest_wait_s``."""

    max_tries: int = 9
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0

    def wait_s(self, n_tries: int, advice_s: float | None) -> float:
        wished_s = self.first_wait_s * 2 ** (n_tries - 1) if advice_s is None else advice_s
        return min(wished_s, self.longest_wait_s)


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    retry_after_s: float | None

    def json(self) -> Any:
        """None where it is not."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class TryLater(Exception):
    """Another try may do better, after ``advice_s`` where the service says so."""

    def __init__(self, reason: str, advice_s: float | None = None) -> None:
        super().__init__(reason)
        self.advice_s = advice_s


@dataclass(frozen=True)
class Server:
    """The address of a service, and what opens it; ``prefix`` is the path under which it lies."""

    is_secure: bool
    host: str
    port: int
    prefix: str
    api_key: str = field(default="", repr=False)

    @classmethod
    def at(cls, url: str, api_key: str = "") -> Server:
        """Raises ``UsageError``."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"--server {url}: {error}") from None
        if parts.scheme not in ("http", "https") or not host:
            raise UsageError(f"--server {url}: it should look like http://127.0.0.1:8000")
        if not (api_key.isascii() and api_key.isprintable()):
            raise UsageError("the API key has characters that no key has")
        is_secure = parts.scheme == "https"
        port = port or (http.client.HTTPS_PORT if is_secure else http.client.HTTP_PORT)
        return cls(is_secure, host, port, quote(parts.path.rstrip("/"), safe="/%"), api_key)

    def connect(self) -> http.client.HTTPConnection:
        """Raises ``OSError``."""
        kind = http.client.HTTPSConnection if self.is_secure else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=CONNECT_TIMEOUT_S)
        connection.connect()
        connection.sock.settimeout(ANSWER_TIMEOUT_S)
        return connection

    def require(self) -> None:
        """Raises ``ModelError`` where nothing answers."""
        try:
            self.connect().close()
        except (OSError, UnicodeError) as error:  # the latter for a name that no host can have
            reason = getattr(error, "strerror", None) or error
            raise ModelError(f"no service at {self.host}:{self.port}: {reason}") from None

    def post(self, path: str, form: Form) -> Answer:
        """Raises ``TryLater`` where the connection fails, and ``FileFailed``."""
        try:
            connection = self.connect()
            try:
                return _exchange(connection, self.prefix + path, form, self.api_key)
            finally:
                connection.close()
        except ssl.SSLCertVerificationError as error:
            raise FileFailed(f"the server is not to be trusted: {error}") from error
        except (OSError, http.client.HTTPException) as error:
            raise TryLater(f"the connection to the server failed: {error!r}") from error


def _exchange(
    connection: http.client.HTTPConnection, path: str, form: Form, api_key: str
) -> Answer:
    key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    # A refusal may come before all is sent, and can be read all the same.
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", path, body=form.pieces(), headers={**form.headers, **key})
    try:
        response = connection.getresponse()
        body = response.read()
    except TimeoutError:
        raise FileFailed(f"no answer for {ANSWER_TIMEOUT_S:.0f} s") from None
    advice = response.headers.get("Retry-After", "")
    retry_after_s = float(advice) if advice.isascii() and advice.isdigit() else None
    return Answer(response.status, body, retry_after_s)


class RemoteRecogniser:
    """May be called from many threads; each file has a connection of its own."""

    def __init__(
        self,
        server: Server,
        options: DecodeOptions,
        rules: SubtitleRules,
        patience: Patience | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Raises ``ModelError`` where nothing answers at the address."""
        self._server = server
        self._fields = {
            "lang": ",".join(options.among) or options.language,
            "use_itn": str(options.use_itn).lower(),
            "hotwords": "\n".join(options.hotwords),
            "timestamps": "word",
        }
        self._rules = rules
        self._patience = patience or Patience()
        self._sleep = sleep
        self.n_jobs = N_JOBS
        self.description = f"the service at {server.host}:{server.port}"
        server.require()

    def __call__(self, path: Path) -> Heard:
        """Raises ``FileFailed`` and ``OSError``; while the service is busy it is asked again."""
        for n_tries in range(1, self._patience.max_tries + 1):
            try:
                return self._ask(path)
            except TryLater as error:
                if n_tries == self._patience.max_tries:
                    raise FileFailed(f"{error}, after {n_tries} tries") from error
                wait_s = self._patience.wait_s(n_tries, error.advice_s)
            self._sleep(wait_s)
        raise AssertionError("unreachable")

    def hearing_s(self) -> float:
        """Nothing is known of files that are not finished."""
        return 0.0

    def close(self) -> None:
        """No connection outlasts its file."""

    def _ask(self, path: Path) -> Heard:
        with path.open("rb") as file:
            answer = self._server.post("/transcribe", Form(file, path.name, self._fields))
        if answer.status in BUSY and _error(answer).get("code") != TIMED_OUT:
            raise TryLater(_reason(answer), answer.retry_after_s)
        if answer.status != 200:
            raise FileFailed(_reason(answer))
        try:
            body = answer.json()
            return Heard(transcript_of(body["details"][0]), body["model"], self._rules)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise FileFailed("the answer of the server is no transcript") from error


def _reason(answer: Answer) -> str:
    message = _error(answer).get("message")
    return str(message or f"the server answers with HTTP status {answer.status}")


def _error(answer: Answer) -> dict[str, Any]:
    """Empty where the answer is none of the service's."""
    body = answer.json()
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def transcript_of(detail: Any) -> Transcript:
    """The inverse of ``formats.file_body``, of a file that did not fail."""
    return Transcript(
        text=detail["text"],
        language=detail["language"],
        emotion=detail["emotion"],
        events=tuple(detail["events"]),
        duration_s=float(detail["duration_s"]),
        segments=tuple(_segment(segment) for segment in detail["segments"]),
    )


def _segment(body: Any) -> Segment:
    return Segment(
        start_s=float(body["start_s"]),
        end_s=float(body["end_s"]),
        text=body["text"],
        language=body["language"],
        emotion=body["emotion"],
        events=tuple(body["events"]),
        words=tuple(_words(body["text"], body.get("words") or ())),
    )


def _words(text: str, bodies: Sequence[Any]) -> list[Word]:
    """Each with the part of the text up to its end; none where they do not follow the text."""
    words, at = [], 0
    for body in bodies:
        found = text.find(body["word"], at)
        if found < 0:
            return []
        end = found + len(body["word"])
        words.append(Word(float(body["start_s"]), float(body["end_s"]), text[at:end]))
        at = end
    return words
