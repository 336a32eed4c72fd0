"""What a benchmark prints and writes: the machine, the versions, the settings, tables and goals."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from config import Settings, load_settings
from sensevoice_service import __version__
from sensevoice_service.memory import read_memory

DEMO_FOLDER = Path(__file__).resolve().parents[1] / "sensevoice_service" / "demo_model"
PACKAGES = (
    *("torch", "onnxruntime", "numpy", "av", "fastapi", "starlette", "uvicorn"),
    *("funasr", "sherpa-onnx", "httpx"),
)
# What decides how fast low precisions are on a CPU.
CPU_FEATURES = (
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16"),
    *("amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16"),
)


def read_machine() -> dict[str, Any]:
    """``cores`` are those that this process may use, memory is the container's where it is less."""
    words = _cpu_info("flags", "Features").split()
    has_affinity = hasattr(os, "sched_getaffinity")
    return {
        "cpu": _cpu_info("model name") or platform.processor() or platform.machine(),
        "features": [name for name in CPU_FEATURES if name in words],
        "cores": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count(),
        "memory_bytes": read_memory().total_bytes,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        "system": platform.platform(),
    }


def read_versions() -> dict[str, str]:
    found = {"sensevoice-python": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_info(*names: str) -> str:
    """The first such entry of the processor's description, or nothing where there is none."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() in names), "")


@dataclass(frozen=True)
class Goal:
    """A measured figure and the bound that it is held to, both in ``unit``."""

    what: str
    measured: float
    bound: float
    unit: str = ""
    is_least: bool = False

    @property
    def met(self) -> bool:
        if self.is_least:
            return self.measured >= self.bound
        return self.measured <= self.bound

    def line(self) -> str:
        side = "at least" if self.is_least else "at most"
        return (
            f"{'met' if self.met else 'MISSED'}: {self.what} {self.measured:.4g}{self.unit},"
            f" {side} {self.bound:g}{self.unit}"
        )


@dataclass(frozen=True)
class Report:
    """The circumstances of a benchmark, taken when it is made: before the work begins."""

    name: str
    settings: Mapping[str, Any]
    machine: Mapping[str, Any] = field(default_factory=read_machine)
    versions: Mapping[str, str] = field(default_factory=read_versions)

    def header(self) -> str:
        here = self.machine
        return "\n".join(
            (
                f"# {self.name}",
                f"machine: {here['cpu']}, {here['cores']} cores ({' '.join(here['features'])}),"
                f" {here['memory_bytes'] / 2**30:.1f} GiB, load {here['load_average']:.1f}"
                " at the start",
                "versions: " + ", ".join(f"{name} {of}" for name, of in self.versions.items()),
                "settings: " + ", ".join(f"{name}={of}" for name, of in self.settings.items()),
            )
        )

    def write(self, path: Path, results: Mapping[str, Any], goals: Sequence[Goal]) -> None:
        """Everything as JSON, dataclasses as objects."""
        body = {
            "benchmark": self.name,
            "ended": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": self.machine,
            "versions": self.versions,
            "settings": self.settings,
            "results": results,
            "goals": [{**dataclasses.asdict(goal), "met": goal.met} for goal in goals],
        }
        text = json.dumps(body, indent=2, ensure_ascii=False, default=_plain)
        path.write_text(text + "\n", encoding="utf-8")

    def conclude(
        self, results: Mapping[str, Any], goals: Sequence[Goal], json_file: Path | None
    ) -> None:
        """Print how the goals fared, and write all of it where a file was named."""
        for goal in goals:
            print(goal.line())
        if json_file is not None:
            self.write(json_file, results, goals)
            print(f"written: {json_file}")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=DEMO_FOLDER, help="a model folder")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the service"
    )
    parser.add_argument("--timeout-s", type=float, default=3_600.0, help="of each request")


def environment_of(model: Path, assignments: Sequence[str]) -> dict[str, str]:
    """The child's environment beside this process's own. Raises ``SystemExit`` for nonsense."""
    pairs = [assignment.partition("=") for assignment in assignments]
    wrong = [name for name, sign, _ in pairs if not sign or name not in Settings.model_fields]
    if wrong:
        raise SystemExit(f"--set takes NAME=VALUE of a setting of the service, not {wrong[0]}")
    return {**{name: value for name, _, value in pairs}, "MODEL": str(model.resolve())}


def settings_of(environment: Mapping[str, str]) -> Settings:
    """What the child makes of its environment. Raises ``config.ConfigError``."""
    return load_settings(**environment)


def changed(environment: Mapping[str, str]) -> dict[str, Any]:
    """The child's settings that are not at their defaults, for a report."""
    settings = settings_of(environment)
    return {
        name: getattr(settings, name)
        for name, of in Settings.model_fields.items()
        if getattr(settings, name) != of.default
    }


def table(columns: Mapping[str, str], rows: Sequence[object]) -> str:
    """Markdown; ``columns`` gives each heading its cells' format, such as ``{0.name:.1f}``.

    A format that says how, with a colon, is of figures: those go to the right.
    """
    cells = [list(columns), *([cell.format(row) for cell in columns.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = [">" if ":" in cell else "<" for cell in columns.values()]
    shapes = list(zip(sides, widths, strict=True))

    def line(row: Sequence[str]) -> str:
        padded = (f"{cell:{side}{n}}" for cell, (side, n) in zip(row, shapes, strict=True))
        return f"| {' | '.join(padded)} |"

    rules = ("-" * (n + 1) + (":" if side == ">" else "-") for side, n in shapes)
    return "\n".join([line(cells[0]), f"|{'|'.join(rules)}|", *map(line, cells[1:])])


def numbers(text: str) -> list[float]:
    """The type of an argument that lists numbers over 0 with commas; it may be empty."""
    found = [float(part) for part in text.split(",") if part]
    if any(number <= 0 for number in found):
        raise argparse.ArgumentTypeError(f"only numbers over 0, not {text}")
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """Linear between neighbours; raises ``ValueError`` where there are no values."""
    if not values:
        raise ValueError("no values were measured")
    return float(np.quantile(values, share))


def median(values: Sequence[float]) -> float:
    return quantile(values, 0.5)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
