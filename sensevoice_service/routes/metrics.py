"""``GET /metrics``: what Prometheus scrapes."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from sensevoice_service.routes.services import Services


def make_router(services: Services) -> APIRouter:
    router = APIRouter(tags=["metrics"])

    # A coroutine, since the snapshots of admission belong to the event loop's thread.
    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Counters, histograms and gauges in the text format of Prometheus or in OpenMetrics."""
        accept = ",".join(request.headers.getlist("accept"))
        body, media_type = services.metrics.exposition(accept)
        return Response(body, media_type=media_type, headers={"cache-control": "no-store"})

    return router
