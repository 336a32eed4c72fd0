"""``/v1``: transcriptions and models as clients of OpenAI's API expect them.

The reference: https://platform.openai.com/docs/api-reference/audio/createTranscription
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sensevoice_service.formats import MEDIA_TYPES, plain_body
from sensevoice_service.routes import openai_bodies, openai_form
from sensevoice_service.routes.errors import ModelNotFound, openai_error_body
from sensevoice_service.routes.forms import FormLimits
from sensevoice_service.routes.openai_schemas import (
    ERRORS,
    MODEL_ERRORS,
    TRANSCRIBED,
    ModelList,
    OpenAiModel,
    TranscriptionForm,
)
from sensevoice_service.routes.services import Pipeline, Services, ready_model
from sensevoice_service.routes.streaming import Dialect, Event, OnFileProgress
from sensevoice_service.routes.trace import RequestTrace
from sensevoice_service.routes.work import Job, answer, rendered, transcribe_files
from sensevoice_service.subtitles import SubtitleRules
from sensevoice_service.types import Progress, ServiceError, Transcript

# What clients ask for that can be told of no other model.
ALIAS = "whisper-1"


def make_router(
    services: Services,
    limits: FormLimits,
    rules: SubtitleRules,
    clock: Callable[[], float] = time.time,
) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["OpenAI"])
    _add_transcriptions(router, services, limits, rules)
    _add_models(router, services, created_s=int(clock()))
    return router


def _add_transcriptions(
    router: APIRouter, services: Services, limits: FormLimits, rules: SubtitleRules
) -> None:
    described = {"schema": TranscriptionForm.model_json_schema()}

    @router.post(
        "/audio/transcriptions",
        summary="Transcribe a file as OpenAI's API does",
        responses={**TRANSCRIBED, **ERRORS},
        response_class=Response,  # which names no media type: TRANSCRIBED has them all
        openapi_extra={
            "requestBody": {"required": True, "content": {"multipart/form-data": described}}
        },
    )
    async def create_transcription(request: Request) -> Response:
        """For clients of OpenAI's API, of which any model name is taken for the model served.

        With `stream=true` the text is sent as server-sent events while it is recognised:
        `transcript.text.delta` as often as there is more of it, then `transcript.text.done`.
        """
        # The form is no parameter of this function: it would be received before there is a slot.
        ready_model(services.state)

        def read(form: FormData, trace: RequestTrace) -> Job:
            return _Job(services.pipeline, rules, trace, openai_form.asked(form, limits))

        return await answer(request, services, limits, read)


def _add_models(router: APIRouter, services: Services, created_s: int) -> None:
    def described() -> dict[str, Any]:
        name = ready_model(services.state).name
        return {"id": name, "object": "model", "created": created_s, "owned_by": "sensevoice"}

    @router.get(
        "/models",
        summary="List the models",
        response_model=ModelList,
        responses={200: {"description": "A list of one."}, **MODEL_ERRORS},
    )
    async def list_models() -> Response:
        """The model that is served."""
        return JSONResponse({"object": "list", "data": [described()]})

    # A hub's id has a slash in it.
    @router.get(
        "/models/{model:path}",
        summary="Tell of a model",
        response_model=OpenAiModel,
        responses={200: {"description": "The model that is served."}, **MODEL_ERRORS},
    )
    async def retrieve_model(
        model: Annotated[str, Path(description="Its name.", examples=[ALIAS])],
    ) -> Response:
        """By its own name, or as `whisper-1`."""
        found = described()
        if model not in (found["id"], ALIAS):
            message = f"there is no model {model!r}; the one served is {found['id']!r}"
            raise ModelNotFound(message, param="model")
        return JSONResponse(found)


@dataclass(frozen=True)
class _Job:
    pipeline: Pipeline
    rules: SubtitleRules
    trace: RequestTrace
    asked: openai_form.Asked

    @property
    def names(self) -> tuple[str, ...]:
        return (self.asked.upload.name,)

    @property
    def is_stream(self) -> bool:
        return self.asked.is_stream

    @property
    def dialect(self) -> Dialect:
        return Dialect(_progress_events, _error_events)

    async def answer(self) -> Response:
        """Raises ``ServiceError``."""
        transcript = await self._transcript()
        return await rendered(partial(self._response, transcript), transcript.duration_s)

    async def stream(self, report: OnFileProgress) -> list[Event]:
        return [openai_bodies.done_event(await self._transcript(report))]

    async def _transcript(self, report: OnFileProgress | None = None) -> Transcript:
        asked = self.asked
        (result,) = await transcribe_files(
            self.pipeline, [asked.upload], asked.options, self.trace, report
        )
        if not isinstance(result, ServiceError):
            return result.transcript
        param = "file" if result.status < 500 else None
        raise type(result)(result.message, param=param, retry_after_s=result.retry_after_s)

    def _response(self, transcript: Transcript) -> Response:
        form = self.asked.form
        if form == "json":
            return JSONResponse(openai_bodies.json_body(transcript))
        if form == "verbose_json":
            body = openai_bodies.verbose_body(transcript, self.asked.granularities)
            return JSONResponse(body)
        text = plain_body(transcript, form, self.rules)
        return Response(text, headers={"content-type": MEDIA_TYPES[form]})


def _progress_events(_index: int, progress: Progress) -> Iterable[Event]:
    return openai_bodies.delta_events(progress)


def _error_events(error: ServiceError) -> Iterable[Event]:
    body = openai_error_body(error.status, error.code, error.message, error.param)
    return [Event.of({"type": "error", **body})]
