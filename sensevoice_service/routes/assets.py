"""Files of our own for the pages: scripts, styles, pictures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

NO_CACHE = {"cache-control": "no-cache"}  # that is, ask whether there is a newer one
# The standard library asks the system for these, and systems differ.
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


def asset_endpoint(folder: Path) -> Callable[[str, Request], Awaitable[Response]]:
    """The endpoint of a route with a ``path`` below ``folder``.

    It answers 304 to a browser that has the file, and 404 for what is not in the folder.
    """
    files = StaticFiles(directory=folder)

    async def asset(path: str, request: Request) -> Response:
        answer = await files.get_response(path, request.scope)
        answer.headers.update(NO_CACHE)
        if answer.status_code == 200 and (media_type := _MEDIA_TYPES.get(Path(path).suffix)):
            answer.headers["content-type"] = media_type
        return answer

    return asset
