"""CTC prefix beam search that prefers hot words.

Hannun et al., 2014, "First-Pass Large Vocabulary Continuous Speech Recognition using Bi-Directional
Recurrent DNNs", https://arxiv.org/abs/1408.2873: the probability of a text is the sum over all
paths that spell it, and the most probable beginnings are kept from frame to frame. Here each is
weighed with what it gains from hot words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sensevoice_service.ctc import align
from sensevoice_service.hotwords import HotWords, Match
from sensevoice_service.types import Hypothesis

BEAM_WIDTH = 8
# Tokens less probable than this in a frame are not tried there: no boost would make up for it.
LEAST_LOG_PROB = -7.0
MOST_TOKENS = 16  # of a frame
# Beginnings this much less probable than the best are given up.
LEAST_SHARE = 1e-6


@dataclass(frozen=True, eq=False)
class FrameScores:
    """Log-probabilities, by frame, of the tokens that may matter.

    ``token_ids`` is int32 ``(n,)``, the blank first and each once; ``log_probs`` is float32
    ``(T, n)``, prompts excluded.
    """

    token_ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]


def prefer(hot: HotWords, scores: FrameScores, greedy: Hypothesis) -> Hypothesis:
    """What was said, if the hot words are likely.

    ``greedy`` itself where the search finds none of them: they change nothing but where they are
    written.
    """
    likely = scores.log_probs.max(axis=0, initial=-np.inf) > LEAST_LOG_PROB
    if not hot.can_appear(frozenset(scores.token_ids[likely].tolist())):
        return greedy
    best = _search(hot, scores)
    if not hot.gain(best.match):
        return greedy
    columns = best.columns()
    first, last = align(scores.log_probs, columns)
    return replace(
        greedy, token_ids=scores.token_ids[columns], first_frames=first, last_frames=last
    )


class _Prefix:
    """The beginning of a text; ``column`` is that of its last token, and 0 of the empty one."""

    __slots__ = ("children", "column", "match", "parent", "weight")

    def __init__(self, column: int, parent: _Prefix | None, match: Match, weight: float) -> None:
        self.column = column
        self.parent = parent
        self.match = match
        self.weight = weight  # how much its last token changes what the text gains: a factor
        self.children: dict[int, _Prefix] = {}

    def columns(self) -> list[int]:
        columns, prefix = [], self
        while prefix.parent is not None:
            columns.append(prefix.column)
            prefix = prefix.parent
        return columns[::-1]


# The probabilities, gains included, of the paths of a prefix that end in a blank and in its token.
_Beam = dict[_Prefix, list[float]]


def _search(hot: HotWords, scores: FrameScores) -> _Prefix:
    ids = scores.token_ids.tolist()
    beam: _Beam = {_Prefix(0, None, Match(), 1.0): [1.0, 0.0]}
    for blank, tokens in _frames(hot, scores):
        if tokens:
            beam = _best(_step(beam, blank, tokens, hot, ids))
        else:
            for ends in beam.values():
                ends[:] = sum(ends), 0.0

    def final(prefix: _Prefix) -> float:
        lost = hot.gain(prefix.match) - hot.credit(prefix.match)
        return sum(beam[prefix]) * math.exp(lost)

    return max(beam, key=final)


def _step(
    beam: _Beam, blank: float, tokens: Sequence[tuple[int, float]], hot: HotWords, ids: list[int]
) -> _Beam:
    """All prefixes, and their continuations, after one frame more."""
    grown: _Beam = {}
    for prefix, (in_blank, in_token) in beam.items():
        total = in_blank + in_token
        ends = grown.setdefault(prefix, [0.0, 0.0])
        ends[0] += total * blank
        for column, probability in tokens:
            if column == prefix.column:  # without a blank between them, they are one
                ends[1] += in_token * probability
                added = in_blank * probability
            else:
                added = total * probability
            if added > LEAST_SHARE * LEAST_SHARE:
                child = prefix.children.get(column) or _grow(prefix, column, hot, ids)
                grown.setdefault(child, [0.0, 0.0])[1] += added * child.weight
    return grown


def _grow(prefix: _Prefix, column: int, hot: HotWords, ids: list[int]) -> _Prefix:
    before = ids[prefix.column] if prefix.parent is not None else None
    match = hot.advance(prefix.match, before, ids[column])
    gained = hot.credit(match) - hot.credit(prefix.match)
    child = _Prefix(column, prefix, match, math.exp(gained) if gained else 1.0)
    prefix.children[column] = child
    return child


def _best(grown: _Beam) -> _Beam:
    """The beam's width of them, their probabilities scaled so that the best has 1."""
    totals = sorted(((sum(ends), prefix) for prefix, ends in grown.items()), key=_first)
    most = totals[-1][0]
    kept = ((total, prefix) for total, prefix in totals[: -BEAM_WIDTH - 1 : -1])
    return {
        prefix: [end / most for end in grown[prefix]]
        for total, prefix in kept
        if total > LEAST_SHARE * most
    }


def _first(pair: tuple[float, _Prefix]) -> float:
    return pair[0]


def _frames(
    hot: HotWords, scores: FrameScores
) -> Iterator[tuple[float, Sequence[tuple[int, float]]]]:
    """The blank's probability in each frame, and the columns and probabilities of likely tokens.

    Where there is none but the blank, its probability may be taken for 1.
    """
    log_probs = _decisions(scores.log_probs)
    worth = log_probs.copy()
    is_hot = np.isin(scores.token_ids, list(hot.token_ids))
    worth[:, is_hot] -= LEAST_LOG_PROB  # a hot word's tokens come first
    worth[:, 0] = -np.inf
    worth[log_probs <= LEAST_LOG_PROB] = -np.inf
    best = log_probs.argmax(axis=1)
    n_most = min(MOST_TOKENS, worth.shape[1] - 1)
    for frame, chosen in enumerate(np.argpartition(-worth, n_most, axis=1)[:, :n_most]):
        likely = [int(c) for c in chosen if np.isfinite(worth[frame, c])]
        if best[frame] and int(best[frame]) not in likely:
            likely.append(int(best[frame]))
        probabilities = np.exp(log_probs[frame, [0, *likely]], dtype=np.float64).tolist()
        yield probabilities[0], list(zip(likely, probabilities[1:], strict=True))


def _decisions(log_probs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Frames in a row in which one token is the likeliest, as one frame: their mean.

    They say one thing between them; else a hot word could be squeezed in beside the token.
    """
    best = log_probs.argmax(axis=1)
    starts = np.flatnonzero((np.diff(best, prepend=-1) != 0) | (best == 0))
    lengths = np.diff(starts, append=len(best))
    return np.asarray(np.add.reduceat(log_probs, starts) / lengths[:, None], np.float32)
