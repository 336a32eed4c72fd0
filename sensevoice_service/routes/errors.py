"""The one shape of all errors: ``{"error": {type, code, message, param, request_id}}``."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sensevoice_service.routes.trace import trace_of
from sensevoice_service.types import ServiceError

CLIENT_GONE_STATUS = 499  # as nginx logs it; nobody is left to read the answer


class ClientGone(Exception):
    """The client hung up before its answer; ends the request without one."""


class UploadStalled(ServiceError):
    """The client stopped sending half-way, while it held a slot."""

    status, code = 408, "upload_stalled"


def error_type(status: int) -> str:
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return "overloaded_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def error_body(
    status: int, code: str, message: str, param: str | None, request_id: str
) -> dict[str, Any]:
    error = {
        "type": error_type(status),
        "code": code,
        "message": message,
        "param": param,
        "request_id": request_id,
    }
    return {"error": error}


def error_response(error: ServiceError, request_id: str) -> JSONResponse:
    retry = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    body = error_body(error.status, error.code, error.message, error.param, request_id)
    return JSONResponse(body, status_code=error.status, headers=retry)


def install_handlers(app: FastAPI) -> None:
    """Give the framework's own refusals (404, 405, parameters) the shape of all others."""
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameters)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {
        404: f"there is nothing at {request.url.path}",
        405: f"{request.method} is not allowed here",
    }
    trace = trace_of(request.scope)
    trace.outcome = code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    message = messages.get(error.status_code, str(error.detail))
    body = error_body(error.status_code, code, message, None, trace.request_id)
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _on_invalid_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    trace = trace_of(request.scope)
    trace.outcome = "invalid_request"
    body = error_body(422, "invalid_request", str(first["msg"]), param, trace.request_id)
    return JSONResponse(body, status_code=422)
