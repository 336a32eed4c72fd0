"""What the service knows of itself: the model it runs, and whether it can take work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Status = Literal["loading", "ready", "failed", "stopping"]


@dataclass(frozen=True)
class ModelInfo:
    """The loaded model: ``source`` is its folder, ``precision`` fp32, bf16 or int8."""

    name: str
    is_demo: bool
    device: str
    precision: str
    source: str
    parameters: int


class ServiceState(Protocol):
    """``model`` is there once ``status`` is ready; ``failure`` says why it is failed."""

    @property
    def status(self) -> Status: ...

    @property
    def model(self) -> ModelInfo | None: ...

    @property
    def failure(self) -> str | None: ...

    def batch_stats(self) -> DataclassInstance: ...

    def gpu_memory(self) -> dict[str, Any] | None: ...
