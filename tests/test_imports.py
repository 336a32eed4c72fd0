"""Who may know whom, read from the import statements of the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "sensevoice_service"

WEB = {"fastapi", "starlette", "uvicorn", "multipart", "python_multipart", "anyio"}
MODEL = {"torch", "torchaudio", "funasr", "sentencepiece"}
HUBS = {"modelscope", "modelscope_hub", "huggingface_hub"}
AUDIO = {"av", "soundfile", "soxr"}
EVENT_LOOP = {"asyncio", "anyio"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_name(path): path for path in (ROOT / PACKAGE).rglob("*.py")} | {
    name: ROOT / f"{name}.py" for name in ("api", "config")
}
MODULES = sorted(PATHS)
# The two places where all parts meet: the application and the command line.
COMMAND_LINE = {
    f"{PACKAGE}.__main__",
    *(name for name in PATHS if name.startswith(f"{PACKAGE}.cli")),
}
ENTRANCES = {"api", *COMMAND_LINE}


@cache
def imports(module: str) -> frozenset[str]:
    """The modules that one names, in functions too; not those for its type checker alone."""
    tree = ast.parse(PATHS[module].read_text("utf-8"))
    return frozenset(name for node in _statements(tree) for name in _names(node))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _statements(child)


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        origin = node.module or ""
        parts = {f"{origin}.{alias.name}" for alias in node.names}
        yield from parts & PATHS.keys() or {origin}


@cache
def known(module: str) -> frozenset[str]:
    """All that a module reaches: our modules by their names, others by their package's."""
    seen, ahead = set[str](), [module]
    while ahead:
        for name in imports(ahead.pop()):
            ours = name if name in PATHS else name.partition(".")[0]
            if ours not in seen:
                seen.add(ours)
                ahead += [ours] if ours in PATHS else []
    return frozenset(seen)


def ours(*names: str) -> list[str]:
    return [f"{PACKAGE}.{name}" for name in names]


ROUTES = [module for module in MODULES if module.startswith(f"{PACKAGE}.routes")]
PURE = ours(
    *("types", "chunker", "merge", "words", "segments", "subtitles", "tags", "formats", "ctc"),
    *("batch_policy", "fair_order", "frame_budget", "status", "hotwords", "beam_search"),
)
RULES = {
    "the web framework is for the routes": (
        set(MODULES) - set(ROUTES) - ENTRANCES,
        WEB,
    ),
    "the routes know no model, no audio and no hub": (ROUTES, MODEL | HUBS | AUDIO),
    "values, cutting, merging and formats are pure": (
        PURE,
        WEB | MODEL | HUBS | AUDIO | EVENT_LOOP | {"threading", "config"},
    ),
    "audio and batching know no model": (
        ours(
            *(
                "audio",
                "containers",
                "mixer",
                "timeline",
                "mpeg",
                "ogg",
                "window",
                "batcher",
                "batch_call",
            ),
            *("isolation", "decoder_host", "decoder_wire", "descriptors", "plain_wav"),
        ),
        WEB | MODEL | HUBS | EVENT_LOOP | {"config"},
    ),
    "only the decoder and what is around it knows libav": (
        set(MODULES)
        - ENTRANCES
        - set(ours("audio", "mixer", "timeline", "pipeline", "service", "decoder_host")),
        AUDIO,
    ),
    "admission, memory and the pipeline know no model": (
        ours("admission", "memory", "pipeline", "service", "logs"),
        WEB | MODEL | HUBS | {"config"},
    ),
    "the model knows no requests": (
        ours(
            *("loading", "steering", "engine", "onnx_engine", "onnx_graph"),
            *("native_engine", "native_frontend", "native_network", "encoder_inputs", "likeness"),
            *("encoder", "frontend", "tokenizer"),
        ),
        WEB | AUDIO | EVENT_LOOP | {"config", f"{PACKAGE}.batcher"},
    ),
    "sharing cores and compiling take no model": (
        ours("callers", "cpu_flags", "native_library"),
        WEB | MODEL | HUBS | AUDIO | EVENT_LOOP | {"config", "numpy"},
    ),
    "an engine is given files": (
        ours(
            *("engine", "onnx_engine", "onnx_graph", "encoder", "frontend", "tokenizer"),
            *("native_engine", "native_frontend", "native_network", "encoder_inputs", "likeness"),
        ),
        HUBS | {f"{PACKAGE}.model_store"},
    ),
    "finding a model takes no inference": (
        ours("model_store", "model_files", "published", "hub", "hub_download"),
        WEB | MODEL | AUDIO | {"config", f"{PACKAGE}.engine"},
    ),
    "FunASR is for tests and tools": (set(MODULES), {"funasr"}),
    "nobody knows the application but the command line": (
        set(MODULES) - COMMAND_LINE,
        {"api"},
    ),
    "files, jobs, progress and a service's client know no model": (
        ours(
            *(f"cli.{name}" for name in ("files", "bodies", "jobs", "progress", "form", "remote"))
        ),
        WEB | MODEL | HUBS | AUDIO | EVENT_LOOP | {"config", "api"},
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_modules_know_only_what_is_theirs_to_know(rule: str) -> None:
    modules, forbidden = RULES[rule]
    found = {module: sorted(known(module) & forbidden) for module in modules}
    assert {module: names for module, names in found.items() if names} == {}


def test_the_walk_over_imports_finds_what_is_there() -> None:
    assert "torch" in known(f"{PACKAGE}.engine")
    assert "torch" in known("api")
    assert "fastapi" in known(f"{PACKAGE}.routes.app")
    assert "av" in known(f"{PACKAGE}.pipeline")
    assert f"{PACKAGE}.types" in known(f"{PACKAGE}.chunker")
    assert "config" not in known(f"{PACKAGE}.routes.app")


def test_values_know_nothing_but_arrays() -> None:
    standard = {"__future__", "dataclasses", "typing"}
    assert known(f"{PACKAGE}.types") - standard == {"numpy"}


@pytest.mark.parametrize("module", [f"{PACKAGE}.routes.app", "api"])
def test_the_server_is_up_before_torch_is_imported(module: str) -> None:
    """What third parties import is not in our sources, so this one runs."""
    heavy = MODEL | {"modelscope", "transformers", "numba"}
    code = f"import sys, {module}; print(sorted({heavy!r} & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "[]\n", result.stderr
