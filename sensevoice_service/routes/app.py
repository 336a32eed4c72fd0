"""The application: routes, errors and middleware put together around given services."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.responses import RedirectResponse

from sensevoice_service import __version__
from sensevoice_service.routes import health, metrics, transcribe
from sensevoice_service.routes.errors import install_handlers
from sensevoice_service.routes.forms import FormLimits
from sensevoice_service.routes.middleware import (
    BodyLimit,
    ErrorBoundary,
    OrderlyRefusal,
    RequestContext,
)
from sensevoice_service.routes.services import Services

if TYPE_CHECKING:
    from config import Settings

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Any]]

_DESCRIPTION = (
    "Speech to text with SenseVoiceSmall: Mandarin, English, Cantonese, Japanese and Korean,"
    " with the language, the emotion and the sounds that were heard."
)


def build_app(services: Services, settings: Settings, lifespan: Lifespan | None = None) -> FastAPI:
    max_body_bytes = settings.MAX_UPLOAD_MB * 2**20
    routers = (
        transcribe.make_router(services, FormLimits.of(settings)),
        health.make_router(services),
        metrics.make_router(services),
    )
    app = FastAPI(
        title="SenseVoice",
        description=_DESCRIPTION,
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,  # a redirected upload would be sent twice
        middleware=[
            Middleware(
                RequestContext,
                log_names=settings.LOG_FILENAMES,
                metrics=services.metrics,
                paths=_paths(routers),
            ),
            Middleware(OrderlyRefusal, drain_bytes=2 * max_body_bytes),
            Middleware(ErrorBoundary),
            Middleware(BodyLimit, max_bytes=max_body_bytes),
        ],
    )
    install_handlers(app)
    for router in routers:
        app.include_router(router)

    @app.get("/", include_in_schema=False)
    async def front_page() -> RedirectResponse:
        return RedirectResponse("docs")

    return app


def _paths(routers: Iterable[APIRouter]) -> frozenset[str]:
    routes = (route for router in routers for route in router.routes)
    return frozenset(route.path for route in routes if isinstance(route, APIRoute))
