"""The shape of all errors: ``{"error": {type, code, message, param, request_id}}``.

Under ``/v1`` it is OpenAI's, ``{"error": {message, type, param, code}}``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from sensevoice_service.logs import FIELDS
from sensevoice_service.routes.head import allow_head
from sensevoice_service.routes.paths import OPENAI, is_for
from sensevoice_service.routes.security import OF_DATA
from sensevoice_service.routes.trace import trace_of
from sensevoice_service.types import (
    InvalidRequest,
    MalformedBody,
    RateLimited,
    ServiceError,
    Unauthorized,
)

_log = logging.getLogger("sensevoice_service.routes")

CLIENT_GONE_STATUS = 499  # as nginx logs it; nobody is left to read the answer

_CHALLENGE = {"www-authenticate": "Bearer"}
# OpenAI's clients send a file again after any 5xx, where it would fail again.
_NO_RETRY = {"x-should-retry": "false"}
_OPENAI_CODES = {Unauthorized.code: "invalid_api_key", RateLimited.code: "rate_limit_exceeded"}


class ClientGone(Exception):
    """The client hung up before its answer; ends the request without one."""


class UploadStalled(ServiceError):
    """The client stopped sending half-way, while it held a slot."""

    status, code = 408, "upload_stalled"


class UnsupportedFormat(ServiceError):
    """An answer was asked for in a form that there is not."""

    status, code = 400, "unsupported_format"


class ModelNotFound(ServiceError):
    """Another model was asked for than the one there is."""

    status, code = 404, "model_not_found"


def error_type(status: int) -> str:
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return "overloaded_error"
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return "rate_limit_error"
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


def openai_error_body(status: int, code: str, message: str, param: str | None) -> dict[str, Any]:
    """As OpenAI documents it; the request's id is in a header alone."""
    code = _OPENAI_CODES.get(code, code)
    error = {"message": message, "type": error_type(status), "param": param, "code": code}
    return {"error": error}


def openai_status(status: int, code: str) -> int:
    """OpenAI's for a wrong field is 400."""
    return 400 if code == InvalidRequest.code else status


def unforeseen(error: BaseException, request_id: str) -> ServiceError:
    """Log it with its traceback; a client is told where to look for it, and nothing else."""
    _log.error("unexpected error", exc_info=error, extra={FIELDS: {"id": request_id}})
    return ServiceError("an unexpected error occurred; its request_id is in the log")


def error_response(error: ServiceError, scope: Scope) -> Response:
    headers = dict(_CHALLENGE) if error.status == HTTPStatus.UNAUTHORIZED else {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    return _respond(scope, error.status, error.code, error.message, error.param, headers)


def not_http(request_id: str, scope: Scope | None) -> Response:
    """For what is no request, and so has no path and no count, or whose body is none."""
    message = "the request is not valid HTTP"
    if scope is not None and is_for(scope, OPENAI):
        body = openai_error_body(MalformedBody.status, MalformedBody.code, message, None)
    else:
        body = error_body(MalformedBody.status, MalformedBody.code, message, None, request_id)
    return by_itself(JSONResponse(body, status_code=MalformedBody.status), request_id)


def by_itself(response: Response, request_id: str) -> Response:
    """With the headers that the application's answers get on their way out."""
    response.raw_headers += [*OF_DATA, (b"x-request-id", request_id.encode())]
    return response


def _respond(
    scope: Scope,
    status: int,
    code: str,
    message: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """In the shape that belongs to the path."""
    if is_for(scope, OPENAI):
        status = openai_status(status, code)
        body = openai_error_body(status, code, message, param)
        if status >= 500 and status != HTTPStatus.SERVICE_UNAVAILABLE:
            headers = {**(headers or {}), **_NO_RETRY}
    else:
        body = error_body(status, code, message, param, trace_of(scope).request_id)
    return JSONResponse(body, status_code=status, headers=headers)


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
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    trace_of(request.scope).outcome = code
    message = messages.get(error.status_code, str(error.detail))
    return _respond(
        request.scope, error.status_code, code, message, headers=allow_head(error.headers)
    )


async def _on_invalid_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    trace_of(request.scope).outcome = InvalidRequest.code
    return _respond(request.scope, 422, InvalidRequest.code, str(first["msg"]), param)
