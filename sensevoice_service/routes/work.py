"""What every route does that transcribes: hold a slot, read the form, have its files recognised."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from sensevoice_service.admission import Admission, Place
from sensevoice_service.routes import forms
from sensevoice_service.routes.client import Client
from sensevoice_service.routes.errors import unforeseen
from sensevoice_service.routes.forms import FormLimits
from sensevoice_service.routes.services import OnProgress, Pipeline, Services
from sensevoice_service.routes.streaming import Dialect, Event, OnFileProgress, start_stream
from sensevoice_service.routes.trace import RequestTrace, trace_of
from sensevoice_service.types import DecodeOptions, EmptyFile, ServiceError, Upload

if TYPE_CHECKING:
    from sensevoice_service.pipeline import PipelineResult

# The body of less audio is made in less time than another thread takes to start with it.
INLINE_AUDIO_S = 60.0


T = TypeVar("T")


class Job(Protocol):
    """A request that has been let in and read, with all that it takes to answer it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of its files."""

    @property
    def is_stream(self) -> bool: ...

    @property
    def dialect(self) -> Dialect: ...

    async def answer(self) -> Response:
        """Raises ``ServiceError``."""

    async def stream(self, report: OnFileProgress) -> list[Event]:
        """As ``streaming.Work``."""


async def answer(
    request: Request,
    services: Services,
    limits: FormLimits,
    read: Callable[[FormData, RequestTrace], Job],
) -> Response:
    """Let a request in, receive its form, and answer what ``read`` makes of that.

    Nothing of the body is received before there is a slot. Slot and form are held until the work
    has ended: that of a stream goes on behind this call, and gives them up by itself. Raises what
    ``read`` raises, ``ServiceError`` and ``ClientGone``.
    """
    forms.require_multipart(request.headers)
    trace = trace_of(request.scope)
    client = Client(request.scope, request.receive)
    async with AsyncExitStack() as held:
        place = await held.enter_async_context(slot(services.admission, client, trace))
        form = await place.within(forms.read_form(request.headers, client, limits))
        held.push_async_callback(form.close)
        job = read(form, trace)
        trace.names = job.names
        if not job.is_stream:
            return await client.unless_gone(place.within(job.answer()))

        def stream(report: OnFileProgress) -> Coroutine[Any, Any, list[Event]]:
            return place.within(job.stream(report))

        return await start_stream(stream, job.dialect, client, trace, held.pop_all())


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
    at_once: int = 1,
) -> list[PipelineResult | ServiceError]:
    """``at_once`` of the files side by side; what one of them raises is its own result.

    When cancelled, ends once none of them is read any more.
    """
    began_s = time.perf_counter()
    places = asyncio.Semaphore(at_once)

    async def transcribe(index: int, file: Upload) -> PipelineResult | ServiceError:
        report = None if on_progress is None else partial(on_progress, index)
        async with places:
            return await _transcribe_file(pipeline, file, options, trace.request_id, report)

    work = [transcribe(index, file) for index, file in enumerate(files)]
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
    except Exception as error:
        # The other files of the request are not to blame: their texts are still answered.
        return unforeseen(error, request_id)


async def rendered(render: Callable[[], T], audio_s: float) -> T:
    """The body of an answer, made in a thread where it would keep the event loop for long."""
    return render() if audio_s <= INLINE_AUDIO_S else await asyncio.to_thread(render)
