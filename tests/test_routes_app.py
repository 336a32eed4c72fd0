from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from sensevoice_service import __version__
from sensevoice_service.routes.app import build_app
from sensevoice_service.types import LANGUAGES
from tests.http_service import house


def openapi() -> dict[str, Any]:
    answer = TestClient(house().app()).get("/openapi.json")
    assert answer.status_code == 200
    return dict(answer.json())


def form_fields() -> dict[str, Any]:
    post = openapi()["paths"]["/transcribe"]["post"]
    assert post["requestBody"]["required"] is True
    return dict(post["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"])


def test_the_documentation_offers_a_list_of_files_to_upload() -> None:
    files = form_fields()["files"]
    assert files["type"] == "array"
    assert files["items"]["format"] == "binary"
    assert files["items"]["contentMediaType"] == "application/octet-stream"


def test_the_documentation_offers_the_languages_and_a_switch() -> None:
    fields = form_fields()
    allowed = re.compile(fields["lang"]["pattern"])
    assert all(allowed.search(name) for name in (*LANGUAGES, "zh,en"))
    assert not any(allowed.search(name) for name in ("fr", "auto,zh", "zh,", ""))
    assert (fields["use_itn"]["type"], fields["use_itn"]["default"]) == ("boolean", True)


def test_each_form_field_is_described() -> None:
    assert all(field["description"] for field in form_fields().values())


@pytest.mark.parametrize(
    ("path", "answers", "error"),
    [
        ("/transcribe", {"TranscribeAnswer"}, "ErrorAnswer"),
        (
            "/v1/audio/transcriptions",
            {"Transcription", "VerboseTranscription"},
            "OpenAiErrorAnswer",
        ),
    ],
)
def test_each_error_is_documented_with_the_shape_of_its_route(
    path: str, answers: set[str], error: str
) -> None:
    responses = openapi()["paths"][path]["post"]["responses"]
    assert set(responses) >= {"200", "400", "401", "408", "413", "415", "422", "429", "500", "503"}
    for status, response in responses.items():
        schema = response["content"]["application/json"]["schema"]
        found = {one["$ref"].rpartition("/")[2] for one in schema.get("anyOf", [schema])}
        assert found == (answers if status == "200" else {error})


def test_the_documentation_tells_where_a_key_may_be_needed() -> None:
    paths = openapi()["paths"]
    secured = {
        path for path, methods in paths.items() for one in methods.values() if one.get("security")
    }
    assert secured == {path for path in paths if path.startswith(("/transcribe", "/v1/"))}


def test_only_the_documented_methods_are_listed() -> None:
    paths = openapi()["paths"]
    assert {path: set(methods) for path, methods in paths.items()} == {
        "/transcribe": {"post"},
        "/v1/audio/transcriptions": {"post"},
        "/v1/models": {"get"},
        "/v1/models/{model}": {"get"},
        "/health": {"get"},
        "/health/live": {"get"},
        "/health/ready": {"get"},
        "/metrics": {"get"},
    }


def test_the_version_is_the_package_s() -> None:
    assert openapi()["info"]["version"] == __version__


def test_answers_forbid_the_guessing_of_their_type() -> None:
    client = TestClient(house().app())
    for path in ("/health", "/nowhere", "/docs"):
        assert client.get(path).headers["x-content-type-options"] == "nosniff"


def test_the_lifespan_is_run_around_the_service() -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        seen.append("start")
        yield
        seen.append("stop")

    place = house()
    with TestClient(build_app(place.services(), place.settings, lifespan)) as client:
        assert client.get("/health/live").status_code == 200
        assert seen == ["start"]
    assert seen == ["start", "stop"]
