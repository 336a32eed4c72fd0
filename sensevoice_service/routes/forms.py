"""Multipart forms: read within limits, and what their files and fields say."""

from __future__ import annotations

import errno
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from sensevoice_service.cores import LEAST_FILES_AT_ONCE, files_at_once
from sensevoice_service.routes.client import Client
from sensevoice_service.routes.errors import UnsupportedFormat
from sensevoice_service.types import (
    DecodeOptions,
    InvalidRequest,
    MalformedBody,
    StorageFull,
    UnsupportedBody,
    Upload,
)
from sensevoice_service.wishes import hotwords_of, languages_of, without_controls

if TYPE_CHECKING:
    from config import Settings

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MAX_TEXT_FIELDS = 32
MAX_TEXT_BYTES, MAX_FORM_TEXT_BYTES = 64 * 1024, 128 * 1024  # of one text field, and of all
MAX_NAME_CHARACTERS = 200

# What forms come in. Of Python's others some take minutes for what fits into a form: punycode.
CHARSETS = (
    *(b"utf-8", b"utf8", b"us-ascii", b"ascii", b"iso-8859-1", b"latin-1", b"windows-1252"),
    *(b"gbk", b"gb2312", b"gb18030", b"big5", b"shift_jis", b"euc-jp", b"euc-kr"),
)

_SWITCH = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}

T = TypeVar("T")


@dataclass(frozen=True)
class FormLimits:
    """``spool_bytes`` of each file stay in memory, the rest goes to a temporary file.

    ``files_at_once`` are worked on side by side: each long one holds a decoder and some chunks.
    """

    max_files: int
    spool_bytes: int
    files_at_once: int = LEAST_FILES_AT_ONCE

    @classmethod
    def of(cls, settings: Settings) -> FormLimits:
        # A spool of size 0 would never spill, which is the opposite of what 0 MiB asks for.
        spool_bytes = max(1, settings.UPLOAD_MEMORY_MB * 2**20)
        return cls(settings.MAX_FILES, spool_bytes, files_at_once())


def require_multipart(headers: Headers) -> None:
    """Raises ``UnsupportedBody`` and ``MalformedBody``, by the headers alone."""
    media_type, parameters = parse_options_header(headers.get("content-type"))
    if media_type != b"multipart/form-data":
        raise UnsupportedBody("the body must be multipart/form-data")
    if headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedBody("the body must not be compressed: leave out Content-Encoding")
    if not parameters.get(b"boundary"):
        raise MalformedBody("the content type names no multipart boundary")
    if parameters.get(b"charset", b"utf-8").lower() not in CHARSETS:
        raise MalformedBody("the form is in a character set that is not known here: use UTF-8")


async def read_form(headers: Headers, client: Client, limits: FormLimits) -> FormData:
    """Receive and parse the whole body. The caller closes the form, which closes its files.

    Raises ``MalformedBody``, ``StorageFull``, and what ``Client.body`` raises; no file is left open
    then.
    """
    async with aclosing(client.body()) as pieces:
        parser = _FormParser(headers, pieces, limits)
        try:
            return await parser.parse()
        except MultiPartException as error:
            raise MalformedBody(f"the multipart body is broken: {error.message}") from None
        except UnicodeError:
            raise MalformedBody("the form is not in the character set that it declares") from None
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise StorageFull("there is no room for the upload; try again later") from None


class _FormParser(MultiPartParser):
    """Counts parts of either kind while they arrive, and insists on the closing boundary."""

    def __init__(
        self, headers: Headers, pieces: AsyncGenerator[bytes, None], limits: FormLimits
    ) -> None:
        super().__init__(
            headers,
            self._up_to_the_end(pieces),
            max_files=float("inf"),  # parts are counted here, with an error of our own
            max_fields=float("inf"),
            max_part_size=MAX_TEXT_BYTES,
        )
        self.spool_max_size = limits.spool_bytes
        self._limits = limits
        # A file field that was left alone is a file to the parser: ``uploads`` counts those sent.
        self._parts_left, self._texts_left = limits.max_files + MAX_TEXT_FIELDS, MAX_TEXT_FIELDS
        self._text_bytes_left = MAX_FORM_TEXT_BYTES
        self._has_ended = False

    def on_part_begin(self) -> None:
        self._parts_left -= 1
        self._require_few()
        super().on_part_begin()

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        self._texts_left -= self._current_part.file is None
        self._require_few()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            self._text_bytes_left -= end - start
            if self._text_bytes_left < 0:
                raise MalformedBody(
                    f"the form has more than {MAX_FORM_TEXT_BYTES // 1024} KiB of text"
                )
        super().on_part_data(data, start, end)

    def on_end(self) -> None:
        self._has_ended = True

    def _require_few(self) -> None:
        if min(self._parts_left, self._texts_left) < 0:
            raise MalformedBody(
                f"the form has more than {self._limits.max_files} files"
                f" and {MAX_TEXT_FIELDS} text fields"
            )

    async def _up_to_the_end(
        self, pieces: AsyncGenerator[bytes, None]
    ) -> AsyncGenerator[bytes, None]:
        """Raising within the stream makes the parser close the files of a body that is cut off."""
        async for piece in pieces:
            yield piece
        if not self._has_ended:
            raise MalformedBody("the multipart body ends before its closing boundary")


def uploads(form: FormData, limits: FormLimits, field: str = "files") -> list[Upload]:
    """The files of a field, in order. Raises ``InvalidRequest``, and ``MalformedBody`` for many."""
    values = [value for value in form.getlist(field) if not _is_not_chosen(value)]
    files = [value for value in values if isinstance(value, UploadFile)]
    if len(files) < len(values):
        raise InvalidRequest(f"{field} must be sent as files, with a file name", param=field)
    if not files:
        raise InvalidRequest(f"the form has no file in the field {field}", param=field)
    if len(files) > limits.max_files:
        message = f"{len(files)} files were sent, at most {limits.max_files} are taken"
        raise MalformedBody(message, param=field)
    return [_upload(file) for file in files]


def _is_not_chosen(value: UploadFile | str) -> bool:
    """Whether it is what a browser sends for a file field that was left alone."""
    return isinstance(value, UploadFile) and not value.filename and not value.size


def keys(form: FormData, files: list[Upload]) -> list[str]:
    """A name for each file, or its own: from ``keys``, between commas or in a field for each.

    Raises ``InvalidRequest``.
    """
    given = texts(form, "keys")
    if not any(given):
        return [file.name or f"audio{number}" for number, file in enumerate(files, 1)]
    has_one_each = len(given) == len(files) > 1  # then a comma is part of a name
    own = given if has_one_each else ",".join(given).split(",")
    if len(own) != len(files):
        message = f"keys must have a name for each file: {len(own)} for {len(files)} files"
        raise InvalidRequest(message, param="keys")
    names = [_clean(name) for name in own]
    if not all(names):
        raise InvalidRequest("keys has an empty name", param="keys")
    return names


def decode_options(form: FormData, language_field: str = "lang") -> DecodeOptions:
    """With the fields ``use_itn`` and ``hotwords`` too. Raises ``InvalidRequest``."""
    language, among = languages(form, language_field)
    return DecodeOptions(
        language=language,
        use_itn=switch(form, "use_itn", default=True),
        among=among,
        hotwords=hotwords(form),
    )


def languages(form: FormData, field: str = "lang") -> tuple[str, tuple[str, ...]]:
    """A language, or ``auto`` and those that it is limited to. Raises ``InvalidRequest``.

    Between commas or in a field for each.
    """
    return parsed(languages_of, ",".join(filter(None, texts(form, field))), field)


def hotwords(form: FormData) -> tuple[str, ...]:
    """Words and phrases between commas or line ends, once each. Raises ``InvalidRequest``."""
    return parsed(hotwords_of, "\n".join(texts(form, "hotwords")), "hotwords")


def parsed(parse: Callable[[str], T], given: str, field: str) -> T:
    """Of what a field says. Raises ``InvalidRequest`` for a ``ValueError``."""
    try:
        return parse(given)
    except ValueError as error:
        raise InvalidRequest(f"{field} {error}", param=field) from None


def switch(form: FormData, field: str, *, default: bool) -> bool:
    """Raises ``InvalidRequest``."""
    given = text(form, field).lower()
    if given and given not in _SWITCH:
        raise InvalidRequest(f"{field} must be true or false", param=field)
    return _SWITCH[given] if given else default


def answer_form(form: FormData, field: str, allowed: Sequence[str], default: str) -> str:
    """What an answer is to look like. Raises ``UnsupportedFormat`` for what there is not."""
    given = text(form, field).lower() or default
    if given not in allowed:
        raise UnsupportedFormat(f"{field} must be one of {', '.join(allowed)}", param=field)
    return given


def text(form: FormData, field: str) -> str:
    """The last of its name, empty where there is none. Raises ``InvalidRequest`` for a file."""
    return (texts(form, field) or [""])[-1]


def texts(form: FormData, field: str) -> list[str]:
    """All fields of this name. Raises ``InvalidRequest`` for a file."""
    values = form.getlist(field)
    if not all(isinstance(value, str) for value in values):
        raise InvalidRequest(f"{field} must be text, not a file", param=field)
    return [str(value).strip() for value in values]


def _upload(file: UploadFile) -> Upload:
    name = re.split(r"[/\\]", _plain(file.filename or ""))[-1]
    # On Python 3.10 the spooled file lacks parts of the file interface (seekable among them);
    # all is written by now, so that the file within it will not change any more.
    inner = getattr(file.file, "_file", file.file)
    return Upload(file=cast(BinaryIO, inner), name=_clean(name), size_bytes=file.size or 0)


def _plain(name: str) -> str:
    """.NET writes names beyond ASCII as mail does (RFC 2047)."""
    if not (name.startswith("=?") and name.endswith("?=")):
        return name
    try:
        return str(make_header(decode_header(name)))
    except (ValueError, LookupError, HeaderParseError):
        return name


def _clean(name: str) -> str:
    return without_controls(name)[:MAX_NAME_CHARACTERS]
