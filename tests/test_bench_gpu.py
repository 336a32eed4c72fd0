from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
import torch

from bench import gpu, gpu_http
from bench.make_model import N_PARAMETERS
from sensevoice_service.encoder import SenseVoice
from sensevoice_service.engine import Engine
from sensevoice_service.types import Chunk, Hypothesis

ROOT = Path(__file__).resolve().parents[1]


def test_a_machine_without_a_gpu_is_told_so_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    assert capsys.readouterr().out == "this machine has no usable GPU: nothing was measured\n"


def test_through_http_nothing_is_measured_where_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu_http.main([])
    assert capsys.readouterr().out == "this machine has no usable GPU: nothing was measured\n"


def test_through_http_a_cpu_tries_the_script_and_is_held_to_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    size = ["--clients", "2", "--processes", "1", "--requests", "4"]
    gpu_http.main([*size, "--set", "DEVICE=cpu"])
    told = capsys.readouterr().out
    assert "4 clips of 10 s from 2 clients: RTFx" in told
    assert "met:" not in told
    assert "MISSED" not in told


def test_all_but_the_model_is_measured_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--clients", "2", "--processes", "1", "--requests", "4"]
    gpu_http.main([*size, "--without-model"])
    told = capsys.readouterr().out
    assert "fake, 0.0 M parameters" in told
    assert "4 clips of 10 s from 2 clients: RTFx" in told


def test_a_tiny_run_measures_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LEAST_RUN_S", 0.0)
    path = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--tiny", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert [(one["engine"], one["what"]) for one in found["model"]] == [
        (engine, f"{rows} x 0.5 s")
        for engine in ("kernels", "graphs", "unfused")
        for rows in (1, 2)
    ]
    assert [one["what"] for one in found["pcm"]] == 3 * [
        "2 x 0.5 s, float32",
        "2 x 0.5 s, int16",
        "2 x 0.5 s, int16, two threads",
        "1 x 0.5 s at a time",
    ]
    for one in found["model"] + found["pcm"]:
        assert one["rtfx"] > 0
    against_fp32, padded, by_graph, features = found["numerics"]
    assert 0 < against_fp32["logit_error"] < 0.05
    assert against_fp32["equal_ids"] > 0.5
    assert padded["equal_ids"] > 0.9
    assert by_graph["equal_ids"] == 1
    assert features["logit_error"] == 0


def test_a_compiled_network_is_measured_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "LEAST_RUN_S", 0.0)
    path = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--tiny", "--compile", "aot_eager", "--json", str(path)]
    assert gpu.main(arguments) == 0
    models = json.loads(path.read_text())["model"]
    assert [one["what"] for one in models if one["engine"] == "aot_eager"] == [
        "1 x 0.5 s",
        "2 x 0.5 s",
    ]


class ThreadCounter:
    """An engine that notes how many threads torch has in whichever calls it."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.counted: set[tuple[bool, int]] = set()

    def __call__(self, chunks: Sequence[Chunk]) -> list[Hypothesis]:
        is_first = threading.current_thread() is threading.main_thread()
        self.counted.add((is_first, torch.get_num_threads()))
        return []


def test_nothing_is_compiled_anew_by_two_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "LEAST_RUN_S", 0.0)
    engine, before = ThreadCounter(), torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1) as another:
            another.submit(torch.set_num_threads, before + 1).result()
        list(gpu.measure_pcm("counter", cast("Engine", engine), gpu.TINY))
    finally:
        torch.set_num_threads(before)
    assert engine.counted == {(True, before), (False, before)}


def test_a_compiler_that_is_not_installed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--tiny", "--compile", "tensorrt"])
    assert "tensorrt is not installed" in capsys.readouterr().err


def test_it_needs_torch_and_numpy_alone() -> None:
    others = ("yaml", "funasr", "pydantic", "fastapi", "sentencepiece", "onnxruntime", "psutil")
    code = f"import sys, bench.gpu; print(sorted({{*{others}}} & sys.modules.keys()))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.stdout == "[]\n", result.stderr


def test_operations_are_about_twice_the_parameters_for_each_frame() -> None:
    with torch.device("meta"):
        model = SenseVoice(gpu.FULL.config)
    assert sum(parameter.numel() for parameter in model.parameters()) == N_PARAMETERS
    assert gpu.operations(model, 1, 1) == pytest.approx(2 * N_PARAMETERS, rel=0.01)
    attention = gpu.operations(model, 3, 1_000) - 3_000 * gpu.operations(model, 1, 1)
    assert attention == pytest.approx(3 * 4 * 512 * 70 * 1_000**2, rel=0.01)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("another", None),
    ],
)
def test_peaks_are_found_by_name(name: str, tflops: float | None) -> None:
    assert gpu.peak_tflops(name) == tflops
