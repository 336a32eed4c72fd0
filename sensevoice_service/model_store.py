"""Where a model comes from: a local folder, a hub or its cache, or the bundled demo. No inference.

A model folder is FunASR's: ``config.yaml``, ``am.mvn``, a ``*.bpe.model`` and ``model.pt``, and
perhaps a ``configuration.json`` that names them.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sensevoice_service import hub as hubs
from sensevoice_service.hub import HUB_NAMES, Hub, HubError
from sensevoice_service.model_files import file_problems, locate
from sensevoice_service.published import (
    PUBLISHED,
    PUBLISHED_IDS,
    PUBLISHED_NAME,
    Published,
    verify_files,
)
from sensevoice_service.types import ModelError

Source = Literal["local", "cache", "download", "bundled"]
Report = Callable[[str], None]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WAYS = (
    "Ways to have a model: `python -m sensevoice_service download` (--hub hf for Hugging Face)"
    " where the hub can be reached; MODEL=<a folder with config.yaml, am.mvn, a *.bpe.model and"
    " model.pt>; MODEL=demo for the bundled demo model; MODEL=auto for the first of all these."
)


@dataclass(frozen=True)
class ModelFolder:
    """A checked model folder and its parts. ``name`` is ``demo``, ``SenseVoiceSmall``, the id of
    another model on a hub, or the name of the folder."""

    path: Path
    name: str
    source: Source
    is_demo: bool
    config_yaml: Path
    checkpoint: Path
    cmvn: Path
    bpe_model: Path


@dataclass(frozen=True)
class _Search:
    hub: Hub
    root: Path
    report: Report
    hub_timeout_s: float = 8.0
    stall_s: float = 30.0
    published: Published = PUBLISHED
    stop: threading.Event | None = None


def resolve_model(
    model: str,
    hub: Hub,
    *,
    root: Path,
    report: Report,
    hub_timeout_s: float = 8.0,
    stall_s: float = 30.0,
    published: Published = PUBLISHED,
    stop: threading.Event | None = None,
) -> ModelFolder:
    """Find the folder that the setting MODEL means; raises ``ModelError`` where there is none.

    ``auto`` takes the first of: ``iic/SenseVoiceSmall`` under ``root`` or the working directory,
    the hubs' caches, a download, the bundled demo; only the last step is a fallback, and it is
    told to ``report``. A folder, a hub id or ``demo`` means just that. The network is used only
    for a download: it is given up where the hub gives no sign of life within ``hub_timeout_s``
    or stays silent for ``stall_s``. ``published`` replaces the built-in sizes and hashes; setting
    ``stop`` from another thread ends a download.
    """
    search = _Search(hub, root, report, hub_timeout_s, stall_s, published, stop)
    if model == "auto":
        return _auto(search)
    if model == "demo":
        return _bundled(search)
    for base in (Path.cwd(), root):
        path = base / Path(model).expanduser()
        if os.path.exists(path):  # Path.exists raises where it may not look
            return _local(search, path)
    if not _HUB_ID.fullmatch(model):
        raise ModelError(f"MODEL={model}: there is no such folder. {_WAYS}")
    return _from_hub(search, model)


def download(
    hub: Hub,
    *,
    report: Report,
    model_id: str | None = None,
    to: Path | None = None,
    hub_timeout_s: float = 8.0,
    stall_s: float = 30.0,
    published: Published = PUBLISHED,
) -> ModelFolder:
    """Have a hub's model on disk, in ``to`` or in the hub's cache, and verified; what is there
    already is not fetched again. ``model_id`` is the published model unless given."""
    model_id = model_id or PUBLISHED_IDS[hub]
    if not _HUB_ID.fullmatch(model_id):
        raise ModelError(f"{model_id} is no hub id: they look like {PUBLISHED_IDS[hub]}.")
    search = _Search(hub, Path.cwd(), report, hub_timeout_s, stall_s, published)
    if to is None:
        return _from_hub(search, model_id)
    cached, damaged = _usable(search, [to], _name_of(model_id))
    return cached or _download(search, _id_on(hub, model_id), to=to, again=damaged)


def verify_published(
    folder: ModelFolder,
    *,
    report: Report,
    published: Published = PUBLISHED,
) -> bool:
    """Hold a folder that claims to be the published model against sizes and sha256 of its files.

    It claims so by its name or by the size of its checkpoint. Returns whether it does; raises
    ``ModelError`` with the file, what was expected and what was found.
    """
    same_size = folder.checkpoint.stat().st_size == published.checkpoint.size_bytes
    if folder.is_demo or not (folder.name == PUBLISHED_NAME or same_size):
        return False
    files = {
        folder.checkpoint: published.checkpoint,
        folder.bpe_model: published.bpe_model,
        folder.cmvn: published.cmvn,
    }
    verify_files(folder.path, files, report)
    return True


def open_folder(
    path: Path,
    *,
    name: str | None = None,
    source: Source = "local",
    published: Published = PUBLISHED,
) -> ModelFolder:
    """Check that a folder is complete and whole; ``ModelError`` lists all that is wrong."""
    path = Path(os.path.abspath(path))
    if os.path.isfile(path):
        raise ModelError(f"{path} is a file: set MODEL to the folder that it is in.")
    if not os.path.isdir(path):
        raise ModelError(f"{path}: there is no such folder. {_WAYS}")
    files, problems = locate(path)
    problems += file_problems(files, hashed_size_bytes=published.checkpoint.size_bytes)
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ModelError(f"{path} is no usable model folder:{lines}\n{_WAYS}")
    return ModelFolder(
        path=path,
        name=name or path.name,
        source=source,
        is_demo=source == "bundled",
        config_yaml=files.config_yaml,
        checkpoint=files.checkpoint,
        cmvn=files.cmvn,
        bpe_model=files.bpe_model,
    )


def _auto(search: _Search) -> ModelFolder:
    for base in dict.fromkeys((search.root, Path.cwd())):
        path = base / PUBLISHED_IDS["ms"]
        if hubs.entries(path):
            return _local(search, path)
    try:
        return _from_hub(search, PUBLISHED_IDS[search.hub])
    except ModelError as error:
        if search.stop is not None and search.stop.is_set():
            raise
        reason = str(error)
    try:
        demo = _bundled(search)
    except ModelError as error:
        raise ModelError(f"{reason}\nThe bundled demo cannot stand in: {error}") from None
    search.report(
        "WARNING: SERVING THE BUNDLED DEMO MODEL, whose transcripts are no measure of"
        f" SenseVoiceSmall's, because the real model is not to be had: {reason}"
    )
    return demo


def _bundled(search: _Search) -> ModelFolder:
    path = search.root / "sensevoice_service" / "demo_model"
    return open_folder(path, name="demo", source="bundled")


def _local(search: _Search, path: Path) -> ModelFolder:
    return _checked(search, path, None, "local")


def _checked(search: _Search, path: Path, name: str | None, source: Source) -> ModelFolder:
    folder = open_folder(path, name=name, source=source, published=search.published)
    verify_published(folder, report=search.report, published=search.published)
    return folder


def _name_of(model_id: str) -> str:
    return PUBLISHED_NAME if model_id in PUBLISHED_IDS.values() else model_id


def _id_on(hub: Hub, model_id: str) -> str:
    """The published model is known by either of its ids."""
    return PUBLISHED_IDS[hub] if model_id in PUBLISHED_IDS.values() else model_id


def _from_hub(search: _Search, model_id: str) -> ModelFolder:
    """The published model may lie in either hub's cache, the chosen one's first."""
    ids: dict[Hub, str] = {search.hub: _id_on(search.hub, model_id)}
    if model_id in PUBLISHED_IDS.values():
        ids |= PUBLISHED_IDS
    snapshots = [path for hub, repo in ids.items() for path in hubs.cached_snapshots(hub, repo)]
    cached, damaged = _usable(search, snapshots, _name_of(model_id))
    return cached or _download(search, ids[search.hub], to=None, again=damaged)


def _usable(search: _Search, paths: list[Path], name: str) -> tuple[ModelFolder | None, bool]:
    """The first whole folder, and whether one before it was damaged rather than unfinished."""
    damaged = False
    for path in paths:
        if not os.path.isdir(path) or not locate(path)[0].all_there():
            continue
        try:
            return _checked(search, path, name, "cache"), damaged
        except ModelError as error:
            search.report(f"passing over a damaged copy: {error}")
            damaged = True
    return None, damaged


def _download(search: _Search, model_id: str, *, to: Path | None, again: bool) -> ModelFolder:
    hub_name = HUB_NAMES[search.hub]
    try:
        if reason := hubs.why_unreachable(search.hub, search.hub_timeout_s):
            raise HubError(f"the hub cannot be reached ({reason})")
        search.report(f"downloading {model_id} from {hub_name}")
        path = hubs.fetch(
            search.hub, model_id, to=to, again=again, stall_s=search.stall_s, stop=search.stop
        )
    except HubError as error:
        raise ModelError(
            f"{model_id}: no whole copy in a local cache, none from {hub_name}: {error}. {_WAYS}"
        ) from None
    try:
        return _checked(search, path, _name_of(model_id), "download")
    except ModelError as error:
        raise ModelError(f"{model_id} came from {hub_name}, but is of no use: {error}") from None
