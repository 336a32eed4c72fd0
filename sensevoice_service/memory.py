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

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROCESS_CGROUPS = Path("/proc/self/cgroup")


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


_V2 = _Files("memory.max", "memory.current", "inactive_file")
_V1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def read_memory(
    cgroup_root: Path = CGROUP_ROOT, process_cgroups: Path = PROCESS_CGROUPS
) -> MemoryReading:
    """The fullest of the control groups that hold this process, or the host where none has a limit.

    A limit applies to a group and to all groups below it, so each group from the process's own up
    to the root is looked at. Inside a container the path of the group may be the host's, and so be
    absent; the mounted root is then the container's own group.
    """
    host = psutil.virtual_memory()
    rss_bytes = int(psutil.Process().memory_info().rss)
    groups = [
        MemoryReading(used_bytes, limit_bytes, rss_bytes)
        for folder, files in _groups(cgroup_root, process_cgroups)
        for used_bytes, limit_bytes in _usage(folder, files)
        if 0 < limit_bytes < host.total
    ]
    whole = MemoryReading(int(host.total - host.available), int(host.total), rss_bytes)
    return max(groups, key=lambda reading: reading.percent, default=whole)


def _groups(root: Path, process_cgroups: Path) -> Iterator[tuple[Path, _Files]]:
    """Folders of the process's memory groups, innermost first, with the names of their files."""
    for line in _text(process_cgroups).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            yield from ((folder, _V2) for folder in _upwards(root, path))
        elif "memory" in controllers.split(","):
            yield from ((folder, _V1) for folder in _upwards(root / "memory", path))


def _upwards(root: Path, path: str) -> Iterator[Path]:
    parts = [part for part in path.split("/") if part]
    if ".." in parts:  # a group outside the namespace: only its root can be seen
        parts = []
    for depth in range(len(parts), -1, -1):
        yield root.joinpath(*parts[:depth])


def _usage(folder: Path, files: _Files) -> Iterator[tuple[int, int]]:
    """Used and permitted bytes of one group; nothing where it has no limit or no such files."""
    limit, used = _text(folder / files.limit).strip(), _text(folder / files.used).strip()
    if not (limit.isdigit() and used.isdigit()):
        return
    cache_bytes = 0
    for line in _text(folder / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == files.cache_key and value.strip().isdigit():
            cache_bytes = int(value)
    yield max(0, int(used) - cache_bytes), int(limit)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


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
