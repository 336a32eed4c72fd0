"""What the routes are given to work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sensevoice_service.admission import Admission
from sensevoice_service.memory import MemoryReading
from sensevoice_service.metrics import Metrics
from sensevoice_service.status import ModelInfo, ServiceState
from sensevoice_service.types import DecodeOptions, NotReady, Progress, Upload

if TYPE_CHECKING:
    from sensevoice_service.pipeline import PipelineResult

OnProgress = Callable[[Progress], None]

_RETRY_WHILE_LOADING_S = 5


class Pipeline(Protocol):
    async def transcribe(
        self, upload: Upload, options: DecodeOptions, on_progress: OnProgress | None = None
    ) -> PipelineResult:
        """Raises ``ServiceError``. When cancelled, it ends once it has let go of the file.

        ``on_progress`` is called on the event loop.
        """
        ...


@dataclass(frozen=True)
class Services:
    pipeline: Pipeline
    state: ServiceState
    admission: Admission
    memory: Callable[[], MemoryReading]
    metrics: Metrics


def ready_model(state: ServiceState) -> ModelInfo:
    """The model that can take work. Raises ``NotReady`` while there is none; ``param`` says why."""
    if state.status == "ready" and state.model is not None:
        return state.model
    if state.status == "loading":
        message, retry_after_s = "the model is still loading", _RETRY_WHILE_LOADING_S
    elif state.status == "stopping":
        message, retry_after_s = "the service is stopping", _RETRY_WHILE_LOADING_S
    else:
        message, retry_after_s = "the model cannot be used", None
    raise NotReady(message, param=state.status, retry_after_s=retry_after_s)
