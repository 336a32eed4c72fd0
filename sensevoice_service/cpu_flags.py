"""What Linux says that this CPU can do."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Any of them sums products of bytes in 32 bits, in one instruction.
BYTE_PRODUCTS = frozenset(("avx512_vnni", "avx_vnni", "amx_int8"))


def read_cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Every word of it, the names of features among them; empty where there is none."""
    return frozenset(cpuinfo.read_text().split() if cpuinfo.exists() else ())


def lacks_byte_products(flags: frozenset[str]) -> bool:
    """Whether this is an x86 with vectors, but without an instruction for int8."""
    return "avx2" in flags and not flags & BYTE_PRODUCTS
