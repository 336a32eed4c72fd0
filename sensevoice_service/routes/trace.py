"""What is noted of a request while it is worked on, for its line in the log."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

_KEY = "trace"
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass
class RequestTrace:
    """Filled in by the routes; what was never filled in is not logged."""

    request_id: str
    outcome: str = "ok"
    names: tuple[str, ...] | None = None
    audio_s: float | None = None
    wait_s: float | None = None
    queue_s: float | None = None
    decode_s: float | None = None
    infer_s: float | None = None

    def fields(self, *, with_names: bool) -> dict[str, Any]:
        found: dict[str, Any] = {"outcome": self.outcome}
        found["files"] = None if self.names is None else len(self.names)
        found["names"] = "|".join(self.names) if self.names and with_names else None
        found["audio_s"] = None if self.audio_s is None else round(self.audio_s, 3)
        for stage in ("wait", "queue", "decode", "infer"):
            seconds = getattr(self, f"{stage}_s")
            found[f"{stage}_ms"] = None if seconds is None else round(seconds * 1000, 1)
        return {key: value for key, value in found.items() if value is not None}


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's own ``x-request-id`` where it is short and plain, or else a new one."""
    for name, value in headers:
        if name == b"x-request-id":
            given = value.decode("latin-1")
            return given if _SANE_ID.fullmatch(given) else secrets.token_hex(16)
    return secrets.token_hex(16)


def attach(scope: MutableMapping[str, Any], trace: RequestTrace) -> None:
    scope.setdefault("state", {})[_KEY] = trace


def trace_of(scope: MutableMapping[str, Any]) -> RequestTrace:
    trace = scope["state"][_KEY]
    assert isinstance(trace, RequestTrace)
    return trace
