"""What the figures were taken on: the machine, the packages, the project's own state."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from bench.peers.process import ROOT

PACKAGES = (
    "torch",
    "torchaudio",
    "numpy",
    "funasr",
    "onnxruntime",
    "onnx",
    "sherpa-onnx",
    "fastapi",
    "starlette",
    "uvicorn",
    "av",
    "soundfile",
    "httpx",
)
XINFERENCE_PACKAGES = ("xinference", "xoscar", "torch", "funasr", "fastapi", "uvicorn")
# What decides how fast int8 and bf16 are.
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")

# Runs in another interpreter, so it prints what ``package_versions`` returns in this one.
_VERSIONS_CODE = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def n_cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> dict[str, Any]:
    model, flags = _cpu()
    return {
        "cpu": model,
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "cores": n_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Of those that are installed, and of Python."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def package_versions_of(python: Path) -> dict[str, str]:
    """The same of another interpreter's Xinference; empty where it does not run."""
    command = [str(python), "-c", _VERSIONS_CODE, *XINFERENCE_PACKAGES]
    found: dict[str, str] = json.loads(_output(command) or "{}")
    return found


def revision() -> str:
    """The commit, with a mark where files differ from it; empty without git."""
    return _output(["git", "describe", "--always", "--dirty"])


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu() -> tuple[str, set[str]]:
    fields: dict[str, str] = {}
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    model = fields.get("model name") or platform.processor() or platform.machine()
    return model, set(fields.get("flags", "").split())
