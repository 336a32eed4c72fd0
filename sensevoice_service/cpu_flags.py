"""What Linux says that this CPU can do."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def read_cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Every word of it, the names of features among them; empty where there is none."""
    return frozenset(cpuinfo.read_text().split() if cpuinfo.exists() else ())
