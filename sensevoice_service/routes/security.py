"""What browsers are told of every answer, so that a page elsewhere can do nothing with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A page of our own has a policy that lets it run.
OF_PAGES = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
OF_DATA = (
    *OF_PAGES,
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


class SecurityHeaders:
    """Adds what a route has not set itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                own = dict(headers)
                is_page = own.get(b"content-type", b"").startswith(b"text/html")
                given = OF_PAGES if is_page else OF_DATA
                added = [header for header in given if header[0] not in own]
                message["headers"] = headers + added
            await send(message)

        await self._app(scope, receive, send_with_headers)


def cors(origins: Sequence[str]) -> list[Middleware]:
    """Nothing for no origins: browsers then keep answers from the pages of others."""
    if not origins:
        return []
    options: dict[str, Any] = {
        "allow_origins": tuple(origins),
        "allow_methods": ("GET", "HEAD", "POST"),
        "allow_headers": ("*",),
        "expose_headers": ("x-request-id", "retry-after", "server-timing"),
    }
    return [Middleware(CORSMiddleware, **options)]
