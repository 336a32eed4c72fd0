"""The other end of a worker's pipes: a request a line in, an answer a line out, both JSON.

The first line out is ``{"ready": true}``; then ``{"run": [paths]}`` is answered by
``{"wall_s": …, "texts": […]}`` or ``{"error": …}``. It ends when its standard input does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True)
class Run:
    """What a participant made of some files, and how long that took."""

    wall_s: float
    texts: list[str]


Recognise = Callable[[Sequence[Path]], Run]


def serve(open_model: Callable[[], Recognise]) -> None:
    """Answer until the input ends. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    recognise = open_model()
    _write(answers, {"ready": True})
    for line in sys.stdin:
        try:
            run = recognise([Path(path) for path in json.loads(line)["run"]])
            _write(answers, {"wall_s": run.wall_s, "texts": run.texts})
        except Exception:
            _write(answers, {"error": traceback.format_exc(limit=-3)})


def one_by_one(transcribe: Callable[[Path], str]) -> Recognise:
    def recognise(paths: Sequence[Path]) -> Run:
        began_s = time.perf_counter()
        texts = [transcribe(path) for path in paths]
        return Run(time.perf_counter() - began_s, texts)

    return recognise


def worker_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    return parser


def _write(answers: TextIO, answer: dict[str, object]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
