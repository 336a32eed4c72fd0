"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

from sensevoice_service.cgroups import CGROUP_ROOT, PROCESS_CGROUPS, Version, groups_of, text_of

LEAST_FILES_AT_ONCE = 4


def usable_cores(root: Path = CGROUP_ROOT, process_cgroups: Path = PROCESS_CGROUPS) -> int:
    """Those that it may run on, or fewer where its container has less of their time.

    A container with the time of two and a half cores sees all of the host's, and threads for each
    of them would spend most of every tenth of a second stopped. A part of a core counts as one.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    n_cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    shares = [_share(*group) for group in groups_of("cpu", root, process_cgroups)]
    return min([n_cores, *(math.ceil(share) for share in shares if share)])


def files_at_once() -> int:
    """Enough files side by side that each core has work where they are single chunks."""
    return max(LEAST_FILES_AT_ONCE, 2 * usable_cores())


def _share(folder: Path, version: Version) -> float:
    """Seconds of processors a second; 0 where there is no limit."""
    if version == 2:
        words = text_of(folder / "cpu.max").split()
    else:
        words = [text_of(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    if len(words) != 2 or not all(word.isdigit() for word in words):
        return 0.0
    quota_us, period_us = map(int, words)
    return quota_us / period_us if period_us else 0.0
