"""How much memory is in use, of how much this process may have: its container's, or the host's."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from sensevoice_service.cgroups import CGROUP_ROOT, PROCESS_CGROUPS, groups_of, text_of


@dataclass(frozen=True)
class MemoryReading:
    """``used_bytes`` counts what cannot be dropped at need: the page cache is left out."""

    used_bytes: int
    total_bytes: int
    process_rss_bytes: int

    @property
    def percent(self) -> float:
        return 100.0 * self.used_bytes / self.total_bytes


@dataclass(frozen=True)
class _Files:
    """Where one version of control groups keeps a group's limit, use and reclaimable cache."""

    limit: str
    used: str
    cache_key: str


_FILES = {
    2: _Files("memory.max", "memory.current", "inactive_file"),
    1: _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def read_memory(
    cgroup_root: Path = CGROUP_ROOT, process_cgroups: Path = PROCESS_CGROUPS
) -> MemoryReading:
    """The fullest of the control groups that hold this process, or the host where none has a limit.

    A limit applies to a group and to all groups below it, so each group from the process's own up
    to the root is looked at.
    """
    host = psutil.virtual_memory()
    rss_bytes = int(psutil.Process().memory_info().rss)
    groups = [
        MemoryReading(used_bytes, limit_bytes, rss_bytes)
        for folder, version in groups_of("memory", cgroup_root, process_cgroups)
        for used_bytes, limit_bytes in _usage(folder, _FILES[version])
        if 0 < limit_bytes < host.total
    ]
    whole = MemoryReading(int(host.total - host.available), int(host.total), rss_bytes)
    return max(groups, key=lambda reading: reading.percent, default=whole)


def _usage(folder: Path, files: _Files) -> Iterator[tuple[int, int]]:
    """Used and permitted bytes of one group; nothing where it has no limit or no such files."""
    limit, used = text_of(folder / files.limit).strip(), text_of(folder / files.used).strip()
    if not (limit.isdigit() and used.isdigit()):
        return
    cache_bytes = 0
    for line in text_of(folder / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == files.cache_key and value.strip().isdigit():
            cache_bytes = int(value)
    yield max(0, int(used) - cache_bytes), int(limit)


def give_back() -> None:
    """Return what is free to the system, where the C library would keep it: glibc does.

    It takes some ms and holds up whoever allocates meanwhile: for idle times.
    """
    with suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_all() -> None:
    """Spare the garbage collector what there is now: all of it stays.

    Importing torch alone leaves hundreds of thousands of objects, and while the collector goes
    through them, every so many requests, no thread of Python runs.
    """
    gc.collect()
    gc.freeze()


class MemoryGauge:
    """A reading that is taken anew at most once in ``max_age_s``."""

    def __init__(
        self,
        read: Callable[[], MemoryReading] = read_memory,
        max_age_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._max_age_s = max_age_s
        self._clock = clock
        self._last: tuple[float, MemoryReading] | None = None

    def reading(self) -> MemoryReading:
        now_s = self._clock()
        if self._last is None or now_s - self._last[0] >= self._max_age_s:
            self._last = (now_s, self._read())
        return self._last[1]

    def percent(self) -> float:
        return self.reading().percent
