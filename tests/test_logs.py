from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from sensevoice_service.logs import FIELDS, configure_logging

NAMES = ("", "sensevoice_service", "uvicorn", "uvicorn.error", "uvicorn.access", "python_multipart")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    logging.captureWarnings(False)
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers


def logged(fmt: Literal["text", "json"], message: str, **fields: Any) -> str:
    stream = io.StringIO()
    configure_logging("INFO", fmt, stream)
    logging.getLogger("sensevoice_service.x").info(message, extra={FIELDS: fields})
    return stream.getvalue()


def test_text_is_one_line_of_key_value_pairs() -> None:
    line = logged("text", "request", id="abc", status=200, total_ms=1.5)
    time, _, rest = line.partition(" ")
    assert time.endswith("Z")
    assert rest == "INFO sensevoice_service.x request id=abc status=200 total_ms=1.5\n"


def test_text_quotes_values_that_could_be_misread() -> None:
    line = logged("text", "request", path="/a b", name='x"=\n', empty="", word="声音")
    assert r'path="/a b" name="x\"=\n" empty="" word="\u58f0\u97f3"' in line
    assert line.count("\n") == 1


def test_json_is_one_object_a_line() -> None:
    line = logged("json", "request\nforged", id="abc", status=200)
    assert line.count("\n") == 1
    record = json.loads(line)
    assert record["message"] == "request\nforged"
    assert (record["level"], record["id"], record["status"]) == ("INFO", "abc", 200)


def test_line_breaks_in_a_text_message_are_escaped() -> None:
    line = logged("text", "one\r\n2025 ERROR forged\u2028\x1b[31m")
    assert line.count("\n") == 1
    assert r"one\r\n2025 ERROR forged\u2028\x1b[31m" in line


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_a_traceback_stays_on_the_line_of_its_message(fmt: Literal["text", "json"]) -> None:
    stream = io.StringIO()
    configure_logging("INFO", fmt, stream)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("sensevoice_service").exception("it failed")
    assert stream.getvalue().count("\n") == 1
    assert "ValueError: broken" in stream.getvalue()


def test_uvicorn_s_errors_go_the_same_way_and_its_access_log_nowhere() -> None:
    stream = io.StringIO()
    logging.getLogger("uvicorn.access").addHandler(logging.StreamHandler(stream))
    configure_logging("INFO", "json", stream)
    logging.getLogger("uvicorn.access").info("GET /")
    logging.getLogger("uvicorn.error").info("started")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["started"]
    assert not logging.getLogger("uvicorn.access").hasHandlers()


def test_the_level_is_the_service_s_and_libraries_speak_from_warning_on() -> None:
    stream = io.StringIO()
    configure_logging("DEBUG", "text", stream)
    logging.getLogger("sensevoice_service.x").debug("ours")
    logging.getLogger("some_library").info("theirs")
    logging.getLogger("some_library").warning("their warning")
    assert [line.split(" ", 3)[3] for line in stream.getvalue().splitlines()] == [
        "ours",
        "their warning",
    ]


def test_configuring_twice_does_not_double_the_lines() -> None:
    stream = io.StringIO()
    configure_logging("INFO", "text", stream)
    configure_logging("INFO", "text", stream)
    logging.getLogger("sensevoice_service").info("once")
    assert stream.getvalue().count("once") == 1


def test_warnings_of_python_are_lines_too() -> None:
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure_logging("INFO", "text", stream)
        warnings.warn("old ways", stacklevel=1)
        logging.captureWarnings(False)
    assert stream.getvalue().count("\n") == 1
    assert "old ways" in stream.getvalue()
