"""The same application on Ray Serve, which starts, balances, restarts and drains copies of it.

On a cluster ``serve run deploy.ray_serve:build max_replicas=8 gpus=1``; ``ray_local`` serves on one
machine. Upload, decoding and inference of a request stay in one replica.
``requirements-ray.txt`` has what this needs beside the service.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import HTTPOptions
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import Load, assemble, load_model
from config import Settings, load_settings
from sensevoice_service.admission import LONGEST_RETRY_AFTER_S
from sensevoice_service.logs import configure_logging
from sensevoice_service.status import ServiceState

NAME = "sensevoice"
# A full copy answers 503 itself, in the service's own words. Ray's limit lies beyond that: its
# answer is less telling, and the page and the health of a full copy are to be had too.
HEADROOM = 64
# Of the slots, how many are to be in use on average: the rest are for what comes until there is
# another copy.
TARGET_USE = 0.75
POLL_S = 0.1


class Plan(BaseModel):
    """How many copies, and how much of which processor each gets; the rest are Settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=2, ge=1)
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)


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


def build(plan: Plan) -> serve.Application:
    """For ``serve run``; the settings are those of the machine that calls it."""
    return application(plan, load_settings())


def application(plan: Plan, settings: Settings, load: Load = load_model) -> serve.Application:
    make = serve.deployment(name=NAME, **deployment_options(plan, settings))
    return make(serve.ingress()(Replica)).bind(share_of(plan, settings), load)


def share_of(plan: Plan, settings: Settings) -> Settings:
    """Threads by the processors of a copy, where the settings would take those of the machine."""
    cpus = max(1, int(plan.cpus))
    shares = {"DECODE_THREADS": cpus + 1}
    if not plan.gpus:
        shares |= {"MODEL_WORKERS": cpus, "INTRA_OP_THREADS": 1}
    unset = {name: share for name, share in shares.items() if getattr(settings, name) == 0}
    return settings.model_copy(update=unset)


def deployment_options(plan: Plan, settings: Settings) -> dict[str, Any]:
    let_in = settings.MAX_CONCURRENT_REQUESTS + settings.MAX_WAITING_REQUESTS
    return {
        "ray_actor_options": {"num_cpus": plan.cpus, "num_gpus": plan.gpus},
        "max_ongoing_requests": let_in + HEADROOM,
        "max_queued_requests": let_in,
        "backpressure_config": {"status_code": 503, "retry_after_s": LONGEST_RETRY_AFTER_S},
        "autoscaling_config": {
            "min_replicas": plan.min_replicas,
            "initial_replicas": plan.min_replicas,
            "max_replicas": plan.max_replicas,
            # Those that wait, in a copy or before it, count as those that are worked on.
            "target_ongoing_requests": max(1.0, TARGET_USE * settings.MAX_CONCURRENT_REQUESTS),
            "upscale_delay_s": 15,
            "downscale_delay_s": 300,
        },
        "graceful_shutdown_timeout_s": settings.SHUTDOWN_TIMEOUT_SEC,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 5,
        "health_check_timeout_s": 15,
        "logging_config": {"enable_access_log": False},  # each copy logs its requests itself
    }


def http_options(settings: Settings) -> HTTPOptions:
    certificate = settings.TLS_CERTFILE or None
    return HTTPOptions(
        host=settings.HOST,
        port=settings.PORT,
        ssl_certfile=certificate,
        ssl_keyfile=settings.TLS_KEYFILE or certificate,
    )
