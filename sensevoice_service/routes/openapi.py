"""What the OpenAPI document says beyond the routes: tags, keys, where the service is, any error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI

from sensevoice_service.routes.paths import OPENAI

Document = dict[str, Any]

TAGS = {
    "transcription": "Speech to text, with all that the service knows.",
    "OpenAI": "The same for clients of OpenAI's API: set their base URL to `/v1` of this service.",
    "health": "Whether the service lives, is ready for requests, and how it fares.",
    "metrics": "Figures for Prometheus.",
}
# Relative to the document, so that it holds behind a proxy with a prefix too.
_SERVERS = [{"url": "./", "description": "This service."}]
_LICENCE = {"name": "MIT", "identifier": "MIT"}
_NO_KEY: dict[str, list[str]] = {}
_OTHER_ERROR = "Any other error, in the shape of all."


class DescribedApp(FastAPI):
    """An application whose document is completed; ``asks_for_keys`` says whether it has any."""

    def __init__(self, *, asks_for_keys: bool, **options: Any) -> None:
        super().__init__(**options)
        self._asks_for_keys = asks_for_keys

    def openapi(self) -> Document:
        if self.openapi_schema is None:
            _complete(super().openapi(), self._asks_for_keys)
        return super().openapi()


def _complete(document: Document, asks_for_keys: bool) -> None:
    document["servers"] = _SERVERS
    document["info"]["license"] = _LICENCE
    used = {tag for _, operation in _operations(document) for tag in operation["tags"]}
    document["tags"] = [
        {"name": name, "description": text} for name, text in TAGS.items() if name in used
    ]
    for path, operation in _operations(document):
        _complete_operation(path, operation, asks_for_keys)
    # FastAPI's own shape of an error, which this service does not use.
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _complete_operation(path: str, operation: Document, asks_for_keys: bool) -> None:
    if "security" in operation and not asks_for_keys:
        operation["security"].append(_NO_KEY)
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    shape = "OpenAiErrorAnswer" if path.startswith(OPENAI) else "ErrorAnswer"
    schema = {"$ref": f"#/components/schemas/{shape}"}
    responses["default"] = {
        "description": _OTHER_ERROR,
        "content": {"application/json": {"schema": schema}},
    }


def _operations(document: Document) -> Iterator[tuple[str, Document]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation
