"""What every route does that transcribes: hold a slot, have the files recognised, make a body."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sensevoice_service.admission import Admission, Place
from sensevoice_service.logs import FIELDS
from sensevoice_service.routes.client import Client
from sensevoice_service.routes.services import OnProgress, Pipeline
from sensevoice_service.routes.streaming import OnFileProgress
from sensevoice_service.routes.trace import RequestTrace
from sensevoice_service.types import DecodeOptions, EmptyFile, ServiceError, Upload

if TYPE_CHECKING:
    from sensevoice_service.pipeline import PipelineResult

# The body of less audio is made in less time than another thread takes to start with it.
INLINE_AUDIO_S = 60.0

_log = logging.getLogger("sensevoice_service.routes")

T = TypeVar("T")


@asynccontextmanager
async def slot(admission: Admission, client: Client, trace: RequestTrace) -> AsyncIterator[Place]:
    """Hold a slot for the length of the block, and note the wait for it.

    Raises ``Overloaded``, ``ClientGone``, and what ends a ``Place``: all that is done in it is done
    ``within`` it.
    """
    came_s = time.perf_counter()
    with admission.enter() as place:
        try:
            if not place.is_granted:
                await client.unless_gone(place.granted())
        finally:
            trace.wait_s = time.perf_counter() - came_s
        yield place


async def transcribe_files(
    pipeline: Pipeline,
    files: Sequence[Upload],
    options: DecodeOptions,
    trace: RequestTrace,
    on_progress: OnFileProgress | None = None,
) -> list[PipelineResult | ServiceError]:
    """All files at once; what one of them raises is its own result.

    When cancelled, ends once none of them is read any more.
    """
    began_s = time.perf_counter()
    work = [
        _transcribe_file(
            pipeline,
            file,
            options,
            trace.request_id,
            None if on_progress is None else partial(on_progress, index),
        )
        for index, file in enumerate(files)
    ]
    results = await _all(work) if len(work) > 1 else [await work[0]]
    trace.process_s = time.perf_counter() - began_s
    if done := [result for result in results if not isinstance(result, ServiceError)]:
        _note(done, trace)
    if len(done) < len(results):
        trace.outcome = "partial"
    return results


async def _all(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Left to itself, ``gather`` ends with the first that is cancelled, while others go on."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, asyncio.CancelledError):
            raise result
    return cast("list[T]", results)


def _note(done: Sequence[PipelineResult], trace: RequestTrace) -> None:
    trace.audio_s = sum(result.transcript.duration_s for result in done)
    # The files wait side by side, but each takes its own time of the processors and the device.
    trace.queue_s = max(result.timings.queue_s for result in done)
    trace.decode_s = sum(result.timings.decode_s for result in done)
    trace.infer_s = sum(result.timings.infer_s for result in done)


async def _transcribe_file(
    pipeline: Pipeline,
    file: Upload,
    options: DecodeOptions,
    request_id: str,
    on_progress: OnProgress | None,
) -> PipelineResult | ServiceError:
    try:
        if file.size_bytes == 0:
            raise EmptyFile("the file is empty")
        return await pipeline.transcribe(file, options, on_progress)
    except ServiceError as error:
        return error
    except Exception:
        # The other files of the request are not to blame: their texts are still answered.
        _log.exception("unexpected error", extra={FIELDS: {"id": request_id}})
        return ServiceError("an unexpected error occurred; its request_id is in the log")


async def rendered(render: Callable[[], T], audio_s: float) -> T:
    """The body of an answer, made in a thread where it would keep the event loop for long."""
    return render() if audio_s <= INLINE_AUDIO_S else await asyncio.to_thread(render)
