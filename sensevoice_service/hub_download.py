"""The process in which a hub's own library downloads: ``hub.fetch`` starts it and reads its stdout.

One JSON object a line: ``{"bytes": n}`` as they arrive, then ``{"path": …}`` or ``{"error": …}``.
It ends with the process that started it, whose end closes its stdin.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil

from sensevoice_service.hub import SNAPSHOT_PATTERNS

_HEARTBEAT_BYTES = 1 << 20
_HUGGING_FACE_HALF = re.compile(r"\.[0-9a-f]{8}\.incomplete$")

Progress = Callable[[float], None]


def main(task: dict[str, Any], out: IO[str]) -> int:
    """Do one download; ``task`` has the keys hub, repo_id, to and again."""
    lock = threading.Lock()

    def say(**event: Any) -> None:
        with lock:
            print(json.dumps(event), file=out, flush=True)

    say(bytes=0)
    download = _from_modelscope if task["hub"] == "ms" else _from_hugging_face
    try:
        path = download(task, lambda n_bytes: say(bytes=n_bytes))
    except Exception as error:  # whatever the libraries raise is a reason to hand on
        say(error=_reason(error))
        return 1
    say(path=path)
    return 0


def _reason(error: Exception) -> str:
    """One line; where ModelScope counts the failed files only, the first one's own reason too."""
    failed: dict[str, Exception] = getattr(error, "failed_files", None) or {}
    causes = [f"{name}: {cause}" for name, cause in failed.items()][:1]
    text = "; ".join([str(error) or type(error).__name__, *causes])
    return " ".join(text.split())


def _from_modelscope(task: dict[str, Any], progress: Progress) -> str:
    # Not through the modelscope package: importing it imports torch.
    from modelscope_hub import ProgressCallback
    from modelscope_hub.compat.snapshot_download import snapshot_download

    class Heartbeat(ProgressCallback):
        def update(self, size: int) -> None:
            progress(size)

    # Files that are there already are compared with the hub's sha256, so `again` asks for nothing.
    return snapshot_download(
        task["repo_id"],
        local_dir=task["to"],
        allow_patterns=list(SNAPSHOT_PATTERNS),
        progress_callbacks=[Heartbeat],
    )


def _from_hugging_face(task: dict[str, Any], progress: Progress) -> str:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    class Heartbeat(tqdm):
        def update(self, n: float | None = 1) -> Any:
            progress(n or 0)
            return super().update(n)

    # Ten times its size would keep a slow line silent for longer than a stall may last.
    constants.DOWNLOAD_CHUNK_SIZE = _HEARTBEAT_BYTES
    return snapshot_download(
        task["repo_id"],
        local_dir=task["to"],
        force_download=task["again"],
        allow_patterns=list(SNAPSHOT_PATTERNS),
        tqdm_class=Heartbeat,
    )


def _exit_with_parent() -> None:
    """Leave at once, without the half files under names of their own that Hugging Face's library
    would never come back to; ModelScope's resumes from its."""
    sys.stdin.buffer.read()
    try:
        for file in psutil.Process().open_files():
            if _HUGGING_FACE_HALF.search(file.path):
                Path(file.path).unlink(missing_ok=True)
    finally:
        os._exit(1)


def _run() -> int:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is for people
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    return main(json.loads(sys.argv[1]), out)


if __name__ == "__main__":
    sys.exit(_run())
