"""``POST /transcribe``: audio files in, their texts out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sensevoice_service.formats import (
    MEDIA_TYPES,
    TIMESTAMPS,
    FileOutcome,
    plain_body,
    transcription_body,
)
from sensevoice_service.routes import forms
from sensevoice_service.routes.errors import UnsupportedFormat, error_body
from sensevoice_service.routes.forms import FormLimits
from sensevoice_service.routes.plain_route import PlainRoute
from sensevoice_service.routes.schemas import (
    ERRORS,
    OTHER_ANSWERS,
    TranscribeAnswer,
    TranscribeForm,
)
from sensevoice_service.routes.services import Pipeline, Services, ready_model
from sensevoice_service.routes.streaming import Dialect, Event, OnFileProgress
from sensevoice_service.routes.trace import RequestTrace
from sensevoice_service.routes.work import Job, answer, rendered, transcribe_files
from sensevoice_service.status import ModelInfo
from sensevoice_service.subtitles import SubtitleRules
from sensevoice_service.types import (
    DecodeOptions,
    InvalidRequest,
    Progress,
    ServiceError,
    Transcript,
    Upload,
)

if TYPE_CHECKING:
    from sensevoice_service.pipeline import PipelineResult


def make_router(services: Services, limits: FormLimits, rules: SubtitleRules) -> APIRouter:
    router = APIRouter(tags=["transcription"], route_class=PlainRoute)
    described = {"schema": TranscribeForm.model_json_schema()}

    @router.post(
        "/transcribe",
        summary="Transcribe audio files",
        response_model=TranscribeAnswer,
        responses={**OTHER_ANSWERS, **ERRORS},
        openapi_extra={
            "requestBody": {"required": True, "content": {"multipart/form-data": described}}
        },
    )
    async def transcribe(request: Request) -> Response:
        """Send one or more files; each is transcribed on its own.

        A file that fails leaves an empty text and its `error` among the `details`. Only where all
        files fail is the answer an error, with the status of the first. Plain text has no place for
        errors, so there one file that fails is enough.

        With `stream=true` the answer is a stream of server-sent events: `progress` of each file as
        its audio is recognised, then `done` with the body that the answer would have had, or
        `error`. What fails before the answer begins, with its first event or after 15 s without
        one, is answered with its own status.
        """
        # The form is no parameter of this function: it would be received before there is a slot.
        model = ready_model(services.state)

        def read(form: FormData, trace: RequestTrace) -> Job:
            asked = _asked(form, limits)
            return _Job(services.pipeline, model, rules, trace, asked, limits.files_at_once)

        return await answer(request, services, limits, read)

    return router


@dataclass(frozen=True)
class _Asked:
    """``form`` is one of ``MEDIA_TYPES``, ``timestamps`` one of ``TIMESTAMPS``."""

    files: list[Upload]
    keys: list[str]
    options: DecodeOptions
    form: str
    timestamps: str
    is_stream: bool


def _asked(form: FormData, limits: FormLimits) -> _Asked:
    """Raises ``InvalidRequest`` and ``UnsupportedFormat``."""
    files = forms.uploads(form, limits)
    answer_form = forms.answer_form(form, "response_format", tuple(MEDIA_TYPES), "json")
    timestamps = forms.answer_form(form, "timestamps", TIMESTAMPS, "segment")
    if timestamps == "word" and answer_form != "json":
        message = f"response_format={answer_form} has no place for the times of words: use json"
        raise UnsupportedFormat(message, param="timestamps")
    if answer_form in ("srt", "vtt") and len(files) > 1:
        message = f"response_format={answer_form} takes one file, {len(files)} were sent"
        raise InvalidRequest(message, param="files")
    return _Asked(
        files=files,
        keys=forms.keys(form, files),
        options=forms.decode_options(form),
        form=answer_form,
        timestamps=timestamps,
        is_stream=forms.switch(form, "stream", default=False),
    )


@dataclass(frozen=True)
class _Job:
    pipeline: Pipeline
    model: ModelInfo
    rules: SubtitleRules
    trace: RequestTrace
    asked: _Asked
    files_at_once: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(file.name for file in self.asked.files)

    @property
    def is_stream(self) -> bool:
        return self.asked.is_stream

    @property
    def dialect(self) -> Dialect:
        return Dialect(self._progress_events, self._error_events)

    async def answer(self, on_progress: OnFileProgress | None = None) -> Response:
        """Raises ``ServiceError``."""
        began_s = time.perf_counter()
        asked, trace = self.asked, self.trace
        results = await transcribe_files(
            self.pipeline, asked.files, asked.options, trace, on_progress, self.files_at_once
        )
        _require_success(results, asked)
        outcomes = [
            FileOutcome(key, result if isinstance(result, ServiceError) else result.transcript)
            for key, result in zip(asked.keys, results, strict=True)
        ]
        spent_s = time.perf_counter() - began_s
        return await rendered(partial(self._response, outcomes, spent_s), trace.audio_s or 0.0)

    async def stream(self, report: OnFileProgress) -> list[Event]:
        response = await self.answer(report)
        body = bytes(response.body).decode()
        return [
            Event(body, "done") if self.asked.form == "json" else Event.of({"text": body}, "done")
        ]

    def _response(self, outcomes: Sequence[FileOutcome], spent_s: float) -> Response:
        if self.asked.form == "json":
            return JSONResponse(
                transcription_body(outcomes, self.model, spent_s, self.asked.timestamps)
            )
        texts = [
            plain_body(outcome.result, self.asked.form, self.rules)
            for outcome in outcomes
            if isinstance(outcome.result, Transcript)
        ]
        return Response("".join(texts), headers={"content-type": MEDIA_TYPES[self.asked.form]})

    def _progress_events(self, index: int, progress: Progress) -> Iterable[Event]:
        told = {
            "file": index,
            "key": self.asked.keys[index],
            "fraction": round(progress.fraction, 4),
            "text": progress.text,
        }
        return [Event.of(told, "progress")]

    def _error_events(self, error: ServiceError) -> Iterable[Event]:
        body = error_body(
            error.status, error.code, error.message, error.param, self.trace.request_id
        )
        return [Event.of({"status": error.status, **body}, "error")]


def _require_success(results: Sequence[PipelineResult | ServiceError], asked: _Asked) -> None:
    """Raises the first error where all files failed; plain text has no place for any error."""
    errors = [result for result in results if isinstance(result, ServiceError)]
    if not errors or (len(errors) < len(results) and asked.form == "json"):
        return
    first = errors[0]
    if len(results) == 1:
        raise first
    if len(errors) == len(results):
        message = f"all {len(results)} files failed; the first: {first.message}"
    else:
        key = asked.keys[results.index(first)]
        message = f"{len(errors)} of {len(results)} files failed; the first, {key}: {first.message}"
    raise type(first)(message, param=first.param, retry_after_s=first.retry_after_s)
