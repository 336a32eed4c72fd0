"""``POST /transcribe``: audio files in, their texts out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import APIRouter
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sensevoice_service.admission import Admission
from sensevoice_service.formats import FileOutcome, transcription_body
from sensevoice_service.logs import FIELDS
from sensevoice_service.routes import forms
from sensevoice_service.routes.client import Client
from sensevoice_service.routes.forms import FormLimits
from sensevoice_service.routes.schemas import ERRORS, TranscribeAnswer, TranscribeForm
from sensevoice_service.routes.services import Pipeline, Services, ready_model
from sensevoice_service.routes.trace import RequestTrace, trace_of
from sensevoice_service.status import ModelInfo
from sensevoice_service.types import DecodeOptions, EmptyFile, Overloaded, ServiceError, Upload

if TYPE_CHECKING:
    from sensevoice_service.pipeline import PipelineResult

_log = logging.getLogger("sensevoice_service.routes")


def make_router(services: Services, limits: FormLimits) -> APIRouter:
    router = APIRouter(tags=["transcription"])
    described = {"schema": TranscribeForm.model_json_schema()}

    @router.post(
        "/transcribe",
        summary="Transcribe audio files",
        response_model=TranscribeAnswer,
        responses=ERRORS,
        openapi_extra={
            "requestBody": {"required": True, "content": {"multipart/form-data": described}}
        },
    )
    async def transcribe(request: Request) -> Response:
        """Send one or more files; each is transcribed on its own.

        A file that fails leaves an empty text and its `error` among the `details`. Only where all
        files fail is the answer an error, with the status of the first.
        """
        # The form is no parameter of this function, since it would then be received before any
        # of this is asked.
        model = ready_model(services.state)
        forms.require_multipart(request.headers)
        trace = trace_of(request.scope)
        client = Client(request.scope, request.receive)
        async with slot(services.admission, client, trace):
            form = await forms.read_form(request.headers, client, limits)
            try:
                work = _answer(services.pipeline, model, form, limits, trace)
                return await client.unless_gone(work)
            finally:
                await form.close()

    return router


@asynccontextmanager
async def slot(admission: Admission, client: Client, trace: RequestTrace) -> AsyncIterator[None]:
    """Hold a slot for the length of the block; note the wait for it, or for want of what.

    Raises ``Overloaded`` and ``ClientGone``.
    """
    came_s = time.perf_counter()
    try:
        place = admission.enter()
    except Overloaded:
        stats = admission.stats()
        is_full = stats.active >= stats.limit and stats.waiting >= stats.max_waiting
        trace.shed = "full" if is_full else "memory"
        raise
    with place:
        try:
            await client.unless_gone(place.granted())
        except Overloaded:
            trace.shed = "timeout"
            raise
        finally:
            trace.wait_s = time.perf_counter() - came_s
        yield


async def _answer(
    pipeline: Pipeline, model: ModelInfo, form: FormData, limits: FormLimits, trace: RequestTrace
) -> Response:
    began_s = time.perf_counter()
    files = forms.uploads(form, limits)
    keys = forms.keys(form, files)
    options = forms.decode_options(form)
    trace.names = tuple(file.name for file in files)
    results = await transcribe_files(pipeline, files, options, trace)
    if all(isinstance(result, ServiceError) for result in results):
        raise _common_error(results)
    outcomes = [
        FileOutcome(key, result if isinstance(result, ServiceError) else result.transcript)
        for key, result in zip(keys, results, strict=True)
    ]
    return JSONResponse(transcription_body(outcomes, model, time.perf_counter() - began_s))


async def transcribe_files(
    pipeline: Pipeline, files: Sequence[Upload], options: DecodeOptions, trace: RequestTrace
) -> list[PipelineResult | ServiceError]:
    """All files at once; what one of them raises is its own result. Cancels all or none."""
    began_s = time.perf_counter()
    work = (_transcribe_file(pipeline, file, options, trace.request_id) for file in files)
    results = await asyncio.gather(*work)
    trace.process_s = time.perf_counter() - began_s
    if done := [result for result in results if not isinstance(result, ServiceError)]:
        _note(done, trace)
    if len(done) < len(results):
        trace.outcome = "partial"
    return list(results)


def _note(done: Sequence[PipelineResult], trace: RequestTrace) -> None:
    trace.audio_s = sum(result.transcript.duration_s for result in done)
    # The files wait side by side, but each takes its own time of the processors and the device.
    trace.queue_s = max(result.timings.queue_s for result in done)
    trace.decode_s = sum(result.timings.decode_s for result in done)
    trace.infer_s = sum(result.timings.infer_s for result in done)


async def _transcribe_file(
    pipeline: Pipeline, file: Upload, options: DecodeOptions, request_id: str
) -> PipelineResult | ServiceError:
    try:
        if file.size_bytes == 0:
            raise EmptyFile("the file is empty", param="files")
        return await pipeline.transcribe(file, options)
    except ServiceError as error:
        return error
    except Exception:
        # The other files of the request are not to blame: their texts are still answered.
        _log.exception("unexpected error", extra={FIELDS: {"id": request_id}})
        return ServiceError("an unexpected error occurred; its request_id is in the log")


def _common_error(results: Sequence[object]) -> ServiceError:
    """The error of a request whose files all failed: the first one's, and the number of them."""
    first = results[0]
    assert isinstance(first, ServiceError)
    if len(results) == 1:
        return first
    message = f"all {len(results)} files failed; the first: {first.message}"
    return type(first)(message, param=first.param, retry_after_s=first.retry_after_s)
