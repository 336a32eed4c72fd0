"""What the comparison runs on beside the machine: cores, a peer's packages, the commit."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.peers.process import ROOT

XINFERENCE_PACKAGES = ("xinference", "xoscar", "torch", "funasr", "fastapi", "uvicorn")

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


def versions_of(python: Path) -> dict[str, str]:
    """Xinference and what it runs on, in another interpreter; empty where that does not run."""
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
