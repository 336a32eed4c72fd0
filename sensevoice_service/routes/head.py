"""HEAD wherever there is GET: a server is to know both (RFC 9110, section 9.1)."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter
from fastapi.routing import APIRoute


def answer_head(router: APIRouter) -> None:
    """Routes of their own, since two methods of one route would share an operation id."""
    for route in list(router.routes):
        if isinstance(route, APIRoute) and route.methods == {"GET"}:
            path = route.path.removeprefix(router.prefix)
            router.add_api_route(path, route.endpoint, methods=["HEAD"], include_in_schema=False)


def allow_head(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Those of a 405, which FastAPI takes from the first route of the path alone."""
    headers = dict(headers or {})
    return {**headers, "Allow": "GET, HEAD"} if headers.get("Allow") == "GET" else headers
