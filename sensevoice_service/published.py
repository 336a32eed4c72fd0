"""What the published SenseVoiceSmall is: its ids on the hubs, its files' sizes and hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensevoice_service.hub import Hub
from sensevoice_service.types import ModelError

PUBLISHED_NAME = "SenseVoiceSmall"
PUBLISHED_IDS: dict[Hub, str] = {
    "ms": "iic/SenseVoiceSmall",
    "hf": "FunAudioLLM/SenseVoiceSmall",
}
STAMP_NAME = ".sensevoice-verified.json"

_READ_BYTES = 4 << 20


@dataclass(frozen=True)
class PublishedFile:
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Published:
    """The files that make one release of a model; its configuration may be edited."""

    checkpoint: PublishedFile
    bpe_model: PublishedFile
    cmvn: PublishedFile


PUBLISHED = Published(
    checkpoint=PublishedFile(
        936_291_369, "833ca2dcfdf8ec91bd4f31cfac36d6124e0c459074d5e909aec9cabe6204a3ea"
    ),
    bpe_model=PublishedFile(
        377_341, "aa87f86064c3730d799ddf7af3c04659151102cba548bce325cf06ba4da4e6a8"
    ),
    cmvn=PublishedFile(11_203, "29b3c740a2c0cfc6b308126d31d7f265fa2be74f3bb095cd2f143ea970896ae5"),
)


def verify_files(
    folder: Path, files: Mapping[Path, PublishedFile], report: Callable[[str], None]
) -> None:
    """Compare size and sha256 of each file; ``ModelError`` at the first that differs.

    Hashing takes seconds, so a good outcome is kept in a stamp in ``folder``, or in the user's
    cache where that is read-only, for as long as sizes and modification times stay the same.
    """
    verdict = {}
    for path, file in files.items():
        status = path.stat()
        if status.st_size != file.size_bytes:
            raise _mismatch(path, file, f"{status.st_size} bytes")
        verdict[path.name] = [status.st_size, status.st_mtime_ns, file.sha256]
    if any(_read(stamp) == verdict for stamp in _stamps(folder)):
        return
    report(f"verifying the model in {folder} (done once, takes a few seconds)")
    for path, file in files.items():
        sha256 = _sha256(path)
        if sha256 != file.sha256:
            raise _mismatch(path, file, f"sha256 {sha256}")
    _write(verdict, folder)


def _mismatch(path: Path, file: PublishedFile, found: str) -> ModelError:
    return ModelError(
        f"{path.name} in {path.parent} is not the published one:"
        f" expected {file.size_bytes} bytes, sha256 {file.sha256}; found {found}."
        " It is damaged or another model: fetch it anew with"
        " `python -m sensevoice_service download`, or, where it is a model of your own,"
        f" keep it in a folder not named {PUBLISHED_NAME} and set MODEL to that folder."
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _stamps(folder: Path) -> tuple[Path, Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return folder / STAMP_NAME, cache / "sensevoice-service" / f"verified-{key}.json"


def _read(stamp: Path) -> Any:
    try:
        return json.loads(stamp.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _write(verdict: dict[str, Any], folder: Path) -> None:
    for stamp in _stamps(folder):
        try:
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.write_text(json.dumps(verdict), "utf-8")
        except OSError:
            continue
        return
