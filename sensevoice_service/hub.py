"""ModelScope and Hugging Face: is a hub there, what does its cache hold, and fetch a snapshot.

Knows nothing of what is in a model folder beyond the names of its files. No function here can be
held by a hub that does not answer: the probe runs on a thread with a deadline, and the hubs'
own libraries, with their long retry loops, run in a process of their own that is ended when no
more bytes come.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import queue
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Literal

Hub = Literal["ms", "hf"]
HUB_NAMES: dict[Hub, str] = {"ms": "ModelScope", "hf": "Hugging Face"}
SNAPSHOT_PATTERNS = ("config.yaml", "configuration.json", "am.mvn", "*.bpe.model", "model.pt")

_TRUE = {"1", "ON", "YES", "TRUE"}
_AWAY = {502, 503, 504}  # a gateway's word that the hub behind it does not answer
_POLL_S = 0.2
_TIDY_UP_S = 3.0


class HubError(Exception):
    """The hub did not give the model; the message is the reason."""


def endpoint(hub: Hub) -> str:
    """The hub's address, from the same environment variables that its own library reads."""
    if hub == "hf":
        return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    address = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN", "")
    address = address.strip().rstrip("/")
    if not address:
        prefers_ai = os.environ.get("MODELSCOPE_PREFER_AI_SITE", "").upper() in _TRUE
        return "https://www.modelscope.ai" if prefers_ai else "https://modelscope.cn"
    has_scheme = address.lower().startswith(("http://", "https://"))
    return address if has_scheme else f"https://{address}"


def why_unreachable(hub: Hub, timeout_s: float) -> str | None:
    """Ask the hub for any answer at all; ``None`` is yes, else the reason, after ``timeout_s``.

    The deadline covers name resolution too, which has no timeout of its own.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in _TRUE:
        return "HF_HUB_OFFLINE is set"
    address = endpoint(hub)
    answer: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(
        target=lambda: answer.put(_probe(address, timeout_s)), name="hub-probe", daemon=True
    ).start()
    try:
        reason = answer.get(timeout=timeout_s)
    except queue.Empty:
        reason = f"no answer within {timeout_s:g} s"
    return reason and f"{address}: {reason}"


def _probe(address: str, timeout_s: float) -> str | None:
    headers = {"User-Agent": "sensevoice-python"}
    try:
        request = urllib.request.Request(address, method="HEAD", headers=headers)
        with urllib.request.urlopen(request, timeout=timeout_s):
            return None
    except urllib.error.HTTPError as error:
        with error:
            return f"HTTP status {error.code}" if error.code in _AWAY else None
    except urllib.error.URLError as error:
        # The hub is there; whether to trust it is for its library, with its own certificates.
        untrusted = isinstance(error.reason, ssl.SSLCertVerificationError)
        return None if untrusted else str(error.reason) or "no connection"
    except (OSError, http.client.HTTPException, ValueError) as error:
        return str(error) or type(error).__name__


def cached_snapshots(hub: Hub, repo_id: str) -> Iterator[Path]:
    """Folders of the hub's local cache that may hold the model, complete or not. No network."""
    return _modelscope_snapshots(repo_id) if hub == "ms" else _hugging_face_snapshots(repo_id)


def _modelscope_snapshots(repo_id: str) -> Iterator[Path]:
    """Today's layout, then those of older releases, which its library goes on using too."""
    root = Path(os.environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope")
    root = root.expanduser()
    owner, name = repo_id.split("/", 1)
    snapshots = root / "models" / f"{owner}--{name}" / "snapshots"
    revisions = sorted(entries(snapshots), key=lambda path: (path.name != "master", path.name))
    older = [
        base / owner / folder
        for base in (root / "models", root / "hub" / "models", root, root / "hub")
        for folder in dict.fromkeys((name.replace(".", "___"), name))
    ]
    return (path for path in (*revisions, *older) if os.path.isdir(path))


def entries(folder: Path) -> list[Path]:
    """None of a folder that is not there, or is somebody else's."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _hugging_face_snapshots(repo_id: str) -> Iterator[Path]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        yield Path(
            snapshot_download(
                repo_id, local_files_only=True, allow_patterns=list(SNAPSHOT_PATTERNS)
            )
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return


def fetch(
    hub: Hub,
    repo_id: str,
    *,
    to: Path | None = None,
    again: bool = False,
    stall_s: float = 30.0,
    stop: threading.Event | None = None,
) -> Path:
    """Download the files of a model that are not there yet, and give their folder.

    ``to`` takes the place of the hub's cache, ``again`` distrusts what is there already. The
    library's progress bars go to stderr. Raises ``HubError`` when the hub refuses, when nothing
    arrives for ``stall_s``, or when ``stop`` is set meanwhile. Where another process of this
    machine downloads the same, its end is waited for.
    """
    task = {"hub": hub, "repo_id": repo_id, "to": to and str(to), "again": again}
    stop = stop or threading.Event()
    with _one_at_a_time(f"{hub} {repo_id} {to}", stop):
        return _fetch(task, stall_s, stop)


@contextlib.contextmanager
def _one_at_a_time(what: str, stop: threading.Event) -> Iterator[None]:
    """The hubs' libraries have locks of their own, behind which nothing arrives: that is a stall.

    Raises ``HubError`` when ``stop`` is set meanwhile.
    """
    digest = hashlib.sha256(what.encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir(), f"sensevoice-{os.getuid()}-{digest}.lock")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # without one, the second may be taken for a stall
            file = stack.enter_context(open(path, "ab", opener=_open_lock))
            while not _is_locked(file.fileno()):
                if stop.wait(_POLL_S):
                    raise HubError("the download was stopped")
        yield


def _open_lock(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _is_locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fetch(task: Mapping[str, object], stall_s: float, stop: threading.Event) -> Path:
    command = [sys.executable, "-m", "sensevoice_service.hub_download", json.dumps(task)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_child_environment(), text=True
    ) as child:
        assert child.stdout is not None
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        reader = threading.Thread(target=_pass_on, args=(child.stdout, lines), name="hub-reader")
        reader.start()
        try:
            return _follow(lines, stall_s, stop)
        finally:
            _end(child)
            reader.join()


def _end(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.close()
    try:
        child.wait(_TIDY_UP_S)
    except subprocess.TimeoutExpired:
        child.kill()


def _child_environment() -> dict[str, str]:
    package_parent = str(Path(__file__).resolve().parents[1])
    paths = [package_parent, os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if environment.pop("MODELSCOPE_DOMAIN", ""):  # the library's older name, which it warns about
        environment["MODELSCOPE_ENDPOINT"] = endpoint("ms")
    return environment


def _pass_on(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def _follow(lines: queue.SimpleQueue[str], stall_s: float, stop: threading.Event) -> Path:
    """Wait for the child's last word; every line of it is a sign of life."""
    deadline = time.monotonic() + stall_s
    while time.monotonic() < deadline:
        if stop.is_set():
            raise HubError("the download was stopped")
        try:
            line = lines.get(timeout=min(_POLL_S, stall_s))
        except queue.Empty:
            continue
        if not line:
            raise HubError("the download ended unexpectedly")
        event = json.loads(line)
        if "error" in event:
            raise HubError(event["error"])
        if "path" in event:
            return Path(event["path"])
        deadline = time.monotonic() + stall_s
    raise HubError(f"the download stalled: nothing arrived for {stall_s:g} s")
