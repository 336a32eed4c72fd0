"""The application: routes, errors and middleware put together around given services."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Security
from fastapi.routing import APIRoute
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.middleware import Middleware

from sensevoice_service import __version__
from sensevoice_service.routes import docs, health, metrics, openai, page, transcribe
from sensevoice_service.routes.door import Door
from sensevoice_service.routes.errors import install_handlers
from sensevoice_service.routes.forms import FormLimits
from sensevoice_service.routes.head import answer_head
from sensevoice_service.routes.keys import Guard, KeyRing
from sensevoice_service.routes.ledger import Ledger
from sensevoice_service.routes.middleware import (
    BodyLimit,
    ErrorBoundary,
    OrderlyRefusal,
    RequestContext,
)
from sensevoice_service.routes.openapi import DescribedApp
from sensevoice_service.routes.quota import Quota, Rate
from sensevoice_service.routes.security import SecurityHeaders, cors
from sensevoice_service.routes.services import Services
from sensevoice_service.subtitles import SubtitleRules

if TYPE_CHECKING:
    from config import Settings

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Any]]

_DESCRIPTION = (
    "Speech to text with SenseVoiceSmall: Mandarin, English, Cantonese, Japanese and Korean,"
    " with the language, the emotion and the sounds that were heard."
)
_A_KEY = "One of the service's API keys, where it has any."
# The guard asks for the key; these tell of it in the documentation.
_KEY_SCHEMES = [
    Security(HTTPBearer(auto_error=False, description=_A_KEY)),
    Security(APIKeyHeader(name="X-API-Key", auto_error=False, description=_A_KEY)),
]


def build_app(services: Services, settings: Settings, lifespan: Lifespan | None = None) -> FastAPI:
    """The routes of these settings, with their middleware from the outside in.

    RequestContext is outermost, so that every answer has an id and a line in the log;
    OrderlyRefusal sees the answers that ErrorBoundary makes of errors; Guard comes ahead of
    BodyLimit, so that a stranger learns no limit.
    """
    max_body_bytes = settings.MAX_UPLOAD_MB * 2**20
    limits, rules = FormLimits.of(settings), SubtitleRules.of(settings)
    guarded = (
        transcribe.make_router(services, limits, rules),
        openai.make_router(services, limits, rules),
    )
    routers = (
        *guarded,
        health.make_router(services),
        *([metrics.make_router(services)] if settings.METRICS else []),
        *([docs.make_router()] if settings.DOCS else []),
        *([page.make_router(settings)] if settings.PAGE else []),
    )
    ledger = Ledger(settings.LOG_FILENAMES, services.metrics, _paths(routers))
    keys, quota = KeyRing(settings.api_keys()), _quota(settings)
    app = DescribedApp(
        asks_for_keys=bool(keys),
        title="SenseVoice",
        description=_DESCRIPTION,
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,  # a redirected upload would be sent twice
        openapi_url="/openapi.json" if settings.DOCS else None,
        docs_url=None,  # FastAPI's own pages load their scripts from the internet
        redoc_url=None,
        middleware=[
            Middleware(RequestContext, ledger=ledger),
            Middleware(SecurityHeaders),
            Middleware(OrderlyRefusal, drain_bytes=2 * max_body_bytes),
            *cors(settings.cors_origins()),
            Middleware(ErrorBoundary),
            Middleware(Guard, keys=keys, quota=quota),
            Middleware(BodyLimit, max_bytes=max_body_bytes),
        ],
    )
    # Where clients have a rate, each request counts: the application is to know of all.
    app.state.door = Door(services.admission, keys, ledger) if quota is None else None
    install_handlers(app)
    for router in routers:
        answer_head(router)
        app.include_router(router, dependencies=_KEY_SCHEMES if router in guarded else [])

    return app


def _quota(settings: Settings) -> Quota | None:
    rate = Rate.of(settings.RATE_LIMIT)
    return None if rate is None else Quota(rate)


def _paths(routers: Iterable[APIRouter]) -> frozenset[str]:
    routes = (route for router in routers for route in router.routes)
    return frozenset(route.path for route in routes if isinstance(route, APIRoute))
