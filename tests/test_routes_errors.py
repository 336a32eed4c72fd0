from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI, Query
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from sensevoice_service.routes.errors import error_type
from sensevoice_service.routes.schemas import ErrorAnswer
from tests.http_service import house, log_lines


def app_with_faults() -> FastAPI:
    app = house().app()

    @app.get("/break")
    async def break_() -> None:
        raise RuntimeError("password=hunter2")

    @app.get("/break-late")
    async def break_late() -> StreamingResponse:
        def pieces() -> Any:
            yield b"half"
            raise RuntimeError("too late")

        return StreamingResponse(pieces())

    @app.get("/count")
    async def count(n: int = Query()) -> int:
        return n

    return app


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "invalid_request_error"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "overloaded_error"),
    ],
)
def test_the_type_follows_the_status(status: int, kind: str) -> None:
    assert error_type(status) == kind


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/transcribe/", 404, "not_found"),
        ("GET", "/transcribe", 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
        ("GET", "/count?n=many", 422, "invalid_request"),
    ],
)
def test_the_framework_s_own_refusals_have_the_common_shape(
    method: str, path: str, status: int, code: str
) -> None:
    answer = TestClient(app_with_faults()).request(method, path)
    assert answer.status_code == status
    ErrorAnswer.model_validate(answer.json())
    error = answer.json()["error"]
    assert error["code"] == code
    assert error["request_id"] == answer.headers["x-request-id"]
    assert ("allow" in answer.headers) == (status == 405)
    assert error["param"] == ("n" if status == 422 else None)


def test_an_unforeseen_error_tells_nothing_of_the_inside_and_is_logged_once() -> None:
    with log_lines("sensevoice_service") as lines:
        answer = TestClient(app_with_faults()).get("/break")
        logged = [lines.next(), lines.next()]
        assert lines.is_empty()
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "hunter2" not in answer.text
    assert logged[0] == {"id": error["request_id"]}
    assert (logged[1]["status"], logged[1]["outcome"]) == (500, "internal_error")


def test_an_error_in_the_midst_of_an_answer_is_left_to_the_server() -> None:
    with log_lines() as lines, pytest.raises(RuntimeError, match="too late"):
        TestClient(app_with_faults()).get("/break-late")
    assert lines.next()["outcome"] == "aborted"


@pytest.mark.parametrize("given", ["abc", "A-1_2.3", "x" * 64])
def test_a_sane_request_id_is_kept(given: str) -> None:
    with log_lines() as lines:
        answer = TestClient(house().app()).get("/nowhere", headers={"x-request-id": given})
    assert answer.headers["x-request-id"] == given
    assert answer.json()["error"]["request_id"] == given
    assert lines.next()["id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "<script>", 'a"b', "a\\nb"])
def test_any_other_request_id_is_replaced(given: str) -> None:
    client = TestClient(house().app())
    first, second = (client.get("/nowhere", headers={"x-request-id": given}) for _ in range(2))
    assert first.headers["x-request-id"] != given
    assert len(first.headers["x-request-id"]) == 32
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
