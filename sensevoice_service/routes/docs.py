"""``/docs`` and ``/redoc``: the API for people, from files of our own, so without a network too."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from sensevoice_service.routes.assets import NO_CACHE, asset_endpoint

ASSETS = Path(__file__).with_name("docs_assets")

# Redoc adds two style elements: one is filled by script, so the hash is that of nothing, the other
# has the scroll bars. Its search runs in a worker that it makes of a string.
_EMPTY_STYLE = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
_SCROLLBAR_STYLE = "'sha256-QMIg+bpjm3JdElJ388KYke01izlUW0UoNOeKjpMxdgc='"
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        f"style-src 'self' {_EMPTY_STYLE} {_SCROLLBAR_STYLE}",
        "img-src 'self' data:",
        "connect-src 'self'",
        "worker-src blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    **NO_CACHE,
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "referrer-policy": "no-referrer",
}


def make_router() -> APIRouter:
    """Addresses within the pages are relative: they hold behind a proxy with a prefix too."""
    router = APIRouter(include_in_schema=False)
    swagger = (ASSETS / "swagger.html").read_text("utf-8")
    redoc = (ASSETS / "redoc.html").read_text("utf-8")

    async def docs() -> Response:
        return HTMLResponse(swagger, headers=_HEADERS)

    async def reference() -> Response:
        return HTMLResponse(redoc, headers=_HEADERS)

    for path, endpoint in (
        ("/docs", docs),
        ("/redoc", reference),
        ("/docs/assets/{path:path}", asset_endpoint(ASSETS)),
    ):
        router.add_api_route(path, endpoint)
    return router
