"""The files of a model folder: which they are, and whether each is whole."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

_DEFAULT_BPE_MODEL = "chn_jpn_yue_eng_ko_spectok.bpe.model"
_ARCHITECTURE = "SenseVoiceSmall"


@dataclass(frozen=True)
class ModelFiles:
    """Where the parts should be; they need not exist."""

    config_yaml: Path
    cmvn: Path
    bpe_model: Path
    checkpoint: Path

    def all_there(self) -> bool:
        return all(map(os.path.isfile, astuple(self)))  # Path.is_file raises where it may not look


def locate(folder: Path) -> tuple[ModelFiles, list[str]]:
    """The parts by the names in ``configuration.json``, or by the published names where it is
    silent, and what is wrong with that file."""
    metas, problems = _file_path_metas(folder)
    names = {
        "config": metas.get("config"),
        "cmvn_file": _inner(metas, "frontend_conf").get("cmvn_file"),
        "bpemodel": _inner(metas, "tokenizer_conf").get("bpemodel"),
        "init_param": metas.get("init_param"),
    }
    for key, name in names.items():
        if name is not None and not _stays_inside(name):
            problems.append(f"configuration.json: {key} must name a file in the folder: {name!r}")
            names[key] = None
    files = ModelFiles(
        config_yaml=folder / (names["config"] or "config.yaml"),
        cmvn=folder / (names["cmvn_file"] or "am.mvn"),
        bpe_model=folder / (names["bpemodel"] or _any_bpe_model(folder)),
        checkpoint=folder / (names["init_param"] or "model.pt"),
    )
    return files, problems


def _file_path_metas(folder: Path) -> tuple[dict[str, Any], list[str]]:
    path = folder / "configuration.json"
    if not os.path.isfile(path):
        return {}, []
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        return {}, [f"configuration.json cannot be read: {error}"]
    return _inner(content, "file_path_metas"), []


def _inner(content: Any, key: str) -> dict[str, Any]:
    value = content.get(key) if isinstance(content, dict) else None
    return value if isinstance(value, dict) else {}


def _stays_inside(name: Any) -> bool:
    if not isinstance(name, str) or not name:
        return False
    path = PurePath(name)
    return not path.is_absolute() and ".." not in path.parts


def _any_bpe_model(folder: Path) -> str:
    names = sorted(path.name for path in folder.glob("*.bpe.model"))
    return _DEFAULT_BPE_MODEL if _DEFAULT_BPE_MODEL in names or not names else names[0]


def file_problems(files: ModelFiles, *, hashed_size_bytes: int) -> list[str]:
    """What keeps the parts from being used, a line each; empty where all is well.

    A checkpoint of ``hashed_size_bytes`` is not looked into, because its hash will be compared.
    """
    paths = astuple(files)
    faults = {path: _fault(path) for path in paths}
    problems = [fault for path in paths if (fault := faults[path])]
    if not faults[files.config_yaml]:
        problems += _config_problems(files.config_yaml)
    if not faults[files.checkpoint]:
        problems += _checkpoint_problems(files.checkpoint, hashed_size_bytes)
    return problems


def _fault(path: Path) -> str | None:
    if not os.path.isfile(path):
        return f"{path.name} is missing"
    try:
        with path.open("rb") as file:
            return None if file.read(1) else f"{path.name} is empty"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"


def _config_problems(path: Path) -> Iterator[str]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        yield f"{path.name} is no YAML: {' '.join(str(error).split())}"
        return
    model = content.get("model") if isinstance(content, dict) else None
    if model != _ARCHITECTURE:
        yield f"{path.name} is for model: {model}, not {_ARCHITECTURE}"


def _checkpoint_problems(path: Path, hashed_size_bytes: int) -> Iterator[str]:
    """PyTorch writes zip archives, whose directory is at the end: a cut-off file has none."""
    size_bytes = path.stat().st_size
    if size_bytes == hashed_size_bytes:
        return
    try:
        with zipfile.ZipFile(path) as archive:
            whole = any(PurePath(name).name == "data.pkl" for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        whole = False
    if not whole:
        yield f"{path.name} ({size_bytes} bytes) is cut off or no PyTorch checkpoint"
