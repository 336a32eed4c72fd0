"""The end of each request: its one line in the log, and its counts."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from http import HTTPStatus
from typing import Any

from sensevoice_service.logs import FIELDS
from sensevoice_service.metrics import EndedRequest, Metrics
from sensevoice_service.routes.trace import RequestTrace

_log = logging.getLogger("sensevoice_service.requests")

OTHER_ROUTE = "other"


class Ledger:
    """A request is counted under its path if that is one of ``paths``: anyone can make up others,
    and each would be kept for ever."""

    def __init__(self, log_names: bool, metrics: Metrics, paths: frozenset[str]) -> None:
        self._log_names = log_names
        self._metrics = metrics
        self._paths = paths

    def enter(
        self, scope: MutableMapping[str, Any], status: int, trace: RequestTrace, total_s: float
    ) -> None:
        """``status`` is 0 where no answer was begun."""
        path: str = scope["path"]
        if trace.outcome == "ok" and status >= 400:  # a probe's 503, a preflight's 400
            trace.outcome = "error"
        ended = EndedRequest(
            route=path if path in self._paths else OTHER_ROUTE,
            status=status,
            outcome=trace.outcome,
            total_s=total_s,
            phases_s=trace.phases_s,
            audio_s=trace.audio_s,
            process_s=trace.process_s,
            shed=trace.shed_reason,
        )
        self._metrics.request_ended(ended)
        fields = {
            "id": trace.request_id,
            "method": scope["method"],
            "path": path[:200],
            "status": status,
            **trace.fields(with_names=self._log_names),
            "total_ms": round(total_s * 1000, 1),
        }
        _log.log(_level(path, status), "request", extra={FIELDS: fields})


def _level(path: str, status: int) -> int:
    if path in ("/health", "/metrics") or path.startswith("/health/"):
        return logging.DEBUG
    if path.startswith(("/page/", "/docs/assets/")) and 0 < status < 400:
        return logging.DEBUG  # a page's files, thirty a visit
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return logging.WARNING
    return logging.ERROR if status >= 500 or status == 0 else logging.INFO
