"""What Ray Serve is told of a copy of the service: its share of the machine, its bounds, its drain.

Knows nothing of Ray itself, so that it can be read without.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from config import Settings
from sensevoice_service.admission import LONGEST_RETRY_AFTER_S

# A full copy answers 503 itself, in the service's own words. Ray's limit lies beyond that: its
# answer is less telling, and the page and the health of a full copy are to be had too.
HEADROOM = 64
# Of the slots, how many are to be in use on average: the rest are for what comes until there is
# another copy.
TARGET_USE = 0.75


class Plan(BaseModel):
    """How many copies, and how much of which processor each gets; the rest are Settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=2, ge=1)
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _bounds_fit(self) -> Plan:
        if self.min_replicas > self.max_replicas:
            raise ValueError("min_replicas must not exceed max_replicas")
        return self


def share_of(plan: Plan, settings: Settings) -> Settings:
    """Threads by the processors of a copy, where the settings would take those of the machine."""
    cpus = max(1, int(plan.cpus))
    shares = {"DECODE_THREADS": cpus + 1}
    if not plan.gpus:
        shares |= {"MODEL_WORKERS": cpus, "INTRA_OP_THREADS": 1}
    unset = {name: share for name, share in shares.items() if getattr(settings, name) == 0}
    return settings.model_copy(update=unset)


def deployment_options(plan: Plan, settings: Settings, headroom: int = HEADROOM) -> dict[str, Any]:
    """For ``serve.deployment``."""
    let_in = settings.MAX_CONCURRENT_REQUESTS + settings.MAX_WAITING_REQUESTS
    return {
        "ray_actor_options": {"num_cpus": plan.cpus, "num_gpus": plan.gpus},
        "max_ongoing_requests": let_in + headroom,
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


def http_options(settings: Settings) -> dict[str, Any]:
    """For ``serve.start``."""
    certificate = settings.TLS_CERTFILE or None
    return {
        "host": settings.HOST,
        "port": settings.PORT,
        "ssl_certfile": certificate,
        "ssl_keyfile": settings.TLS_KEYFILE or certificate,
    }
