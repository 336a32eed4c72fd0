"""The same application on Ray Serve, which starts, balances, restarts and drains copies of it.

On a cluster ``serve run deploy.ray_serve:build max_replicas=8 gpus=1``; ``ray_local`` serves on one
machine. Upload, decoding and inference of a request stay in one replica.
``requirements-ray.txt`` has what this needs beside the service.
"""

from __future__ import annotations

import asyncio
import threading

from ray import serve
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import Load, assemble, load_model
from config import Settings, load_settings
from deploy.ray_plan import HEADROOM, Plan, deployment_options, share_of
from sensevoice_service.logs import configure_logging
from sensevoice_service.status import ServiceState

NAME = "sensevoice"
POLL_S = 0.1


class Copy:
    """The application as Ray is to see it.

    It says that it has started once its model is loaded: until then Ray sends it no requests, and
    in a redeployment keeps the old copy. It leaves the header ``X-Request-ID`` to Ray, which would
    add a second one: the id is the same, since Ray gives it to the request.
    """

    def __init__(self, app: ASGIApp, state: ServiceState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_adapted(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                message = await self._when_loaded(message)
            elif message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        await self._app(scope, receive, send_adapted)

    async def _when_loaded(self, complete: Message) -> Message:
        while self._state.status == "loading":
            await asyncio.sleep(POLL_S)
        if self._state.status == "ready":
            return complete
        return {"type": "lifespan.startup.failed", "message": self._state.failure or ""}


class Replica:
    """One copy of the service. ``load`` finds the model, as in ``api``."""

    def __init__(self, settings: Settings, load: Load = load_model) -> None:
        configure_logging(settings.LOG_LEVEL, settings.LOG_FORMAT)
        self._failed = threading.Event()
        self._parts = assemble(settings, self._failed.set, load)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return Copy(self._parts.app, self._parts.service)

    def check_health(self) -> None:
        """Raises where the replica is to be started anew."""
        if self._failed.is_set() or self._parts.service.status == "failed":
            raise RuntimeError(self._parts.service.failure or "the model cannot be used")


def build(arguments: dict[str, str]) -> serve.Application:
    """For ``serve run`` with a plan's ``name=value``; settings are those of the machine it runs on.

    Raises ``ValueError`` for a wrong plan.
    """
    return application(Plan.model_validate(arguments), load_settings())


def application(
    plan: Plan, settings: Settings, load: Load = load_model, headroom: int = HEADROOM
) -> serve.Application:
    make = serve.deployment(name=NAME, **deployment_options(plan, settings, headroom))
    return make(serve.ingress()(Replica)).bind(share_of(plan, settings), load)
