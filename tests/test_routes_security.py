from __future__ import annotations

from typing import Any

import pytest
import requests
from starlette.testclient import TestClient

from tests.http_service import PATIENCE_S, house, multipart, serving
from tests.test_routes_keys import KEY, MIB

ORIGIN = "https://app.example.com"


def client(**settings: Any) -> TestClient:
    return TestClient(house(**settings).app(), raise_server_exceptions=False)


def preflight(client: TestClient, origin: str = ORIGIN, **headers: str) -> Any:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST", **headers}
    return client.options("/v1/audio/transcriptions", headers=asked)


@pytest.mark.parametrize(
    "path", ["/health", "/metrics", "/v1/models", "/nowhere", "/v1/nowhere", "/docs", "/transcribe"]
)
def test_every_answer_tells_browsers_to_do_nothing_with_it(path: str) -> None:
    headers = client().get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_errors_and_early_refusals_have_them_too() -> None:
    broken = client().post("/transcribe", files={"files": ("a", b"break")})
    refused = client(API_KEYS=KEY).post("/transcribe", content=b"x")
    assert (broken.status_code, refused.status_code) == (500, 401)
    for answer in (broken, refused):
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_a_page_keeps_the_policy_that_lets_it_run() -> None:
    policy = client().get("/docs").headers["content-security-policy"]
    assert "script-src 'self'" in policy


def test_pages_elsewhere_are_told_nothing_by_default() -> None:
    asked = preflight(client())
    assert asked.status_code == 405
    answer = client().get("/v1/models", headers={"Origin": ORIGIN})
    for headers in (asked.headers, answer.headers):
        assert not [name for name in headers if name.startswith("access-control-")]


def test_listed_origins_may_call_and_others_may_not() -> None:
    opened = client(CORS_ORIGINS=f"{ORIGIN}, http://localhost:3000", API_KEYS=KEY)
    asked = preflight(
        opened,
        **{"Access-Control-Request-Headers": "authorization, x-stainless-os, content-type"},
    )
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == ORIGIN
    assert "x-stainless-os" in asked.headers["access-control-allow-headers"]
    other = preflight(opened, "https://evil.example.com")
    assert other.status_code == 400
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(("origins", "allowed"), [(ORIGIN, ORIGIN), ("*", "*")])
def test_a_page_that_may_call_can_read_refusals_and_their_headers(
    origins: str, allowed: str
) -> None:
    opened = client(CORS_ORIGINS=origins, API_KEYS=KEY)
    answer = opened.get("/v1/models", headers={"Origin": ORIGIN})
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == allowed
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in answer.headers


def test_with_origins_a_refused_upload_is_still_readable() -> None:
    body, headers = multipart(bytes(8 * MIB))
    with serving(house(CORS_ORIGINS=ORIGIN, API_KEYS=KEY).app()) as port:
        url = f"http://127.0.0.1:{port}/transcribe"
        sent = {**headers, "Origin": ORIGIN}
        answer = requests.post(url, data=body, headers=sent, timeout=PATIENCE_S)
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    ("setting", "paths"),
    [
        ("METRICS", ("/metrics",)),
        ("DOCS", ("/docs", "/redoc", "/openapi.json", "/docs/assets/swagger-ui.css")),
    ],
)
def test_what_is_switched_off_is_not_there(setting: str, paths: tuple[str, ...]) -> None:
    closed = client(**{setting: False})
    assert [closed.get(path).status_code for path in paths] == [404] * len(paths)
    assert closed.get("/health").status_code == 200
