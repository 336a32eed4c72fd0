"""The bodies of the health checks as OpenAPI shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sensevoice_service.routes.schemas import Answer, Model

Status = Literal["healthy", "loading", "overloaded", "unhealthy"]

_STATUS = "`healthy` takes work; the others do not, for the reason that they name."


class HealthModel(Model):
    source: str = Field(
        description="Path of the folder it was loaded from.", examples=["/models/SenseVoiceSmall"]
    )


class Memory(Answer):
    usage: float = Field(description="Percent of what the process may use.", examples=[41.5])
    used_bytes: int = Field(
        description="In use by all, without what can be dropped.", examples=[6_442_450_944]
    )
    total_bytes: int = Field(
        description="The container's limit, or the host's memory.", examples=[17_179_869_184]
    )
    process_rss_bytes: int = Field(description="In use by this process.", examples=[1_610_612_736])


class Requests(Answer):
    active: int = Field(description="Holding a slot.", examples=[3])
    waiting: int = Field(description="Waiting for a slot.", examples=[0])
    limit: int = Field(description="Slots there are.", examples=[20])
    max_waiting: int = Field(description="How many may wait.", examples=[100])


class Batches(Answer):
    """Totals count since the start; all is 0 until there is a model."""

    batches: int = Field(0, description="Calls of the model that gave an answer.", examples=[1200])
    items: int = Field(0, description="Chunks recognised.", examples=[9000])
    frames: int = Field(0, description="60 ms frames recognised.", examples=[1500000])
    padded_frames: int = Field(0, description="The same with padding.", examples=[1600000])
    mean_batch_size: float = Field(0, description="Chunks in one call.", examples=[7.5])
    padding_ratio: float = Field(
        0, description="Share of the padded frames that is padding.", examples=[0.0625]
    )
    infer_s: float = Field(0, description="Seconds in the model.", examples=[310.2])
    failed_batches: int = Field(0, description="Calls that failed.", examples=[0])
    failed_items: int = Field(0, description="Chunks that failed.", examples=[0])
    consecutive_failures: int = Field(
        0, description="Failed batches since the last good one.", examples=[0]
    )
    out_of_memory: int = Field(
        0,
        description="Calls that did not fit the device; several chunks are tried again in halves.",
        examples=[0],
    )
    max_padded_frames: int = Field(
        0,
        description="Most padded frames in a batch: fewer for a while after one did not fit.",
        examples=[8192],
    )
    queued: int = Field(0, description="Chunks that wait.", examples=[12])
    running: int = Field(0, description="Chunks in the model.", examples=[32])
    longest_running_s: float = Field(
        0, description="Age of the oldest batch that still runs.", examples=[0.2]
    )
    queue_mean_s: float = Field(
        0, description="Time in the queue of the last 256 chunks.", examples=[0.05]
    )
    queue_max_s: float = Field(0, description="The longest of them.", examples=[0.31])
    overhead_frames: float = Field(
        0,
        description="What a call costs however little is in it, as learned from the calls.",
        examples=[40.0],
    )


class HealthAnswer(Answer):
    status: Status = Field(description=_STATUS, examples=["healthy"])
    reason: str | None = Field(description="Why it is not healthy, or null.", examples=[None])
    model: HealthModel | None = Field(description="What answers, or null before it is loaded.")
    device: str | None = Field(description="What the model runs on.", examples=["cuda:0"])
    precision: str | None = Field(description="Of the model's arithmetic.", examples=["bf16"])
    version: str = Field(description="Of this service.", examples=["0.1.0"])
    uptime_s: float = Field(description="Seconds since the start.", examples=[3600.0])
    memory: Memory = Field(description="Of the container or the host.")
    gpu: dict[str, Any] | None = Field(
        description="Memory of the GPUs, together and each, or null without one.", examples=[None]
    )
    requests: Requests = Field(description="Those that are in the service now.")
    batches: Batches = Field(description="What the batcher does and has done since the start.")


class LiveAnswer(Answer):
    status: Literal["alive"] = Field(description="There is no other.", examples=["alive"])


class ReadyAnswer(Answer):
    ready: bool = Field(description="Whether to send it requests.", examples=[True])
    status: Status = Field(description=_STATUS, examples=["healthy"])
