"""What the machine is made of, as far as it matters for speed."""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from sensevoice_service.cores import usable_cores

CPUINFO = Path("/proc/cpuinfo")
# By the names of Linux: x86 first, then ARM. int8 wants VNNI or its kin, bf16 wants bf16.
FEATURES = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "bf16", "sve"),
)
_GPU_QUERY = {
    "index": "index",
    "name": "name",
    "driver": "driver_version",
    "memory_mib": "memory.total",
    "memory_used_mib": "memory.used",
    "sm_clock_mhz": "clocks.sm",
    "max_sm_clock_mhz": "clocks.max.sm",
    "power_draw_w": "power.draw",
    "power_limit_w": "power.limit",
    "default_power_limit_w": "power.default_limit",
}
_QUERY_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Cpu:
    """``usable`` are the threads of ``threads`` that this process may run on."""

    name: str
    cores: int
    threads: int
    usable: int
    features: tuple[str, ...]


@dataclass(frozen=True)
class Gpu:
    """As nvidia-smi tells it; None is what it does not tell, inside some containers for one."""

    index: int
    name: str
    driver: str
    memory_mib: float | None
    memory_used_mib: float | None
    sm_clock_mhz: float | None
    max_sm_clock_mhz: float | None
    power_draw_w: float | None
    power_limit_w: float | None
    default_power_limit_w: float | None

    @property
    def is_held_back(self) -> bool:
        """Whether its power limit is below what the card is made for."""
        limit_w, default_w = self.power_limit_w, self.default_power_limit_w
        return limit_w is not None and default_w is not None and limit_w < default_w


def read_cpu(cpuinfo: Path = CPUINFO) -> Cpu:
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    facts: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    n_threads = os.cpu_count() or 1
    return Cpu(
        name=facts.get("model name", "unknown"),
        cores=psutil.cpu_count(logical=False) or n_threads,
        threads=n_threads,
        usable=usable_cores(),
        features=tuple(name for name in FEATURES if name in flags),
    )


def read_gpus(program: str = "nvidia-smi") -> list[Gpu]:
    """Nothing where there is no such program, or it finds no driver."""
    query = ",".join(_GPU_QUERY.values())
    command = [program, f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(
            command, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = csv.reader(told.splitlines(), skipinitialspace=True)
    return [_gpu(row) for row in rows if len(row) == len(_GPU_QUERY)]


def _gpu(row: Sequence[str]) -> Gpu:
    index, name, driver, *numbers = row
    return Gpu(int(index), name, driver, *map(_number, numbers))


def _number(text: str) -> float | None:
    """None for ``[N/A]``, ``[Not Supported]`` and the like."""
    try:
        return float(text)
    except ValueError:
        return None
