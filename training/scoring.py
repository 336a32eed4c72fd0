"""Counting token errors."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import numpy as np

_TOKEN = re.compile(r"[a-z']+|[0-9]|[\u4e00-\u9fff]")


def tokens_of(text: str) -> list[str]:
    """English words, digits and Chinese characters, in order."""
    return _TOKEN.findall(text.lower())


def edit_distance(reference: Sequence[Hashable], heard: Sequence[Hashable]) -> int:
    """Levenshtein: the fewest substitutions, insertions and deletions.

    A row of the table at a time, so that an hour's tokens take a second: the deletions along a row
    are a running minimum once its slope is taken off.
    """
    numbers = {token: number for number, token in enumerate({*reference, *heard})}
    other = np.array([numbers[token] for token in heard], dtype=np.int64)
    slope = np.arange(len(other) + 1)
    row = slope.copy()
    for i, token in enumerate(reference, 1):
        above = np.minimum(row[1:] + 1, row[:-1] + (other != numbers[token]))
        row = np.minimum.accumulate(np.concatenate(([i], above)) - slope) + slope
    return int(row[-1])
