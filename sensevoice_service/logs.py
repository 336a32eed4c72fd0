"""Logging set-up: one line a message, as text or as JSON, whatever the message holds."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Literal, TextIO

FIELDS = "fields"  # the key under ``extra`` that carries a record's own key-value pairs

_encode = json.JSONEncoder(default=str).encode  # json.dumps would make one for each line
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class TextFormatter(logging.Formatter):
    """``time LEVEL logger message key=value …``; values that could be misread are quoted."""

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_time(record)} {record.levelname} {record.name} {_one_line(record.getMessage())}"
        pairs = [f"{key}={_text_value(value)}" for key, value in _fields(self, record).items()]
        return " ".join([head, *pairs])


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, and the record's own keys."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(self, record),
        }
        return _encode(line)


def configure_logging(
    level: str, fmt: Literal["text", "json"], stream: TextIO | None = None
) -> None:
    """Send all logging of the process through one handler, to standard error by default.

    The service and uvicorn log from ``level`` on, libraries from WARNING on. Uvicorn's access log
    is switched off, since the service logs each request itself; start uvicorn with
    ``log_config=None`` so that it leaves this as it is.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if fmt == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, logging.getLevelName(level)))
    for name in ("sensevoice_service", "uvicorn"):
        logging.getLogger(name).setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"
    # It warns of each malformed body, which the request's own line reports already.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.captureWarnings(True)
    # No line tells of these, and they are looked up for each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def _fields(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, Any]:
    own = getattr(record, FIELDS, None)
    fields = dict(own) if isinstance(own, Mapping) else {}
    if record.exc_info:
        fields["exception"] = formatter.formatException(record.exc_info)
    if record.stack_info:
        fields["stack"] = record.stack_info
    return fields


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, tz=timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text_value(value: object) -> str:
    text = str(value)
    if text and text.isascii() and text.isprintable() and not set(text) & set(' "=\\'):
        return text
    return json.dumps(text)


def _one_line(text: str) -> str:
    return _UNPRINTABLE.sub(lambda found: repr(found.group())[1:-1], text)
