"""From a folder to an engine."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sensevoice_service import loading
from sensevoice_service.batcher import Batcher, Worker
from sensevoice_service.callers import Threads
from sensevoice_service.check_utterance import CHECK_UTTERANCE, check_chunk
from sensevoice_service.loading import (
    EngineOptions,
    OpenModel,
    open_model,
    share_cores,
)
from sensevoice_service.native_library import (
    PLAIN,
    NativeUnavailable,
    Target,
    choose_target,
)
from sensevoice_service.onnx_graph import Int8
from sensevoice_service.steering import AnyEngine
from sensevoice_service.types import Chunk, DecodeOptions, Hypothesis, ModelError
from tests.echo import ONE_BY_ONE, PATIENT_S
from tests.models import Model
from tests.native_fakes import Encoding, Silent

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture(autouse=True)
def restored_threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("quantize", "precision"),
    [("auto", "int8"), ("int8", "int8"), ("off", "fp32"), ("bf16", "bf16")],
)
def test_every_precision_hears_the_sample(demo: Model, quantize: str, precision: str) -> None:
    opened = open_model(demo.folder, EngineOptions("cpu", quantize))
    assert opened.engine.precision == precision
    assert opened.engine.n_parameters == demo.engine.n_parameters
    heard = opened.engine([check_chunk()])[0]
    assert opened.vocabulary.size == demo.vocabulary.size
    assert heard.token_ids.tolist() == demo.engine([check_chunk()])[0].token_ids.tolist()


@pytest.mark.parametrize("quantize", ["auto", "bf16"])
def test_every_engine_can_be_steered(demo: Model, quantize: str) -> None:
    opened = open_model(demo.folder, EngineOptions("cpu", quantize))
    options = DecodeOptions(among=("zh",), hotwords=("hello world",))
    (heard,) = opened.engine([replace(check_chunk(), options=options)])
    assert demo.vocabulary.tags(heard.prompt_ids).language == "zh"
    assert heard.token_ids.tolist() == demo.engine([check_chunk()])[0].token_ids.tolist()


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "choose_target", lambda precision: None)


@pytest.mark.usefixtures("without_native")
def test_where_the_cpu_gets_int8_wrong_auto_serves_fp32_and_says_so(
    demo: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading, "choose_int8", lambda: Int8(limit=1))
    with caplog.at_level(logging.WARNING):
        opened = open_model(demo.folder, EngineOptions("cpu", "auto"))
    assert opened.engine.precision == "fp32"
    assert "does not agree with fp32" in caplog.text
    assert "serving in fp32" in caplog.text


@pytest.mark.usefixtures("without_native")
def test_where_the_cpu_gets_int8_wrong_int8_is_refused(
    demo: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "choose_int8", lambda: Int8(limit=1))
    with pytest.raises(ModelError, match="set QUANTIZE=off"):
        open_model(demo.folder, EngineOptions("cpu", "int8"))


@pytest.mark.usefixtures("without_native")
def test_without_c_for_this_cpu_int8_is_onnxruntimes(
    demo: Model, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        opened = open_model(demo.folder, EngineOptions("cpu", "int8"))
    assert opened.engine.precision == "int8"
    assert "int8 in onnxruntime agrees with fp32" in caplog.text
    heard = opened.engine([check_chunk()])[0]
    assert heard.token_ids.tolist() == demo.engine([check_chunk()])[0].token_ids.tolist()


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain C where there is none for this CPU: the same engine."""
    monkeypatch.setattr(loading, "choose_target", native_target)


def native_target(precision: str) -> Target:
    plain = PLAIN if precision == "int8" else PLAIN.at(precision)
    return choose_target(precision) or plain


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("quantize", "precision"), [("auto", "int8"), ("bf16", "bf16"), ("off", "fp32")]
)
def test_with_c_for_this_cpu_the_engine_is_native(
    demo: Model, caplog: pytest.LogCaptureFixture, quantize: str, precision: str
) -> None:
    with caplog.at_level(logging.INFO):
        opened = open_model(demo.folder, EngineOptions("cpu", quantize))
    assert opened.engine.precision == precision
    name = native_target(precision).name
    assert f"{precision} in C for {name} agrees with fp32" in caplog.text
    heard = opened.engine([check_chunk()])[0]
    assert heard.token_ids.tolist() == demo.engine([check_chunk()])[0].token_ids.tolist()


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("quantize", "says"),
    [
        ("auto", ["int8 runs in onnxruntime", "int8 in onnxruntime agrees with fp32"]),
        ("off", ["fp32 runs in onnxruntime", "fp32 in onnxruntime agrees with fp32"]),
        ("bf16", ["bf16 runs in torch"]),
    ],
)
def test_where_the_native_library_cannot_be_had_another_serves(
    demo: Model,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    quantize: str,
    says: list[str],
) -> None:
    def fail(target: Target) -> None:
        raise NativeUnavailable("there is no C compiler (cc) for the native encoder")

    monkeypatch.setattr(loading, "load_library", fail)
    with caplog.at_level(logging.INFO):
        opened = open_model(demo.folder, EngineOptions("cpu", quantize))
    assert "there is no C compiler (cc)" in caplog.text
    assert all(words in caplog.text for words in says)
    heard = opened.engine([check_chunk()])[0]
    assert heard.token_ids.tolist() == demo.engine([check_chunk()])[0].token_ids.tolist()


@pytest.mark.usefixtures("native")
def test_a_native_library_that_hears_something_else_does_not_serve(
    demo: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Deaf(Silent):
        """Stands for the library: of one utterance it hears nothing."""

        def sensevoice_encode(self, *arguments: Any) -> int:
            call = Encoding(*arguments)
            n_frames = ctypes.cast(call.n_frames, ctypes.POINTER(ctypes.c_int32))[0]
            n_bytes = n_frames * demo.engine.model.config.output_size * 4
            ctypes.memset(call.hidden, 0, n_bytes)
            return 1

    monkeypatch.setattr(loading, "load_library", lambda target: Deaf())
    with caplog.at_level(logging.INFO):
        opened = open_model(demo.folder, EngineOptions("cpu", "auto"))
    assert "does not agree with fp32" in caplog.text
    assert "int8 in onnxruntime agrees with fp32" in caplog.text
    assert opened.engine.precision == "int8"


@pytest.mark.parametrize("name", ["Dockerfile", ".dockerignore"])
def test_an_image_has_the_utterance_that_engines_are_checked_with(name: str) -> None:
    root = Path(__file__).parents[1]
    folder = CHECK_UTTERANCE.relative_to(root).parts[0]
    lines = (root / name).read_text().splitlines()
    assert {"Dockerfile": f"COPY {folder} ./{folder}", ".dockerignore": f"!{folder}"}[name] in lines


@pytest.mark.parametrize(
    ("options", "device", "workers", "threads"),
    [
        (EngineOptions(), CPU, 8, Threads(1, 8)),
        (EngineOptions(n_workers=1), CPU, 1, Threads(8, 8)),
        (EngineOptions(n_workers=3), CPU, 3, Threads(2, 8)),
        (EngineOptions(n_workers=16), CPU, 16, Threads(1, 8)),
        (EngineOptions(n_workers=2, intra_op_threads=3), CPU, 2, Threads(3, 3)),
        (EngineOptions(), GPU, 1, Threads(8, 8)),
    ],
)
def test_workers_share_the_cores(
    monkeypatch: pytest.MonkeyPatch,
    options: EngineOptions,
    device: torch.device,
    workers: int,
    threads: Threads,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    assert share_cores(options, device) == (workers, threads)


def test_several_devices_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    assert share_cores(EngineOptions(), GPU, n_devices=2) == (1, Threads(4, 4))
    assert share_cores(EngineOptions(n_workers=2), GPU, n_devices=4) == (2, Threads(1, 2))


def two_devices(demo: Model) -> OpenModel:
    return open_model(demo.folder, EngineOptions("cpu,cpu", "off", n_workers=1))


def test_each_device_has_an_engine_and_one_batcher_feeds_them_all(demo: Model) -> None:
    opened = two_devices(demo)
    assert len({id(engine) for engine in opened.engines}) == 2
    meeting = threading.Barrier(2, timeout=PATIENT_S)
    used: list[int] = []

    def met(engine: AnyEngine) -> Worker:
        """Goes on once the other device has a batch as well."""

        def call(chunks: Sequence[Chunk]) -> list[Hypothesis]:
            meeting.wait()
            used.append(id(engine))
            return engine(chunks)

        return call

    batcher = Batcher([met(engine) for engine in opened.workers], ONE_BY_ONE)
    batcher.start()
    try:
        heard = [batcher.submit(check_chunk()) for _ in range(2)]
        wanted = demo.engine([check_chunk()])[0].token_ids.tolist()
        for future in heard:
            assert future.result(PATIENT_S).hypothesis.token_ids.tolist() == wanted
    finally:
        batcher.stop(timeout_s=PATIENT_S)
    assert set(used) == {id(engine) for engine in opened.engines}


def test_workers_take_the_devices_by_turns(demo: Model) -> None:
    opened = two_devices(demo)
    first, second = opened.engines
    assert replace(opened, n_workers=2).workers == [first, second, first, second]


def test_gpu_memory_is_told_together_and_of_each_device(
    demo: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = two_devices(demo)
    assert opened.gpu_memory() is None
    for index, engine in enumerate(opened.engines):
        monkeypatch.setattr(engine, "device", torch.device("cuda", index))
        monkeypatch.setattr(
            engine, "gpu_memory", lambda n=index: {"used_bytes": n, "total_bytes": 8}
        )
    assert opened.gpu_memory() == {
        "used_bytes": 1,
        "total_bytes": 16,
        "devices": {
            "cuda:0": {"used_bytes": 0, "total_bytes": 8},
            "cuda:1": {"used_bytes": 1, "total_bytes": 8},
        },
    }


def test_features_are_made_on_a_workers_share_of_the_cores(
    demo: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3}, raising=False)
    options = EngineOptions("cpu", "off", n_workers=2)
    with ThreadPoolExecutor(1) as loader, ThreadPoolExecutor(1) as worker:
        loader.submit(open_model, demo.folder, options).result()
        assert worker.submit(torch.get_num_threads).result() == 2
