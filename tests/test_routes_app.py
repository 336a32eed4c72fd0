from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

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
    assert tuple(fields["lang"]["enum"]) == LANGUAGES
    assert (fields["use_itn"]["type"], fields["use_itn"]["default"]) == ("boolean", True)


def test_each_form_field_is_described() -> None:
    assert all(field["description"] for field in form_fields().values())


def test_each_error_is_documented_with_the_common_shape() -> None:
    responses = openapi()["paths"]["/transcribe"]["post"]["responses"]
    assert set(responses) == {"200", "400", "408", "413", "415", "422", "500", "503"}
    for status, response in responses.items():
        schema = response["content"]["application/json"]["schema"]["$ref"]
        name = "TranscribeAnswer" if status == "200" else "ErrorAnswer"
        assert schema == f"#/components/schemas/{name}"


def test_only_the_documented_methods_are_listed() -> None:
    paths = openapi()["paths"]
    assert {path: set(methods) for path, methods in paths.items()} == {
        "/transcribe": {"post"},
        "/health": {"get"},
        "/health/live": {"get"},
        "/health/ready": {"get"},
        "/metrics": {"get"},
    }


def test_the_title_page_leads_to_the_documentation() -> None:
    client = TestClient(house().app())
    assert client.get("/", follow_redirects=False).headers["location"] == "docs"
    assert client.get("/").status_code == 200


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
