"""What is noted of a request while it is worked on, for its line in the log and its counts."""

from __future__ import annotations

import re
import secrets
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from sensevoice_service.metrics import PHASES
from sensevoice_service.routes.headers import header_of
from sensevoice_service.types import NotReady

_KEY = "trace"
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass
class RequestTrace:
    """Filled in by the routes; what was never filled in is neither logged nor counted.

    ``process_s`` is the time from the end of the upload to the transcripts; ``shed`` says for want
    of what the service was overloaded.
    """

    request_id: str
    outcome: str = "ok"
    names: tuple[str, ...] | None = None
    audio_s: float | None = None
    wait_s: float | None = None
    queue_s: float | None = None
    decode_s: float | None = None
    infer_s: float | None = None
    process_s: float | None = None
    shed: str | None = None

    @property
    def phases_s(self) -> dict[str, float]:
        found = {phase: getattr(self, f"{phase}_s") for phase in PHASES}
        return {phase: spent_s for phase, spent_s in found.items() if spent_s is not None}

    @property
    def shed_reason(self) -> str | None:
        """One of ``metrics.SHED_REASONS``, or ``None`` where the request was not turned away."""
        return "not_ready" if self.outcome == NotReady.code else self.shed

    def fields(self, *, with_names: bool) -> dict[str, Any]:
        found: dict[str, Any] = {"outcome": self.outcome}
        found["shed"] = self.shed_reason
        found["files"] = None if self.names is None else len(self.names)
        found["names"] = "|".join(self.names) if self.names and with_names else None
        found["audio_s"] = None if self.audio_s is None else round(self.audio_s, 3)
        found |= {
            f"{phase}_ms": round(spent_s * 1000, 1) for phase, spent_s in self.phases_s.items()
        }
        return {key: value for key, value in found.items() if value is not None}


def request_id_of(scope: MutableMapping[str, Any]) -> str:
    """The client's own ``x-request-id`` where it is short and plain, or else a new one."""
    given = header_of(scope, b"x-request-id").decode("latin-1")
    return given if _SANE_ID.fullmatch(given) else new_request_id()


def new_request_id() -> str:
    return secrets.token_hex(16)


def attach(scope: MutableMapping[str, Any], trace: RequestTrace) -> None:
    scope.setdefault("state", {})[_KEY] = trace


def trace_of(scope: MutableMapping[str, Any]) -> RequestTrace:
    trace = scope["state"][_KEY]
    assert isinstance(trace, RequestTrace)
    return trace
