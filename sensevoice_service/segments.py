"""Words → segments, parted where speech pauses, where sentences end and where their tags change."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sensevoice_service.types import Segment, Word

Sizes = NDArray[np.float64]

PAUSE_S = 0.5
_SHORT_PAUSE_S = 0.2  # beside a comma
_MAX_SEGMENT_S = 15.0
# Quotes and brackets may follow a stop; a letter alone or a title before one is cut short by it.
_SENTENCE_END = re.compile(r"[.!?。！？…．｡][\"'”’»)\]）」』】》]*$")
_CLAUSE_END = re.compile(r"[,;:，；：、､—–-][\"'”’»)\]）」』】》]*$")
# Japanese: they lengthen or alter the character before them, and begin no line (JIS X 4051).
_NO_START = frozenset("ーｰ々ゝゞヽヾぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶｧｨｩｪｫｬｭｮｯ")
_ABBREVIATION = re.compile(r"\W*([A-Za-z]|([A-Za-z]\.)+[A-Za-z]|Mr|Mrs|Ms|Dr|St|vs)\.")


@dataclass(frozen=True)
class Passage:
    """The words of one chunk, and its tags."""

    words: Sequence[Word]
    language: str
    emotion: str
    events: tuple[str, ...]

    @property
    def tags(self) -> tuple[str, str, tuple[str, ...]]:
        return self.language, self.emotion, self.events


def make_segments(passages: Iterable[Passage]) -> tuple[Segment, ...]:
    """The segments of a file, in order, from the words of its chunks.

    A new one begins after a pause, a sentence, or a comma with a short pause, where language,
    emotion or events differ from those of the chunk before, and inside of what would last longer
    than 15 s, at the best place there is.
    """
    return tuple(
        _segment(stretch, passage)
        for passage, run in _runs(passages)
        for stretch in _within_limit(run)
    )


def text_of(words: Sequence[Word]) -> str:
    return "".join(word.text for word in words).strip()


def divide(
    words: Sequence[Word],
    reach: Callable[[int], int],
    sizes: Callable[[int, int], Sizes],
    part_cost: float = 1.0,
) -> Iterator[Sequence[Word]]:
    """The words in few and even parts, broken at good places.

    ``reach(i)`` is the end of the longest part that may start at word ``i``; one word may always
    be a part. ``sizes(i, j)`` tells how full parts are that start at word ``i`` and end at those
    from ``i + 1`` to ``j``, 1 being full. A break is the dearer the less it is heard, up to 0.9,
    and each part costs ``part_cost``, which is 1 or more. The cheapest way is found from the end.
    """
    n = len(words)
    if reach(0) == n:  # then one part is the cheapest
        yield words
        return
    breaks = [_badness(before, after) for before, after in pairwise(words)]
    costs, ends = np.zeros(n + 1), [n] * (n + 1)
    for i in reversed(range(n)):
        last = max(reach(i), i + 1)
        ways = part_cost + sizes(i, last) ** 2 + costs[i + 1 : last + 1]
        best = int(ways.argmin())
        ends[i] = i + 1 + best
        costs[i] = ways[best] + (breaks[i - 1] if i else 0.0)
    start = 0
    while start < n:
        yield words[start : ends[start]]
        start = ends[start]


def _badness(before: Word, after: Word) -> float:
    """Of a break between two words."""
    if after.text.lstrip()[:1] in _NO_START:
        return 0.9
    if ends_sentence(before):
        return 0.0
    if after.start_s - before.end_s >= PAUSE_S:
        return 0.1
    if _CLAUSE_END.search(before.text):
        return 0.2
    return 0.4 if after.start_s > before.end_s else 0.6


def ends_sentence(word: Word) -> bool:
    if _SENTENCE_END.search(word.text) is None:
        return False
    return _ABBREVIATION.fullmatch(word.text.strip()) is None


def _runs(passages: Iterable[Passage]) -> Iterator[tuple[Passage, list[Word]]]:
    """Words that nothing parts, with the passage that they begin in."""
    run: list[Word] = []
    origin: Passage | None = None
    for passage in passages:
        for word in passage.words:
            if origin is not None and (origin.tags != passage.tags or _are_apart(run[-1], word)):
                yield origin, run
                run, origin = [], None
            origin = origin or passage
            run.append(word)
    if origin is not None:
        yield origin, run


def _are_apart(before: Word, after: Word) -> bool:
    pause_s = after.start_s - before.end_s
    if ends_sentence(before) or pause_s >= PAUSE_S:
        return True
    return pause_s >= _SHORT_PAUSE_S and _CLAUSE_END.search(before.text) is not None


def _segment(words: Sequence[Word], passage: Passage) -> Segment:
    first = replace(words[0], text=words[0].text.lstrip())
    spoken = (first, *words[1:])
    return Segment(
        start_s=first.start_s,
        end_s=spoken[-1].end_s,
        text=text_of(spoken),
        language=passage.language,
        emotion=passage.emotion,
        events=passage.events,
        words=spoken,
    )


def _within_limit(words: Sequence[Word]) -> Iterator[Sequence[Word]]:
    """The words in parts that last no longer than a segment may."""
    ends_s = np.array([word.end_s for word in words])

    def reach(start: int) -> int:
        latest_s = words[start].start_s + _MAX_SEGMENT_S
        return int(np.searchsorted(ends_s, latest_s, side="right"))

    def shares(start: int, last: int) -> Sizes:
        return (ends_s[start:last] - words[start].start_s) / _MAX_SEGMENT_S

    return divide(words, reach, shares)
