"""The bodies of requests and answers as OpenAPI shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

# Both words for a file: tools of OpenAPI 3.1 go by the media type, and Swagger UI shows a list of
# files as text inputs unless it finds the older format.
AudioFile = Annotated[
    bytes,
    WithJsonSchema(
        {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
    ),
]


class TranscribeForm(BaseModel):
    """Describes the form; it is read by ``forms``."""

    files: list[AudioFile] = Field(
        min_length=1,
        description="One or more audio files: WAV, MP3, FLAC, OGG, M4A and others.",
    )
    keys: str = Field(
        "",
        description="Names for the files in the answer, comma-separated, as many as there are"
        " files; for example `meeting,interview`. The default are the files' own names.",
    )
    lang: Literal["auto", "zh", "en", "yue", "ja", "ko"] = Field(
        "auto",
        description="The language spoken: `auto` detects it; `zh` Mandarin, `en` English,"
        " `yue` Cantonese, `ja` Japanese, `ko` Korean.",
    )
    use_itn: bool = Field(
        True, description="Write numbers, dates and the like in digits, and punctuate."
    )


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Segment(Answer):
    start_s: float = Field(description="Seconds from the start of the file.", examples=[0.0])
    end_s: float = Field(description="Seconds from the start of the file.", examples=[3.2])
    text: str = Field(examples=["欢迎大家来体验。"])
    language: str = Field(examples=["zh"])
    emotion: str = Field(examples=["NEUTRAL"])
    events: list[str] = Field(description="Sounds heard.", examples=[["Speech"]])


class FileError(Answer):
    status: int = Field(
        description="The HTTP status that the file alone would get.", examples=[415]
    )
    code: str = Field(examples=["unsupported_audio"])
    message: str = Field(examples=["the file is not audio that can be decoded"])


class FileDetail(Answer):
    key: str = Field(
        description="From `keys`, or the file's name, or `audio1`, `audio2`, …", examples=["audio1"]
    )
    text: str = Field(description="Empty where the file failed.", examples=["欢迎大家来体验。"])
    language: str | None = Field(description="Of most of the speech.", examples=["zh"])
    emotion: str | None = Field(description="Of most of the speech.", examples=["NEUTRAL"])
    events: list[str] = Field(description="All sounds heard in the file.", examples=[["Speech"]])
    duration_s: float | None = Field(description="Length of the audio, seconds.", examples=[3.2])
    segments: list[Segment]
    error: FileError | None = Field(
        description="Why this file failed, or null.",
        examples=[None],
    )


class Model(Answer):
    name: str = Field(examples=["SenseVoiceSmall"])
    demo: bool = Field(description="True for the small model that only shows the service at work.")
    device: str = Field(examples=["cuda:0"])
    precision: str = Field(examples=["bf16"])
    parameters: int = Field(examples=[234000000])


class TranscribeAnswer(Answer):
    message: str = Field(description="`success`, or how many files failed.", examples=["success"])
    processing_time: float = Field(
        description="Seconds from the end of the upload to the answer.", examples=[0.42]
    )
    results: list[str] = Field(
        description="The text of each file, in the order sent.", examples=[["欢迎大家来体验。"]]
    )
    details: list[FileDetail]
    model: Model


class Error(Answer):
    type: Literal["invalid_request_error", "overloaded_error", "server_error"]
    code: str = Field(description="Stable name of the error.", examples=["invalid_request"])
    message: str = Field(examples=["lang must be one of auto, zh, en, yue, ja, ko"])
    param: str | None = Field(description="The form field at fault.", examples=["lang"])
    request_id: str = Field(description="Also in the header x-request-id and in the log.")


class ErrorAnswer(Answer):
    error: Error


class HealthModel(Model):
    source: str = Field(
        description="Hub id or folder it was loaded from.", examples=["iic/SenseVoiceSmall"]
    )


class Memory(Answer):
    usage: float = Field(description="Percent of what the process may use.", examples=[41.5])
    used_bytes: int
    total_bytes: int = Field(description="The container's limit, or the host's memory.")
    process_rss_bytes: int


class Requests(Answer):
    active: int = Field(description="Holding a slot.")
    waiting: int = Field(description="Waiting for a slot.")
    limit: int
    max_waiting: int


class Batches(Answer):
    """Totals count since the start; all is 0 until there is a model."""

    batches: int = Field(0, description="Calls of the model that gave an answer.")
    items: int = Field(0, description="Chunks recognised.")
    frames: int = Field(0, description="60 ms frames recognised.")
    padded_frames: int = Field(0, description="The same with padding.")
    mean_batch_size: float = Field(0, description="Chunks in one call.")
    padding_ratio: float = Field(0, description="Share of the padded frames that is padding.")
    infer_s: float = Field(0, description="Seconds in the model.")
    failed_batches: int = Field(0, description="Calls that failed.")
    failed_items: int = Field(0, description="Chunks that failed.")
    consecutive_failures: int = Field(0, description="Failed batches since the last good one.")
    out_of_memory: int = Field(
        0,
        description="Calls that did not fit the device; several chunks are tried again in halves.",
    )
    max_padded_frames: int = Field(
        0, description="Most padded frames in a batch: fewer for a while after one did not fit."
    )
    queued: int = Field(0, description="Chunks that wait.")
    running: int = Field(0, description="Chunks in the model.")
    longest_running_s: float = Field(0, description="Age of the oldest batch that still runs.")
    queue_mean_s: float = Field(0, description="Time in the queue of the last 256 chunks.")
    queue_max_s: float = Field(0, description="The longest of them.")
    overhead_frames: float = Field(
        0, description="What a call costs however little is in it, as learned from the calls."
    )


class HealthAnswer(Answer):
    status: Literal["healthy", "loading", "overloaded", "unhealthy"]
    reason: str | None = Field(description="Why it is not healthy, or null.", examples=[None])
    model: HealthModel | None
    device: str | None = Field(examples=["cuda:0"])
    precision: str | None = Field(examples=["bf16"])
    version: str = Field(examples=["0.1.0"])
    uptime_s: float
    memory: Memory
    gpu: dict[str, Any] | None = Field(description="Memory of the GPU, or null without one.")
    requests: Requests
    batches: Batches = Field(description="What the batcher does and has done since the start.")


class LiveAnswer(Answer):
    status: Literal["alive"]


class ReadyAnswer(Answer):
    ready: bool
    status: Literal["healthy", "loading", "overloaded", "unhealthy"]


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in {
        400: "The multipart body is broken, or the only file is empty.",
        408: "The upload stood still for too long.",
        413: "The body is over the size limit, or the audio over the length limit.",
        415: "The body is no multipart form, or no file is audio.",
        422: "A field has a wrong value, no file was sent, or the audio is damaged.",
        500: "The service is at fault.",
        503: "Overloaded, short of memory, or still loading; see the header Retry-After.",
    }.items()
}
