"""``/health``: for people and monitors in full, for probes in short."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from sensevoice_service import __version__
from sensevoice_service.formats import model_body
from sensevoice_service.memory import MemoryReading
from sensevoice_service.routes.health_schemas import HealthAnswer, LiveAnswer, ReadyAnswer
from sensevoice_service.routes.services import Services
from sensevoice_service.status import ModelInfo

Health = Literal["healthy", "loading", "overloaded", "unhealthy"]


def make_router(services: Services, clock: Callable[[], float] = time.monotonic) -> APIRouter:
    router = APIRouter(tags=["health"])
    started_s = clock()

    async def health() -> Response:
        """The state of the service, its model, memory, requests and batches."""
        status, reason = judge(services)
        return _answer(status, _health_body(services, status, reason, clock() - started_s))

    async def live() -> Response:
        """200 for as long as the process answers at all: restart it when it does not."""
        return JSONResponse({"status": "alive"})

    async def ready() -> Response:
        """200 while the service can take work: send it none when it cannot."""
        status, _ = judge(services)
        return _answer(status, {"ready": status == "healthy", "status": status})

    _add(router, "/health", health, HealthAnswer, "Tell the state of the service")
    _add(router, "/health/live", live, LiveAnswer, "Tell whether the process answers")
    _add(router, "/health/ready", ready, ReadyAnswer, "Tell whether it takes requests")
    return router


def judge(services: Services) -> tuple[Health, str | None]:
    """What the service is, and why where it is not healthy."""
    state = services.state
    if state.status == "loading":
        return "loading", "the model is loading"
    if state.status == "stopping":
        return "unhealthy", "the service is stopping"
    if state.status == "failed" or state.model is None:
        return "unhealthy", state.failure or "the model cannot be used"
    refusal = services.admission.refusal()
    return ("healthy", None) if refusal is None else ("overloaded", refusal.why)


def _add(
    router: APIRouter, path: str, endpoint: Callable[..., Any], model: type[Any], summary: str
) -> None:
    responses: dict[int | str, dict[str, Any]] = {200: {"description": "It is so."}}
    if model is not LiveAnswer:
        responses[503] = {"model": model, "description": "It cannot take work now."}
    router.add_api_route(path, endpoint, response_model=model, responses=responses, summary=summary)


def _answer(status: Health, body: dict[str, Any]) -> Response:
    headers = {"cache-control": "no-store"}
    return JSONResponse(body, status_code=200 if status == "healthy" else 503, headers=headers)


def _health_body(
    services: Services, status: Health, reason: str | None, uptime_s: float
) -> dict[str, Any]:
    model = services.state.model
    return {
        "status": status,
        "reason": reason,
        "model": None if model is None else _model_body(model),
        "device": None if model is None else model.device,
        "precision": None if model is None else model.precision,
        "version": __version__,
        "uptime_s": round(uptime_s, 1),
        "memory": _memory_body(services.memory()),
        "gpu": services.state.gpu_memory(),
        "requests": asdict(services.admission.stats()),
        "batches": asdict(services.state.batch_stats()),
    }


def _model_body(model: ModelInfo) -> dict[str, Any]:
    return {**model_body(model), "source": model.source}


def _memory_body(reading: MemoryReading) -> dict[str, Any]:
    return {"usage": round(reading.percent, 1), **asdict(reading)}
