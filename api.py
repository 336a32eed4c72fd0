"""Puts the parts together: ``create_app`` builds the application, ``python api.py`` serves it."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from config import ConfigError, Settings, load_settings
from sensevoice_service import audio
from sensevoice_service.admission import Admission
from sensevoice_service.audio import AudioLimits
from sensevoice_service.batcher import Batcher, BatchLimits
from sensevoice_service.chunker import ChunkPolicy
from sensevoice_service.cores import usable_cores
from sensevoice_service.isolation import DecoderLimits, DecoderProcesses
from sensevoice_service.logs import configure_logging
from sensevoice_service.memory import MemoryGauge, give_back, keep_all
from sensevoice_service.metrics import Metrics, Sources
from sensevoice_service.model_store import ModelFolder, resolve_model
from sensevoice_service.native_library import compile_ahead
from sensevoice_service.pipeline import Decode, Pipeline, PipelinePolicy
from sensevoice_service.plain_wav import reading_plain_wavs
from sensevoice_service.routes.app import build_app
from sensevoice_service.routes.connection import connection_with, let_in
from sensevoice_service.routes.lull import Lull
from sensevoice_service.routes.server import Grace, Server
from sensevoice_service.routes.services import Services
from sensevoice_service.service import LoadedModel, Service
from sensevoice_service.status import ModelInfo

ROOT = Path(__file__).parent
EXIT_NO_ADDRESS, EXIT_USAGE, EXIT_NO_MODEL = 1, 2, 3
# A batch this large keeps a device busy; a larger one only makes the next in line wait longer. On a
# CPU it is about one chunk of a large file a core.
CPU_BATCH_FRAMES, GPU_BATCH_FRAMES = 256, 8_192
# With the load of the demo, a start without a hub stays within 10 s.
HUB_TIMEOUT_S = 5.0
# The event loop waits for this long, after each call of the system, for a thread that decodes: with
# Python's own 5 ms a service that turns hundreds away a second has no time for those it let in.
THREAD_SWITCH_S = 0.0005
# How often it is asked whether nobody is in, so that memory can be given back.
TIDY_S = 5.0
DESCRIPTORS = 65_536
# For idle inference threads to end; one inside of a model is left behind.
STOP_S = 1.0

_log = logging.getLogger("sensevoice_service.api")


Load = Callable[[Settings, Executor, threading.Event], LoadedModel]


@dataclass(frozen=True)
class Parts:
    """The application, and of its parts those that a server must stop."""

    app: FastAPI
    service: Service
    admission: Admission


def create_app(settings: Settings, on_failure: Callable[[], None] = lambda: None) -> FastAPI:
    """The application; ``on_failure`` is called from a thread if its model cannot be loaded."""
    return assemble(settings, on_failure, load_model).app


def assemble(settings: Settings, on_failure: Callable[[], None], load: Load) -> Parts:
    """All parts for these settings: the application's lifespan starts and stops them.

    ``load`` blocks and has a thread of its own, from which ``on_failure`` is called.
    """
    pool = ThreadPoolExecutor(decode_threads(settings), thread_name_prefix="decode")
    memory = MemoryGauge()

    def load_and_keep(stop: threading.Event) -> LoadedModel:
        loaded = load(settings, pool, stop)
        keep_all()
        return loaded

    service = Service(load_and_keep, on_failure)
    admission = Admission(
        limit=settings.MAX_CONCURRENT_REQUESTS,
        max_waiting=settings.MAX_WAITING_REQUESTS,
        queue_timeout_s=settings.QUEUE_TIMEOUT_SEC,
        memory_percent=memory.percent,
        memory_limit_percent=settings.MEMORY_LIMIT_PERCENT,
        request_timeout_s=settings.REQUEST_TIMEOUT_SEC,
    )
    metrics = Metrics(CollectorRegistry(), Sources(service, admission.stats, memory.reading))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.start()
        tidying = asyncio.create_task(admission.tidy_when_idle(give_back, TIDY_S))
        yield
        tidying.cancel()
        # The server has waited for the work in hand, or given it up.
        await asyncio.to_thread(service.stop, STOP_S)
        pool.shutdown(wait=False, cancel_futures=True)

    services = Services(service, service, admission, memory.reading, metrics)
    return Parts(build_app(services, settings, lifespan), service, admission)


def load_model(settings: Settings, pool: Executor, stop: threading.Event) -> LoadedModel:
    """Find, load and warm the model; raises ``ModelError``. Blocks, so it has its own thread."""
    folder = resolve_model(
        settings.MODEL,
        settings.HUB,
        root=ROOT,
        report=_report,
        hub_timeout_s=HUB_TIMEOUT_S,
        stop=stop,
    )
    if settings.DEVICE in ("auto", "cpu"):
        pool.submit(compile_ahead, settings.QUANTIZE)
    # torch takes seconds to import: /health answers meanwhile, and a compiler can be done.
    from sensevoice_service.engine import warm_up_shapes
    from sensevoice_service.loading import EngineOptions, open_model

    opened = open_model(
        folder,
        EngineOptions(
            device=settings.DEVICE,
            quantize=settings.QUANTIZE,
            n_workers=settings.MODEL_WORKERS,
            intra_op_threads=settings.INTRA_OP_THREADS,
        ),
    )
    limits = batch_limits(settings, opened.engine.device.type)
    longest_s = settings.LARGE_FILE_DURATION_SEC
    opened.warm_up(warm_up_shapes(limits.max_items, limits.max_padded_frames, longest_s))
    info = describe(folder, opened.engines)
    _log.info("serving %s on %s in %s", info.name, info.device, info.precision)
    batcher = Batcher(opened.workers, limits)
    decode, close = start_decoding(settings)
    policy = pipeline_policy(settings, len(opened.workers))
    return LoadedModel(
        info=info,
        batcher=batcher,
        pipeline=Pipeline(batcher, pool, opened.vocabulary, policy, decode),
        gpu_memory=opened.gpu_memory,
        close=close,
    )


def start_decoding(settings: Settings) -> tuple[Decode, Callable[[], None]]:
    """How uploads are decoded, and what ends it."""
    if settings.DECODE_ISOLATION == "thread":
        return reading_plain_wavs(audio.decode), lambda: None
    limits = DecoderLimits(
        memory_bytes=settings.DECODE_MEMORY_MB * 2**20,
        timeout_s=settings.DECODE_TIMEOUT_SEC,
        max_idle=decode_threads(settings),
    )
    decoders = DecoderProcesses(limits)
    decoders.start()
    return reading_plain_wavs(decoders.decode), decoders.stop


def decode_threads(settings: Settings) -> int:
    return settings.DECODE_THREADS or usable_cores() + 1


def describe(folder: ModelFolder, engines: Sequence[Any]) -> ModelInfo:
    """Of the engines of all devices: they differ in precision only where the GPUs do."""
    return ModelInfo(
        name=folder.name,
        is_demo=folder.is_demo,
        device=",".join(str(engine.device) for engine in engines),
        precision=",".join(dict.fromkeys(engine.precision for engine in engines)),
        source=str(folder.path),
        parameters=engines[0].n_parameters,
    )


def batch_limits(settings: Settings, device_type: str) -> BatchLimits:
    default_frames = CPU_BATCH_FRAMES if device_type == "cpu" else GPU_BATCH_FRAMES
    return BatchLimits(
        max_items=settings.BATCH_SIZE,
        max_padded_frames=settings.BATCH_FRAMES or default_frames,
        max_wait_s=settings.BATCH_WAIT_MS / 1_000,
    )


def pipeline_policy(settings: Settings, n_workers: int = 1) -> PipelinePolicy:
    return PipelinePolicy(
        audio=AudioLimits(max_audio_s=settings.MAX_AUDIO_SEC),
        chunks=ChunkPolicy(
            whole_s=settings.LARGE_FILE_DURATION_SEC,
            chunk_s=settings.LARGE_FILE_CHUNK_SIZE_SEC,
            n_lanes=n_workers,
        ),
        large_file_bytes=int(settings.LARGE_FILE_SIZE_MB * 2**20),
        max_chunks_in_flight=settings.CHUNKS_IN_FLIGHT,
    )


def _report(message: str) -> None:
    level = logging.WARNING if message.startswith("WARNING") else logging.INFO
    _log.log(level, "%s", message.removeprefix("WARNING: "))


def serve(settings: Settings, load: Load = load_model) -> int:
    """Serve until a signal; returns the exit status, as ``main`` does."""
    configure_logging(settings.LOG_LEVEL, settings.LOG_FORMAT)
    sys.setswitchinterval(THREAD_SWITCH_S)
    allow_descriptors()
    failed = threading.Event()
    server: Server

    def give_up() -> None:
        failed.set()
        server.should_exit = True

    parts = assemble(settings, give_up, load)
    config = uvicorn.Config(
        parts.app,
        host=settings.HOST,
        port=settings.PORT,
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_certfile=settings.TLS_CERTFILE or None,
        ssl_keyfile=settings.TLS_KEYFILE or None,
        http=connection_with(
            settings.HEADER_TIMEOUT,
            parts.app.state.door or let_in,
            Lull(parts.service.cpu_backlog_s).after_refusal,
        ),
        loop="uvloop",
    )
    grace = Grace(drain_s=settings.DRAIN_SEC, work_s=settings.SHUTDOWN_TIMEOUT_SEC)
    server = Server(config, parts.service, parts.admission, grace)
    try:
        server.run()
    except SystemExit:  # with uvicorn's own status, a 3
        return EXIT_NO_ADDRESS
    return EXIT_NO_MODEL if failed.is_set() else 0


def allow_descriptors() -> None:
    """As many as may be: each connection is one, and shells allow 1,024 unless they are asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def main() -> int:
    """Exit status: 0, 1 where the address cannot be had, 2 for a wrong setting, 3 for no model.

    Once it has served it ends the process instead of returning.
    """
    try:
        settings = load_settings()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    return end_process(serve(settings))


def end_process(status: int) -> NoReturn:
    """Without the interpreter's own end: it aborts if a thread is still inside of torch."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
