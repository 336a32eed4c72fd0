"""How many more tokens are wrong in a low precision than in fp32?

``python -m bench.precision [--model DIR] [--json FILE]``. Held-out utterances of the demo's words,
in both languages, clean and under noise, are heard in each precision: the same audio, one engine
after another. A model of other words has no meaning here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.report import Goal, Report, make_parser, table
from sensevoice_service.loading import EngineOptions, open_model
from sensevoice_service.model_store import open_folder
from sensevoice_service.types import SAMPLE_RATE_HZ, ModelError
from training.evaluate import (
    HELD_OUT_SEED,
    Condition,
    Sample,
    Score,
    conditions,
    draw_samples,
    score,
)
from training.speech import Espeak

REFERENCE = "off"
MOST_WORSE_POINTS = 0.1

Drawn = Mapping[Condition, Sequence[Sample]]


@dataclass(frozen=True)
class Row:
    """One precision over all conditions, or over those of one name; errors against the script."""

    quantize: str
    precision: str
    conditions: str
    n_tokens: int
    n_errors: int
    worse_points: float

    @property
    def token_error(self) -> float:
        return self.n_errors / self.n_tokens


COLUMNS = {
    "QUANTIZE": "{0.quantize}",
    "precision": "{0.precision}",
    "utterances": "{0.conditions}",
    "tokens": "{0.n_tokens:d}",
    "wrong": "{0.n_errors:d}",
    "token error": "{0.token_error:.2%}",
    "points worse": "{0.worse_points:+.3f}",
}


def draw(n_utterances: int) -> dict[Condition, list[Sample]]:
    """An equal share for each list of words, language and sound; those that evaluation draws."""
    chosen = {
        condition: HELD_OUT_SEED + index
        for index, condition in enumerate(conditions())
        if condition.words in ("base", "wide")
        and condition.prompt == "auto"
        and not condition.use_itn
    }
    espeak, n_each = Espeak(), max(1, round(n_utterances / len(chosen)))
    return {
        condition: draw_samples(condition, espeak, seed, n_each)
        for condition, seed in chosen.items()
    }


def hear(model: Path, quantize: str, drawn: Drawn) -> tuple[str, dict[Condition, Score]]:
    """The name of the precision, and the scores in it. Raises ``ModelError`` for one not to be had.

    The engine is gone afterwards, so that the next has the memory.
    """
    opened = open_model(open_folder(model), EngineOptions("cpu", quantize))
    scores = {condition: score(opened, condition, samples) for condition, samples in drawn.items()}
    return opened.engine.precision, scores


def name_of(condition: Condition) -> str:
    return f"{condition.words} {condition.language} {condition.sound}"


def rows_of(
    quantize: str,
    precision: str,
    scores: Mapping[Condition, Score],
    reference: Mapping[Condition, Score],
) -> list[Row]:
    """One for each condition, and a last one for all of them."""
    parts = {name_of(condition): [condition] for condition in scores}
    rows = []
    for name, members in {**parts, "all": list(scores)}.items():
        n_tokens = sum(scores[member].n_tokens for member in members)
        n_errors = sum(scores[member].n_errors for member in members)
        n_more = n_errors - sum(reference[member].n_errors for member in members)
        rows.append(Row(quantize, precision, name, n_tokens, n_errors, 100 * n_more / n_tokens))
    return rows


def goals(rows: Sequence[Row]) -> list[Goal]:
    return [
        Goal(f"{row.precision} worse than fp32:", row.worse_points, MOST_WORSE_POINTS, " points")
        for row in rows
        if row.conditions == "all" and row.quantize != REFERENCE
    ]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--utterances", type=int, default=1_000, help="in all")
    parser.add_argument("--quantize", nargs="*", default=["int8", "bf16"], help="beside off")
    arguments = parser.parse_args()
    report = Report("precision", {"MODEL": arguments.model, "utterances": arguments.utterances})
    print(report.header())
    drawn = draw(arguments.utterances)
    samples = [sample for part in drawn.values() for sample in part]
    duration_s = sum(len(sample.samples) for sample in samples) / SAMPLE_RATE_HZ
    print(f"{len(samples)} utterances, {duration_s / 60:.1f} min", flush=True)
    precision, reference = hear(arguments.model, REFERENCE, drawn)
    rows = rows_of(REFERENCE, precision, reference, reference)
    for quantize in arguments.quantize:
        try:
            precision, scores = hear(arguments.model, quantize, drawn)
        except ModelError as error:
            print(f"{quantize}: not to be had: {error}")
            continue
        rows += rows_of(quantize, precision, scores, reference)
    print(table(COLUMNS, rows))
    print(f"one token is {100 / rows[-1].n_tokens:.3f} points")
    report.conclude({"rows": rows, "duration_s": duration_s}, goals(rows), arguments.json)


if __name__ == "__main__":
    main()
