from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import openapi_spec_validator
import pytest
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError
from pydantic import SecretStr

from sensevoice_service.routes.openapi import TAGS
from sensevoice_service.routes.paths import OPENAI, TRANSCRIBE
from tests import openapi_file
from tests.http_service import house

Document = dict[str, Any]


@pytest.fixture(scope="module")
def document() -> Document:
    return openapi_file.document()


def operations(document: Document) -> Iterator[tuple[str, Document]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def forms(document: Document) -> Iterator[tuple[str, Document]]:
    for name, operation in operations(document):
        if "requestBody" in operation:
            (content,) = operation["requestBody"]["content"].values()
            yield name, content["schema"]


def properties(document: Document) -> Iterator[tuple[str, Document]]:
    named = [*document["components"]["schemas"].items(), *forms(document)]
    for name, schema in named:
        for field, described in schema.get("properties", {}).items():
            yield f"{name}: {field}", described


def responses(document: Document) -> Iterator[tuple[str, str, Document]]:
    for name, operation in operations(document):
        for status, response in operation["responses"].items():
            yield name, status, response


def is_guarded(name: str) -> bool:
    return name.split()[1].startswith((OPENAI, TRANSCRIBE))


def test_the_file_in_the_project_is_up_to_date() -> None:
    written = openapi_file.FILE.read_text("utf-8")
    assert written == openapi_file.text(), "the API has changed: run `make openapi`, and look at it"


def test_the_document_is_openapi(document: Document) -> None:
    assert document["openapi"].startswith("3.1.")
    openapi_spec_validator.validate(document)


def test_the_validator_would_find_a_fault(document: Document) -> None:
    broken = {**document, "paths": {"/nothing": {"get": {"responses": {"200": {}}}}}}
    with pytest.raises(OpenAPIValidationError):
        openapi_spec_validator.validate(broken)


def test_each_field_and_parameter_is_described(document: Document) -> None:
    described = dict(properties(document))
    for name, operation in operations(document):
        described |= {f"{name}: {one['name']}": one for one in operation.get("parameters", ())}
    assert len(described) > 80
    assert [name for name, one in described.items() if not one.get("description")] == []


def test_each_plain_field_has_an_example(document: Document) -> None:
    without = []
    for name, field in properties(document):
        is_structure = "$ref" in str(field) or field.get("additionalProperties")
        is_file = "format" in field or "format" in field.get("items", {})
        if not (is_structure or is_file or "examples" in field):
            without.append(name)
    assert without == []


def test_the_examples_are_what_the_schemas_allow(document: Document) -> None:
    n_checked = 0
    for name, field in properties(document):
        for example in field.get("examples", ()):
            found = jsonschema.Draft202012Validator({**field, "components": document["components"]})
            assert [error.message for error in found.iter_errors(example)] == [], name
            n_checked += 1
    assert n_checked > 60


def test_each_operation_says_what_it_does_under_a_name_of_its_own(document: Document) -> None:
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(ids)) == len(ids) > 5
    for name, operation in operations(document):
        assert operation["summary"], name
        assert operation["description"], name


def test_each_tag_that_is_used_is_described(document: Document) -> None:
    used = {tag for _, operation in operations(document) for tag in operation["tags"]}
    assert used == {tag["name"] for tag in document["tags"]} == set(TAGS)
    assert all(tag["description"] for tag in document["tags"])


def test_each_answer_is_described_and_each_error_has_the_shape_of_its_route(
    document: Document,
) -> None:
    for name, status, response in responses(document):
        assert response["description"] not in ("", "Successful Response"), (name, status)
        if status == "default" or (int(status) >= 400 and not name.startswith("get /health")):
            (schema,) = (one["schema"]["$ref"] for one in response["content"].values())
            shape = "OpenAiErrorAnswer" if OPENAI in name else "ErrorAnswer"
            assert schema == f"#/components/schemas/{shape}", (name, status)
    assert "ValidationError" not in document["components"]["schemas"]


def test_each_operation_tells_of_errors(document: Document) -> None:
    for name, operation in operations(document):
        assert "default" in operation["responses"], name
        if is_guarded(name):
            assert {"401", "429", "503"} <= set(operation["responses"]), name


@pytest.mark.parametrize("path", ["/transcribe", "/v1/audio/transcriptions"])
def test_subtitles_text_and_events_have_their_media_types(document: Document, path: str) -> None:
    content = document["paths"][path]["post"]["responses"]["200"]["content"]
    assert set(content) == {
        "application/json",
        "text/plain",
        "application/x-subrip",
        "text/vtt",
        "text/event-stream",
    }
    for media_type, described in content.items():
        if media_type != "application/json":
            assert described["schema"]["description"]
            assert described["example"]


def any_key(document: Document) -> list[dict[str, list[str]]]:
    return [{scheme: []} for scheme in document["components"]["securitySchemes"]]


def test_without_keys_a_request_may_do_without(document: Document) -> None:
    for name, operation in operations(document):
        assert operation.get("security") == (
            [*any_key(document), {}] if is_guarded(name) else None
        ), name


def test_with_keys_it_may_not() -> None:
    document = openapi_file.document(API_KEYS=SecretStr("key"))
    bearer, header = document["components"]["securitySchemes"].values()
    assert bearer["scheme"] == "bearer"
    assert (header["in"], header["name"]) == ("header", "X-API-Key")
    for name, operation in operations(document):
        assert operation.get("security") == (any_key(document) if is_guarded(name) else None), name


def test_the_service_is_where_the_document_is(document: Document) -> None:
    assert [server["url"] for server in document["servers"]] == ["./"]


def test_what_is_switched_off_is_not_told_of() -> None:
    document = openapi_file.document(METRICS=False)
    assert "/metrics" not in document["paths"]
    assert "metrics" not in {tag["name"] for tag in document["tags"]}


def test_the_document_is_the_same_each_time_it_is_asked_for() -> None:
    app = house().app()
    assert app.openapi() == app.openapi()
