"""The control groups that hold this process: in a container they bound its memory and cores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROCESS_CGROUPS = Path("/proc/self/cgroup")

Version = Literal[1, 2]


def groups_of(
    controller: str, root: Path = CGROUP_ROOT, process_cgroups: Path = PROCESS_CGROUPS
) -> Iterator[tuple[Path, Version]]:
    """Folders of the process's groups, innermost first, and the version that their files are of.

    What applies to a group applies to all below it. Inside a container the path of the group may be
    the host's, and so be absent; the mounted root is then the container's own group.
    """
    for line in text_of(process_cgroups).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            yield from ((folder, 2) for folder in _upwards(root, path))
        elif controller in controllers.split(","):
            yield from ((folder, 1) for folder in _upwards(root / controller, path))


def text_of(path: Path) -> str:
    """Empty where there is no such file, or it may not be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _upwards(root: Path, path: str) -> Iterator[Path]:
    parts = [part for part in path.split("/") if part]
    if ".." in parts:  # a group outside the namespace: only its root can be seen
        parts = []
    for depth in range(len(parts), -1, -1):
        yield root.joinpath(*parts[:depth])
