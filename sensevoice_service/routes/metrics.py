"""``GET /metrics``: what Prometheus scrapes."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from sensevoice_service.routes.services import Services

_SCRAPE = """# HELP sensevoice_slots_in_use Requests worked on.
# TYPE sensevoice_slots_in_use gauge
sensevoice_slots_in_use 3.0
"""
_FORMATS = {
    media_type: {"schema": {"type": "string", "description": name}, "example": _SCRAPE}
    for media_type, name in {
        "text/plain": "The text format of Prometheus.",
        "application/openmetrics-text": "OpenMetrics, where the header `Accept` prefers it.",
    }.items()
}


def make_router(services: Services) -> APIRouter:
    router = APIRouter(tags=["metrics"])

    # A coroutine, since the snapshots of admission belong to the event loop's thread.
    @router.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses={200: {"description": "All metrics.", "content": _FORMATS}},
        summary="Tell figures to Prometheus",
    )
    async def metrics(request: Request) -> Response:
        """Counters, histograms and gauges in the text format of Prometheus or in OpenMetrics."""
        accept = ",".join(request.headers.getlist("accept"))
        body, media_type = services.metrics.exposition(accept)
        return Response(body, media_type=media_type, headers={"cache-control": "no-store"})

    return router
