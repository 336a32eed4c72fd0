"""From a folder to an engine."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sensevoice_service import loading
from sensevoice_service.loading import (
    CHECK_UTTERANCE,
    EngineOptions,
    check_chunk,
    open_model,
    share_cores,
)
from sensevoice_service.onnx_engine import Threads
from sensevoice_service.onnx_graph import Int8
from sensevoice_service.types import DecodeOptions, ModelError
from tests.models import Model

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


def test_where_the_cpu_gets_int8_wrong_auto_serves_fp32_and_says_so(
    demo: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading, "choose_int8", lambda: Int8(limit=1))
    with caplog.at_level(logging.WARNING):
        opened = open_model(demo.folder, EngineOptions("cpu", "auto"))
    assert opened.engine.precision == "fp32"
    assert "does not agree with fp32" in caplog.text
    assert "serving in fp32" in caplog.text


def test_where_the_cpu_gets_int8_wrong_int8_is_refused(
    demo: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "choose_int8", lambda: Int8(limit=1))
    with pytest.raises(ModelError, match="set QUANTIZE=off"):
        open_model(demo.folder, EngineOptions("cpu", "int8"))


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


def test_features_are_made_on_a_workers_share_of_the_cores(
    demo: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3}, raising=False)
    options = EngineOptions("cpu", "off", n_workers=2)
    with ThreadPoolExecutor(1) as loader, ThreadPoolExecutor(1) as worker:
        loader.submit(open_model, demo.folder, options).result()
        assert worker.submit(torch.get_num_threads).result() == 2
