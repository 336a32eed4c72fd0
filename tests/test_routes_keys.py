from __future__ import annotations

import hmac
import http.client
import json
import socket
from hmac import compare_digest
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from starlette.testclient import TestClient
from starlette.types import Scope

from config import load_settings
from sensevoice_service.routes.keys import network_of
from sensevoice_service.routes.schemas import ErrorAnswer
from tests.http_service import PATIENCE_S, house, multipart, serving

KEY = "sk-Rm9yIHRlc3RzIGFsb25l"
OPEN = ("/health", "/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json")
BEARER = {"Authorization": f"Bearer {KEY}"}
MIB = 2**20


def client(**settings: Any) -> TestClient:
    return TestClient(house(**settings).app())


def transcribe(client: TestClient, headers: dict[str, str] | None = None) -> Any:
    return client.post("/transcribe", files={"files": ("a.wav", b"hello")}, headers=headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {KEY.lower()}"},
        {"Authorization": "Bearer none,at,all"},
        {"Authorization": f"Bearer {KEY},other-key"},
        {"Authorization": "Bearer \xe9\xff"},
        {"X-API-Key": "wrong"},
        {"X-API-Key": ""},
    ],
)
def test_without_a_known_key_nobody_is_let_in(headers: dict[str, str]) -> None:
    place = house(API_KEYS=f"{KEY},other-key")
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    sent: Any = {"files": {"files": ("a.wav", b"hello")}, "headers": raw}
    answer = TestClient(place.app()).post("/transcribe", **sent)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    ErrorAnswer.model_validate(answer.json())
    assert answer.json()["error"]["code"] == "unauthorized"
    assert place.pipeline.calls == []


@pytest.mark.parametrize(
    "headers",
    [
        BEARER,
        {"Authorization": f"bearer   {KEY} "},
        {"Authorization": "Bearer other-key"},
        {"X-API-Key": KEY},
        {"Authorization": "Basic dXNlcjpwYXNz", "X-API-Key": KEY},
    ],
)
def test_each_key_opens_in_either_header(headers: dict[str, str]) -> None:
    answer = transcribe(client(API_KEYS=f" {KEY} , other-key,"), headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("given", ["first", "last", "none of them"])
def test_every_key_is_compared_whole_whichever_was_sent(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the time of an answer does not tell how near a guess was, nor to which."""
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare_digest(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    transcribe(client(API_KEYS="first,second,last"), {"X-API-Key": given})
    assert compared == [(32, 32)] * 3


def test_without_keys_in_the_settings_anyone_is_let_in() -> None:
    assert transcribe(client()).status_code == 200
    assert transcribe(client(), {"Authorization": "Bearer anything"}).status_code == 200


def test_keys_may_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# the first\n{KEY}  # of a friend\n\n  with#in  \n", "utf-8")
    from_file = client(API_KEYS_FILE=str(path), API_KEYS="third")
    for key in (KEY, "with#in", "third"):
        assert transcribe(from_file, {"X-API-Key": key}).status_code == 200
    for key in ("#", "the", "# the first", "friend", "with"):
        assert transcribe(from_file, {"X-API-Key": key}).status_code == 401


@pytest.mark.parametrize("path", OPEN)
def test_health_metrics_and_documentation_need_no_key(path: str) -> None:
    assert client(API_KEYS=KEY).get(path).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/transcribe"),
        ("GET", "/transcribe"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/tiny"),
        ("POST", "/v1/audio/transcriptions"),
        ("GET", "/v1/nothing"),
        ("POST", "/transcribe%0A"),
        ("POST", "/v1/audio/transcriptions%0a"),
        ("OPTIONS", "/transcribe"),
    ],
)
def test_no_spelling_of_a_path_leads_past_the_guard(method: str, path: str) -> None:
    assert client(API_KEYS=KEY).request(method, path).status_code == 401


def test_a_line_break_behind_a_path_does_lead_to_its_route() -> None:
    """Which is why the guard goes by the beginning of the path."""
    sent: Any = {"files": ("a.wav", b"hello")}
    assert client().post("/transcribe%0A", files=sent).status_code == 200


def test_below_a_prefix_the_guard_stands_too() -> None:
    app = house(API_KEYS=KEY).app()
    below = TestClient(app, root_path="/speech")
    assert below.get("/speech/health/live").status_code == 200
    assert below.get("/speech/v1/models").status_code == 401
    assert below.get("/speech/v1/models", headers=BEARER).status_code == 200


def test_no_byte_of_the_body_is_waited_for() -> None:
    _, headers = multipart()
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = ["POST /transcribe HTTP/1.1", "Host: x", "Content-Length: 1000", *lines, "", ""]
    with serving(house(API_KEYS=KEY).app()) as port:
        connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        with connection:
            connection.sendall("\r\n".join(head).encode())
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.status == 401
            assert json.loads(response.read())["error"]["code"] == "unauthorized"


@pytest.mark.parametrize("settings", [{"API_KEYS": KEY}, {"RATE_LIMIT": "1/day"}])
def test_a_client_that_sends_all_first_can_read_its_refusal(settings: dict[str, str]) -> None:
    body, headers = multipart(bytes(8 * MIB))
    is_locked = "API_KEYS" in settings
    status, code = (401, "invalid_api_key") if is_locked else (429, "rate_limit_exceeded")
    with serving(house(**settings).app()) as port:
        url = f"http://127.0.0.1:{port}/v1/audio/transcriptions"
        requests.get(url, timeout=PATIENCE_S)  # the only one that the rate allows
        for _ in range(3):
            one = requests.post(url, data=body, headers=headers, timeout=PATIENCE_S)
            other = httpx.post(url, content=body, headers=headers, timeout=PATIENCE_S)
            assert (one.status_code, other.status_code) == (status, status)
            codes = [answer.json()["error"]["code"] for answer in (one, other)]
            assert codes == [code, code]


def test_keys_are_written_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    settings = load_settings(API_KEYS=KEY)
    assert KEY not in f"{settings!r} {settings} {settings.model_dump()} {settings.api_keys()}"
    caplog.set_level("DEBUG")
    answers = [transcribe(client(API_KEYS=KEY), headers) for headers in (BEARER, {})]
    answers.append(transcribe(client(API_KEYS="another"), BEARER))
    assert [answer.status_code for answer in answers] == [200, 401, 401]
    lines = [str(vars(record)) for record in caplog.records]
    assert [line for line in lines if "unauthorized" in line]
    told = "".join(f"{answer.headers} {answer.text}" for answer in answers)
    assert KEY not in "".join(lines) + told


def test_over_its_rate_a_client_is_told_when_to_come_again() -> None:
    limited = client(RATE_LIMIT="2/minute")
    assert [transcribe(limited).status_code for _ in range(3)] == [200, 200, 429]
    answer = transcribe(limited)
    ErrorAnswer.model_validate(answer.json())
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("rate_limited", "rate_limit_error")
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert limited.get("/health").status_code == 200


def test_each_key_has_a_rate_of_its_own_whatever_the_address() -> None:
    limited = client(API_KEYS="one,two", RATE_LIMIT="1/hour")
    statuses = [
        transcribe(limited, {"X-API-Key": key}).status_code for key in ("one", "one", "two", "two")
    ]
    assert statuses == [200, 429, 200, 429]


def test_who_has_no_key_uses_up_nobody_s_rate() -> None:
    limited = client(API_KEYS="one", RATE_LIMIT="1/hour")
    for _ in range(5):
        assert transcribe(limited, {"X-API-Key": "guess"}).status_code == 401
    assert transcribe(limited, {"X-API-Key": "one"}).status_code == 200


def test_clients_behind_a_proxy_on_this_machine_are_told_apart() -> None:
    def status(port: int, address: str) -> int:
        headers = {"X-Forwarded-For": address}
        url = f"http://127.0.0.1:{port}/v1/models"
        return httpx.get(url, headers=headers, timeout=PATIENCE_S).status_code

    with serving(house(RATE_LIMIT="1/hour").app()) as port:
        addresses = ("192.0.2.1", "192.0.2.1", "192.0.2.2", "8.8.8.8, 192.0.2.2")
        assert [status(port, address) for address in addresses] == [200, 429, 200, 429]


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "testclient"),
        ("", ""),
    ],
)
def test_an_address_stands_for_all_that_its_owner_may_choose(host: str, network: str) -> None:
    scope: Scope = {"type": "http", "client": (host, 1)}
    assert network_of(scope) == network


def test_a_client_without_an_address_is_one_of_its_own() -> None:
    assert network_of({"type": "http", "client": None}) == ""
