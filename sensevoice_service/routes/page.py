"""``/``: the page for people, from files of our own, so without a network too."""

from __future__ import annotations

import json
from dataclasses import asdict
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

from sensevoice_service.routes.assets import NO_CACHE, asset_endpoint
from sensevoice_service.subtitles import SubtitleRules

if TYPE_CHECKING:
    from config import Settings

FOLDER = Path(__file__).with_name("static")
SAMPLES = {
    name: Path(__file__).resolve().parents[2] / "samples" / name
    for name in ("hello.wav", "nihao.wav")
}

# The waveform's style sheet, which wavesurfer puts into its own part of the document.
_WAVEFORM_STYLE = "'sha256-fF0LBso7Nz75zaFRDBUefBDvPe19hjaiDnnc8lt+2Js='"
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        f"style-src 'self' {_WAVEFORM_STYLE}",
        "img-src 'self' data:",
        "connect-src 'self'",
        "media-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    **NO_CACHE,
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
}


def make_router(settings: Settings) -> APIRouter:
    """Addresses within the page are relative: they hold behind a proxy with a prefix too."""
    router = APIRouter(include_in_schema=False)
    html = _html(settings)
    etag = f'"{sha256(html.encode()).hexdigest()[:32]}"'

    async def page(request: Request) -> Response:
        headers = {**_HEADERS, "etag": etag}
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return HTMLResponse(html, headers=headers)

    async def sample(name: str) -> Response:
        if name not in SAMPLES or not SAMPLES[name].is_file():
            raise HTTPException(404)
        return FileResponse(SAMPLES[name], media_type="audio/wav", headers=NO_CACHE)

    for path, endpoint in (
        ("/", page),
        ("/page/samples/{name}", sample),
        ("/page/{path:path}", asset_endpoint(FOLDER / "page")),
    ):
        router.add_api_route(path, endpoint)
    return router


def _html(settings: Settings) -> str:
    """With what the page has to know of the settings."""
    told = {
        "max_upload_bytes": settings.MAX_UPLOAD_MB * 2**20,
        "subtitles": asdict(SubtitleRules.of(settings)),
        "has_docs": settings.DOCS,
    }
    html = (FOLDER / "index.html").read_text("utf-8")
    return html.replace("{{config}}", escape(json.dumps(told)))
