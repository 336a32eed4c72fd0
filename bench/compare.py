"""Ours against its peers, on the same weights and the same audio, in turn, round by round.

``python -m bench.compare [--model DIR] [--rounds N] [--json FILE] [--xinference PYTHON]`` prints
the ratio of the speeds for each row, medians over the rounds, and whether it meets its goal. Speed
is RTFx: seconds of audio per second. Every participant has a process of its own, that idles while
another is measured, and as many threads as there are cores. The first round warms up and is not
counted. Without ``--model`` it is a random one of the published size, by ``bench.make_model``.

What the peers need beside ``requirements-dev.txt``, which is enough for FunASR and its server:

- sherpa-onnx: ``.venv/bin/pip install -r requirements-bench.txt``, as ``make bench`` does
- Xinference, in an environment of its own since it wants an older FastAPI:
  ``python -m venv DIR && DIR/bin/pip install xinference funasr torch torchaudio``, and then
  ``--xinference DIR/bin/python``

A row whose peer is not there, or fails, says so, and the others are measured.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from bench.peers.audio import write_wavs
from bench.peers.funasr_model import link_folder
from bench.peers.machine import n_cores, revision, versions_of
from bench.peers.participants import PARTICIPANTS, Participant, Setup, start
from bench.peers.process import ROOT, PeerError
from bench.peers.report import Load, Measured, Outcome, Row, as_json, table
from bench.report import Report, read_versions

# So many clips that the fastest is busy for some seconds, most of them with all clients there.
LOADS = (
    Load("clips", n_files=32, duration_s=10, at_once=8),
    Load("single", n_files=2, duration_s=30, at_once=1),
    Load("long", n_files=1, duration_s=600, at_once=1),
)
_CLIPS = "HTTP, 10 s WAVs, 8 at once"
ROWS = (
    Row("http-funasr-server", _CLIPS, "clips", "ours-http", "funasr-server", 5.0),
    Row("http-xinference", _CLIPS, "clips", "ours-http", "xinference", 5.0),
    Row("http-upstream", _CLIPS, "clips", "ours-http", "upstream", None),
    Row("http-single", "30 s files one by one, HTTP", "single", "ours-http", "funasr", 4.0),
    Row("long-sherpa", "a 10-minute file in process", "long", "ours", "sherpa-int8", 2.2),
    Row("fp32-single", "30 s files in process, fp32", "single", "ours-fp32", "funasr", 1.4),
)

EXIT_STOPPED = 130
CACHE = Path(tempfile.gettempdir()) / "sensevoice-bench"

Key = tuple[str, str]  # the names of a load and of a participant
Start = Callable[[str, Setup], Participant]


def chosen_rows(only: str | None, participants: str | None) -> list[Row]:
    """Raises ``ValueError`` for a name that is not known."""
    names = _names(only, [row.name for row in ROWS])
    taking_part = _names(participants, list(PARTICIPANTS))
    return [row for row in ROWS if row.name in names and {row.ours, row.peer} <= taking_part]


def _names(given: str | None, known: Sequence[str]) -> set[str]:
    names = set(known) if given is None else set(given.split(","))
    if unknown := sorted(names - set(known)):
        raise ValueError(f"not known: {', '.join(unknown)}; known: {', '.join(known)}")
    return names


class Comparison:
    """Measures the rows of one set-up; what fails is kept as a problem of its participant."""

    def __init__(
        self, setup: Setup, rows: Sequence[Row], loads: Sequence[Load], start: Start
    ) -> None:
        self._setup = setup
        self._start = start
        self._rows = rows
        self._loads = [load for load in loads if any(row.load == load.name for row in rows)]
        self._up: dict[str, Participant] = {}
        self._done: set[str] = set()
        self.measured: dict[Key, Measured] = {}

    def measure(self, rounds: int) -> list[Outcome]:
        self._start_all()
        for load in self._loads:
            files = self._setup.scratch / load.name
            paths = write_wavs(files, load.n_files, load.duration_s)
            for index in range(rounds + 1):
                for name in self._in_turn(load, index):
                    self._run_once(load, name, paths, is_warm_up=index == 0)
            self._done.add(load.name)
        return [
            Outcome(row, self.measured[row.load, row.ours], self.measured[row.load, row.peer])
            for row in self._rows
        ]

    def _start_all(self) -> None:
        for load in self._loads:
            for name in self._names_of(load):
                self.measured[load.name, name] = Measured(load.audio_s)
        for name in dict.fromkeys(name for _, name in self.measured):
            if name == "xinference" and self._setup.xinference is None:
                self._give_up(name, "not measured: no --xinference given")
                continue
            _say(f"starting {name}")
            try:
                self._up[name] = self._start(name, self._setup)
            except PeerError as error:
                self._give_up(name, f"failed: {error}")

    def _names_of(self, load: Load) -> list[str]:
        rows = [row for row in self._rows if row.load == load.name]
        return list(dict.fromkeys(name for row in rows for name in (row.ours, row.peer)))

    def _in_turn(self, load: Load, index: int) -> list[str]:
        """Another one goes first in each round; those that failed are left out."""
        names = self._names_of(load)
        first = index % len(names)
        return [name for name in names[first:] + names[:first] if name in self._up]

    def _run_once(self, load: Load, name: str, paths: Sequence[Path], *, is_warm_up: bool) -> None:
        try:
            run = self._up[name].run(paths, load.at_once)
            if not any(run.texts):
                raise PeerError("gave no text")
        except PeerError as error:
            self._give_up(name, f"failed: {error}")
            return
        before = self.measured[load.name, name]
        n_characters = sum(map(len, run.texts))
        after = replace(before, n_characters=n_characters)
        if is_warm_up:
            after = replace(after, warm_up_s=run.wall_s)
        else:
            after = replace(after, walls_s=(*before.walls_s, run.wall_s))
        self.measured[load.name, name] = after
        _say(f"{load.name}: {name} {load.audio_s / run.wall_s:.1f}{' (warm-up)' * is_warm_up}")

    def _give_up(self, name: str, problem: str) -> None:
        """It takes no further part; what was measured of it on other loads stays."""
        _say(f"{name} {problem}")
        if name in self._up:
            self._up.pop(name).stop()
        for key, one in self.measured.items():
            if key[1] == name and key[0] not in self._done:
                self.measured[key] = replace(one, problem=problem)


def keep_to_cores(n: int) -> None:
    """Keep this process and all that it starts to ``n`` cores, where the system knows how.

    Ours reads the number of its workers from there; the peers are told a number of threads.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n])


def scaled(loads: Sequence[Load], scale: float) -> list[Load]:
    return [replace(load, duration_s=load.duration_s * scale) for load in loads]


def random_model(cache: Path) -> Path:
    """Made once; a process of its own does it, since this one is to stay small."""
    made = cache / "random-model"
    if not made.exists():
        _say("making a random model of the published size")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            folder = Path(scratch) / made.name
            command = [sys.executable, "-m", "bench.make_model", str(folder)]
            subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
            folder.rename(made)
    return made


@contextmanager
def set_up(model: Path, threads: int, cache: Path, xinference: Path | None) -> Iterator[Setup]:
    """Ends every process that was started in it."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        scratch = Path(folder)
        setup = Setup(
            folder=model.resolve(),
            funasr_folder=link_folder(model, scratch / model.resolve().name, threads),
            scratch=scratch,
            cache=cache.absolute(),
            threads=threads,
            xinference=xinference.absolute() if xinference else None,
        )
        try:
            yield setup
        finally:
            for process in setup.running:
                process.stop()


def make_report(settings: Mapping[str, Any]) -> Report:
    """With the peers' packages, and the commit, among the versions."""
    versions = {"project": revision(), **read_versions()}
    if settings["xinference"] is not None:
        of_peer = versions_of(Path(settings["xinference"]))
        versions |= {f"xinference's {name}": version for name, version in of_peer.items()}
    return Report("speed beside peers", settings, versions=versions)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="a folder as published")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help=f"rows, with commas: {', '.join(row.name for row in ROWS)}")
    parser.add_argument("--participants", help=f"with commas: {', '.join(PARTICIPANTS)}")
    parser.add_argument("--xinference", type=Path, help="the Python of Xinference's environment")
    parser.add_argument("--threads", type=int, default=n_cores(), help="cores and threads for each")
    parser.add_argument("--cache", type=Path, default=CACHE, help="keeps the models that are made")
    parser.add_argument("--scale", type=float, default=1.0, help="of all lengths, for a quick try")
    parser.add_argument("--json", type=Path, help="write machine, versions and timings there")
    arguments = parser.parse_args()
    try:
        arguments.rows = chosen_rows(arguments.only, arguments.participants)
    except ValueError as error:
        parser.error(str(error))
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


def _end(*_: object) -> NoReturn:
    """Once: a second signal must not cut short the end of what was started."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(EXIT_STOPPED)


def main() -> None:
    arguments = parse_arguments()
    keep_to_cores(arguments.threads)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    loads = scaled(LOADS, arguments.scale)
    settings = {key: value for key, value in vars(arguments).items() if key != "rows"}
    settings["loads"] = [asdict(load) for load in loads]
    report = make_report(settings)
    print(report.header())
    model = arguments.model or random_model(arguments.cache)
    with set_up(model, arguments.threads, arguments.cache, arguments.xinference) as setup:
        comparison = Comparison(setup, arguments.rows, loads, start)
        outcomes = comparison.measure(arguments.rounds)
    print(table(outcomes))
    if arguments.json:
        report.write(arguments.json, as_json(outcomes, comparison.measured), goals=())


if __name__ == "__main__":
    main()
