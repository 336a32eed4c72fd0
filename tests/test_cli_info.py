from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from config import Settings, load_settings
from sensevoice_service.cli import info, machine
from sensevoice_service.cli.command import main
from sensevoice_service.cli.info import (
    as_text,
    cpu_warnings,
    gather,
    gpu_warnings,
    native_warnings,
)
from sensevoice_service.cli.machine import Cpu, Gpu, read_cpu, read_gpus
from sensevoice_service.native_library import AMX, AVX2, VNNI, Target

ROOT = Path(__file__).resolve().parents[1]
CPU = Cpu("a cpu", 4, 8, 8, ("avx2", "avx512_vnni"))
GPU = Gpu(0, "NVIDIA A10", "580.1", 23028.0, 4.0, 1695.0, 1695.0, 60.5, 150.0, 150.0)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in Settings.model_fields:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODEL", "demo")
    return load_settings()


@pytest.fixture
def found(settings: Settings) -> dict[str, Any]:
    return gather(settings)


def nvidia_smi(folder: Path, body: str) -> str:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    return str(program)


def test_the_model_device_and_versions_are_told(found: dict[str, Any]) -> None:
    assert (found["model"]["name"], found["model"]["demo"]) == ("demo", True)
    assert Path(found["model"]["path"]) == ROOT / "sensevoice_service" / "demo_model"
    assert found["device"]["name"]
    assert found["device"]["precision"] in ("int8", "bf16", "fp32")
    assert found["python"] == platform.python_version()
    assert all(found["packages"][name] for name in ("torch", "onnxruntime", "funasr"))
    assert 0 < found["memory"]["used_bytes"] < found["memory"]["total_bytes"]


def test_it_is_printed_for_people_and_for_programs(
    found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == found.keys()
    assert printed["model"] == found["model"]
    assert main(["info"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["model"].startswith("demo (")
    assert lines["torch"] == found["packages"]["torch"]


def test_a_model_or_device_that_is_not_there_is_a_warning(
    settings: Settings, tmp_path: Path
) -> None:
    changed = {"MODEL": str(tmp_path), "DEVICE": "cuda:99"}
    found = gather(settings.model_copy(update=changed))
    assert found["model"]["name"] is None
    assert found["device"] == {"name": None, "precision": None}
    model, device = found["warnings"][:2]
    assert str(tmp_path) in model
    assert "DEVICE=cuda:99" in device
    assert "WARNING" in as_text(found)


def test_nothing_is_downloaded(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MODELSCOPE_CACHE", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    found = gather(settings.model_copy(update={"MODEL": "someone/model"}))
    assert found["model"]["name"] is None
    assert found["warnings"][0] == (
        "someone/model is not on this machine: a start tries to download it from ModelScope"
    )
    assert "HF_HUB_OFFLINE" not in os.environ


def test_features_are_those_of_the_first_core(tmp_path: Path) -> None:
    x86 = tmp_path / "x86"
    x86.write_text("model name\t: Fast 9000\nflags\t\t: fpu amx_int8 avx2 x\n\nflags\t: fpu\n")
    arm = tmp_path / "arm"
    arm.write_text("processor\t: 0\nFeatures\t: fp i8mm asimddp\n")
    assert read_cpu(x86).name == "Fast 9000"
    assert read_cpu(x86).features == ("avx2", "amx_int8")
    assert read_cpu(arm).features == ("asimddp", "i8mm")
    assert read_cpu(tmp_path / "none").features == ()
    assert 1 <= read_cpu(arm).usable <= read_cpu(arm).threads


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path) -> None:
    program = nvidia_smi(
        tmp_path,
        "echo '0, NVIDIA A10, 580.1, 23028, 4, 1695, 1695, 60.5, 150.00, 150.00'\n"
        "echo '1, NVIDIA H20, 580.1, 97871, [N/A], 345, 1980, [N/A], [Not Supported], [N/A]'",
    )
    first, second = read_gpus(program)
    assert first == GPU
    assert (second.name, second.memory_used_mib, second.power_limit_w) == ("NVIDIA H20", None, None)
    assert not second.is_held_back


@pytest.mark.parametrize("body", ["exit 9", "echo 'No devices were found'"])
def test_a_machine_without_gpus_has_none(body: str, tmp_path: Path) -> None:
    assert read_gpus(nvidia_smi(tmp_path, body)) == []
    assert read_gpus(str(tmp_path / "not there")) == []


def test_the_query_asks_for_each_field_in_its_order(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    read_gpus(nvidia_smi(tmp_path, f"echo $1 > {asked}"))
    names = asked.read_text().strip().removeprefix("--query-gpu=").split(",")
    assert list(machine._GPU_QUERY) == list(Gpu.__dataclass_fields__)
    assert names == list(machine._GPU_QUERY.values())


def test_a_power_limit_below_the_default_is_warned_of() -> None:
    assert gpu_warnings([GPU]) == []
    [warning] = gpu_warnings([GPU, replace(GPU, index=1, power_limit_w=100.0)])
    assert "GPU 1 is limited to 100 W, below its default of 150 W" in warning


def test_int8_without_vnni_is_warned_of() -> None:
    old = replace(CPU, features=("avx2",))
    assert cpu_warnings(CPU, "int8") == cpu_warnings(old, "fp32") == []
    assert "no VNNI" in cpu_warnings(old, "int8")[0]


@pytest.mark.parametrize(
    ("device", "precision", "target", "has_library", "warning"),
    [
        ("cpu", "int8", AMX, False, "in C for AMX (gcc libc6-dev): int8 runs in onnxruntime"),
        ("cpu", "int8", AVX2, False, "no C compiler for the encoder in C for AVX2"),
        ("cpu", "int8", VNNI, False, "no C compiler for the encoder in C for AVX-512 VNNI"),
        ("cpu", "bf16", AMX.at("bf16"), False, "bf16 runs in torch, more slowly"),
        ("cpu", "fp32", AMX.at("fp32"), False, "fp32 runs in onnxruntime, more slowly"),
        ("cpu", "int8", AMX, True, None),
        ("cpu", "int8", None, False, None),
        ("cuda:0", "bf16", AMX.at("bf16"), False, None),
        (None, None, AMX, False, None),
    ],
)
def test_a_cpu_without_the_c_that_is_for_it_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
    device: str | None,
    precision: str | None,
    target: Target | None,
    has_library: bool,
    warning: str | None,
) -> None:
    monkeypatch.setattr(info, "choose_target", lambda precision: target)
    monkeypatch.setattr(info, "is_at_hand", lambda target: has_library)
    warnings = native_warnings(device, precision)
    assert len(warnings) == (warning is not None)
    assert all(str(warning) in found for found in warnings)


def test_gpus_have_a_line_each(found: dict[str, Any]) -> None:
    found["gpus"] = [vars(GPU), {**vars(GPU), "index": 1, "power_limit_w": None}]
    lines = as_text(found).splitlines()
    first, second = (line for line in lines if line.startswith("gpu "))
    assert first == (
        "gpu 0        NVIDIA A10, driver 580.1, 0 of 22 GiB, 1695 of 1695 MHz,"
        " 60 W of 150 W (default 150 W)"
    )
    assert "60 W of ? W" in second


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from sensevoice_service.cli.command import main\n"
        "try:\n    main(['transcribe', '--help'])\n"
        "except SystemExit:\n    print({'torch', 'fastapi', 'av', 'tqdm'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.stdout.splitlines()[-1] == "set()", result.stderr
