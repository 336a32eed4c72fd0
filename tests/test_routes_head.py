from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from tests.http_service import house

PATHS = (
    "/health",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/v1/models",
    "/v1/models/whisper-1",
    "/openapi.json",
    "/docs",
    "/docs/assets/swagger.js",
    "/",
)


@pytest.mark.parametrize("path", PATHS)
def test_head_gets_what_get_would_without_the_body(path: str) -> None:
    client = TestClient(house().app())
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_head_is_no_more_than_get() -> None:
    client = TestClient(house().app())
    assert client.head("/v1/models/another").status_code == 404
    assert client.head("/transcribe").status_code == 405


@pytest.mark.parametrize(
    ("path", "allowed"), [("/health", {"GET", "HEAD"}), ("/transcribe", {"POST"})]
)
def test_who_takes_a_wrong_method_is_told_of_head_too(path: str, allowed: set[str]) -> None:
    answer = TestClient(house().app()).delete(path)
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == allowed


def test_routes_of_head_are_not_documented() -> None:
    paths = TestClient(house().app()).get("/openapi.json").json()["paths"]
    assert not [path for path, operations in paths.items() if "head" in operations]
