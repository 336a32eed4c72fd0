"""``info``: what would serve here, on what machine, and what stands in the way of its speed."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from config import Settings, load_settings
from sensevoice_service import __version__
from sensevoice_service.cli.machine import Cpu, Gpu, read_cpu, read_gpus
from sensevoice_service.cpu_flags import lacks_byte_products
from sensevoice_service.hub import HUB_NAMES
from sensevoice_service.memory import read_memory
from sensevoice_service.model_store import resolve_model
from sensevoice_service.native_library import choose_target, is_at_hand
from sensevoice_service.types import ModelError

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "onnxruntime", "funasr")
GIB = 2**30
MIB_A_GIB = 2**10

_OFFLINE = "HF_HUB_OFFLINE"


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("info", help="show the model, device, machine and versions")
    command.add_argument("--json", action="store_true", help="for programs")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Raises ``ConfigError``; a model or device that cannot be had is told, and no error."""
    found = gather(load_settings())
    print(json.dumps(found, ensure_ascii=False, indent=2) if options.json else as_text(found))
    return 0


def gather(settings: Settings) -> dict[str, Any]:
    """Tells what is there; ``warnings`` has what is missing and what is slow."""
    cpu, gpus, memory = read_cpu(), read_gpus(), read_memory()
    model, model_warnings = _model(settings)
    device, device_warnings = _device(settings)
    if settings.DEVICE == "auto" and device["name"] == "cpu" and gpus:
        device_warnings.append("there is a GPU, but torch cannot use it: see its driver")
    return {
        "version": __version__,
        "model": model,
        "device": device,
        "cpu": asdict(cpu),
        "memory": {"total_bytes": memory.total_bytes, "used_bytes": memory.used_bytes},
        "gpus": [asdict(gpu) for gpu in gpus],
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "warnings": [
            *model_warnings,
            *device_warnings,
            *cpu_warnings(cpu, device["precision"]),
            *native_warnings(device["name"], device["precision"]),
            *gpu_warnings(gpus),
        ],
    }


def cpu_warnings(cpu: Cpu, precision: str | None) -> list[str]:
    is_slow = precision == "int8" and lacks_byte_products(frozenset(cpu.features))
    return ["this CPU has no VNNI: int8 is slower on it than on newer ones"] if is_slow else []


def native_warnings(device: str | None, precision: str | None) -> list[str]:
    target = choose_target(precision) if device == "cpu" and precision else None
    if target is None or is_at_hand(target):
        return []
    return [
        f"there is no C compiler for the encoder in C for {target.name} (gcc libc6-dev):"
        f" {target.without_it}"
    ]


def gpu_warnings(gpus: Sequence[Gpu]) -> list[str]:
    return [
        f"GPU {gpu.index} is limited to {gpu.power_limit_w:g} W, below its default of"
        f" {gpu.default_power_limit_w:g} W: it is slower than such cards are"
        for gpu in gpus
        if gpu.is_held_back
    ]


def _model(settings: Settings) -> tuple[dict[str, Any], list[str]]:
    """The model that is at hand; where a hub can be reached, a start may have a better one."""
    notes: list[str] = []
    try:
        with _offline():
            folder = resolve_model(settings.MODEL, settings.HUB, root=ROOT, report=notes.append)
    except ModelError as error:
        reason = str(error)
        if _OFFLINE in reason and _OFFLINE not in os.environ:
            reason = (
                f"{settings.MODEL} is not on this machine: a start tries to download it from"
                f" {HUB_NAMES[settings.HUB]}"
            )
        return {"name": None, "source": None, "path": None, "demo": False}, [reason]
    warnings = []
    if settings.MODEL == "auto" and folder.is_demo:
        warnings.append(
            "SenseVoiceSmall is not here: a start tries to download it, and else serves the demo"
            " model, whose transcripts are no measure of SenseVoiceSmall's"
        )
    return {
        "name": folder.name,
        "source": folder.source,
        "path": str(folder.path),
        "demo": folder.is_demo,
    }, warnings


@contextmanager
def _offline() -> Iterator[None]:
    """As the hubs' users do it: nothing is asked of them, and nothing downloaded."""
    before = os.environ.get(_OFFLINE)
    os.environ[_OFFLINE] = "1"
    try:
        yield
    finally:
        os.environ.pop(_OFFLINE)
        if before is not None:
            os.environ[_OFFLINE] = before


def _device(settings: Settings) -> tuple[dict[str, Any], list[str]]:
    from sensevoice_service.engine import choose_device, choose_precision

    try:
        devices = [choose_device(name) for name in settings.DEVICE.split(",")]
        precisions = [choose_precision(settings.QUANTIZE, device) for device in devices]
    except ModelError as error:
        return {"name": None, "precision": None}, [str(error)]
    name, precision = ",".join(map(str, devices)), ",".join(dict.fromkeys(precisions))
    return {"name": name, "precision": precision}, []


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def as_text(found: dict[str, Any]) -> str:
    model, device, cpu, memory = (found[key] for key in ("model", "device", "cpu", "memory"))
    lines = [
        ("version", found["version"]),
        ("model", f"{model['name']} ({model['path']})" if model["name"] else "none"),
        ("device", f"{device['name']}, {device['precision']}" if device["name"] else "none"),
        ("cpu", f"{cpu['name']}: {_cores(cpu)}"),
        ("features", " ".join(cpu["features"]) or "none known"),
        ("memory", f"{memory['used_bytes'] / GIB:.1f} of {memory['total_bytes'] / GIB:.1f} GiB"),
        *((f"gpu {gpu['index']}", _gpu_text(gpu)) for gpu in found["gpus"]),
        ("python", found["python"]),
        *found["packages"].items(),
        *(("WARNING", warning) for warning in found["warnings"]),
    ]
    return "\n".join(f"{name:<12} {value}" for name, value in lines)


def _cores(cpu: dict[str, Any]) -> str:
    return f"{cpu['cores']} cores, {cpu['threads']} threads, {cpu['usable']} usable"


def _gpu_text(gpu: dict[str, Any]) -> str:
    def amount(key: str, share: float = 1.0) -> str:
        return "?" if gpu[key] is None else f"{gpu[key] / share:.0f}"

    return (
        f"{gpu['name']}, driver {gpu['driver']},"
        f" {amount('memory_used_mib', MIB_A_GIB)} of {amount('memory_mib', MIB_A_GIB)} GiB,"
        f" {amount('sm_clock_mhz')} of {amount('max_sm_clock_mhz')} MHz,"
        f" {amount('power_draw_w')} W of {amount('power_limit_w')} W"
        f" (default {amount('default_power_limit_w')} W)"
    )
