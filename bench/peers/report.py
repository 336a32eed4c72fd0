"""From walls to a table: what was measured, the rows that compare it, their goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Load:
    """What participants of a row are given: files of one length, so many at once."""

    name: str
    n_files: int
    duration_s: float
    at_once: int

    @property
    def audio_s(self) -> float:
        return self.n_files * self.duration_s


@dataclass(frozen=True)
class Row:
    """Ours against one peer on one load; ``goal`` is the least ratio of speeds that is wanted."""

    name: str
    title: str
    load: str
    ours: str
    peer: str
    goal: float | None


@dataclass(frozen=True)
class Measured:
    """One participant on one load: a wall a round, and why it has no more of them."""

    audio_s: float
    warm_up_s: float | None = None
    walls_s: tuple[float, ...] = ()
    n_characters: int = 0  # of all texts of a round: one that answers nothing is no peer
    problem: str | None = None

    @property
    def rtfx(self) -> tuple[float, ...]:
        """Seconds of audio in a second, of each round."""
        return tuple(self.audio_s / wall_s for wall_s in self.walls_s)


@dataclass(frozen=True)
class Outcome:
    """A row with both sides of it; without figures where either has a problem."""

    row: Row
    ours: Measured
    peer: Measured

    @property
    def problem(self) -> str | None:
        for name, side in ((self.row.ours, self.ours), (self.row.peer, self.peer)):
            if side.problem is not None:
                return f"{name} {side.problem}"
        return None

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return median(self.ours.rtfx) / median(self.peer.rtfx)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Of each round."""
        pairs = zip(self.ours.rtfx, self.peer.rtfx, strict=True)
        return tuple(ours / peer for ours, peer in pairs)

    @property
    def verdict(self) -> str:
        if self.row.goal is None:
            return "–"
        return "met" if self.ratio >= self.row.goal else "short"


HEADINGS = ("row", "load", "ours", "RTFx", "peer", "RTFx", "ratio", "rounds", "goal", "")


def table(outcomes: Sequence[Outcome]) -> str:
    """A line a row, in Markdown; problems follow below it, whole."""
    lines = [list(HEADINGS), *(_cells(outcome) for outcome in outcomes)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    lines.insert(1, ["-" * width for width in widths])
    text = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    problems = {outcome.problem: None for outcome in outcomes if outcome.problem}
    return "\n".join([*text, *(f"\n{problem}" for problem in problems)])


def _cells(outcome: Outcome) -> list[str]:
    row = outcome.row
    goal = "–" if row.goal is None else f"≥ {row.goal:g}"
    if outcome.problem is not None:
        first_line = outcome.problem.splitlines()[0].partition(";")[0]
        return [row.name, row.title, row.ours, "", row.peer, "", "", "", goal, first_line]
    return [
        row.name,
        row.title,
        row.ours,
        _with_spread(outcome.ours.rtfx),
        row.peer,
        _with_spread(outcome.peer.rtfx),
        f"{outcome.ratio:.2f}",
        f"{min(outcome.ratios):.2f}..{max(outcome.ratios):.2f}",
        goal,
        outcome.verdict,
    ]


def _with_spread(rtfx: Sequence[float]) -> str:
    return f"{median(rtfx):.1f} ({min(rtfx):.1f}..{max(rtfx):.1f})"


def as_json(
    outcomes: Sequence[Outcome], measured: Mapping[tuple[str, str], Measured]
) -> dict[str, Any]:
    """The rows, and all timings by load and participant."""
    timings: dict[str, dict[str, Any]] = {}
    for (load, name), one in measured.items():
        timings.setdefault(load, {})[name] = {
            "audio_s": one.audio_s,
            "warm_up_s": one.warm_up_s,
            "walls_s": list(one.walls_s),
            "n_characters": one.n_characters,
            "problem": one.problem,
        }
    return {"rows": [_row_as_json(outcome) for outcome in outcomes], "timings": timings}


def _row_as_json(outcome: Outcome) -> dict[str, Any]:
    row = outcome.row
    facts: dict[str, Any] = {
        "row": row.name,
        "title": row.title,
        "load": row.load,
        "ours": row.ours,
        "peer": row.peer,
        "goal": row.goal,
    }
    if outcome.problem is not None:
        return facts | {"problem": outcome.problem}
    return facts | {
        "ours_rtfx": median(outcome.ours.rtfx),
        "peer_rtfx": median(outcome.peer.rtfx),
        "ratio": outcome.ratio,
        "ratios": list(outcome.ratios),
        "verdict": outcome.verdict,
    }
