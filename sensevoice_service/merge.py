"""Hypotheses of a file's chunks → one transcript, with the seams of overlapping chunks mended.

In an overlap both chunks hold the same words, less surely near their own edges, where words are
cut. The two readings are aligned by id and time, and one gives way to the other at a token that
both have, as near to the middle as there is one, and between two words rather than inside one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

from sensevoice_service.segments import Passage, make_segments
from sensevoice_service.tags import (
    NO_SPEECH,
    UNKNOWN_EMOTION,
    UNKNOWN_LANGUAGE,
    Tags,
    Vocabulary,
    distinct,
)
from sensevoice_service.types import FRAME_SAMPLES, SAMPLE_RATE_HZ, ChunkResult, Transcript
from sensevoice_service.words import Token, WordBuilder

_SAME_TOKEN_SAMPLES = SAMPLE_RATE_HZ * 3 // 10  # two hearings of one token are nearer than this
_WORD_SAMPLES = SAMPLE_RATE_HZ // 2  # a lost word weighs as much as this distance
_EDGE_SAMPLES = SAMPLE_RATE_HZ * 3 // 10  # tokens this near to a chunk's edge are doubtful


@dataclass(frozen=True)
class _Overlap:
    """The stretch that two chunks share."""

    start_sample: int
    stop_sample: int

    @property
    def middle(self) -> float:
        return (self.start_sample + self.stop_sample) / 2

    def inner(self) -> tuple[float, float]:
        """Without the doubtful edges, but never less than the middle half."""
        margin = min(_EDGE_SAMPLES, (self.stop_sample - self.start_sample) / 4)
        return self.start_sample + margin, self.stop_sample - margin


@dataclass(frozen=True)
class _Heard:
    """A chunk and its tokens, of which the next chunk may take some away."""

    result: ChunkResult
    tokens: list[Token]


@dataclass(frozen=True)
class _Part:
    """What a chunk adds to the transcript, beside its words."""

    tags: Tags
    events: tuple[str, ...]
    n_tokens: int


@dataclass(frozen=True)
class _Splice:
    """Go from ``left[:n_left]`` to ``right[n_right:]``."""

    n_left: int
    n_right: int


def merge(results: Iterable[ChunkResult], vocabulary: Vocabulary, n_samples: int) -> Transcript:
    """The transcript of a file of ``n_samples`` from the results of all its chunks, in order."""
    merger = Merger(vocabulary)
    for result in results:
        merger.add(replace(result, end_sample=min(result.end_sample, n_samples)))
    return merger.finish(n_samples)


class Merger:
    """Merges chunk by chunk: each has a say only in the one before it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._words = WordBuilder(vocabulary)
        self._parts: list[_Part] = []
        self._last: _Heard | None = None

    def add(self, result: ChunkResult) -> str:
        """Take the next chunk of the file, which ends no later than the file itself.

        Returns what is certain now and was not before: the texts of all calls put together are a
        prefix of the transcript's, from which only words of the last chunk may be missing.
        """
        tokens = _tokens(result, self._vocabulary)
        gained = ""
        if self._last is not None:
            left = self._last.tokens
            if result.overlap_samples:
                left, tokens = _mend(left, tokens, _overlap(result), self._vocabulary)
            gained = self._settle(self._last.result, left)
        self._last = _Heard(result, tokens)
        return gained

    def finish(self, n_samples: int) -> Transcript:
        """The transcript of a file of ``n_samples``, once, after its last chunk.

        ``text`` is what the tokenizer makes of each chunk's tokens, however they fall into
        segments. Times never run backwards and stay within the file. ``language`` and ``emotion``
        are those with the most tokens; unknown ones count only where there is nothing else.
        """
        if self._last is not None:
            self._settle(self._last.result, self._last.tokens)
            self._last = None
        words, parts = self._words.words(n_samples), self._parts
        voters = [part for part in parts if part.n_tokens] or parts
        return Transcript(
            text="".join(word.text for of_part in words for word in of_part),
            language=_most(((p.tags.language, p.n_tokens) for p in voters), UNKNOWN_LANGUAGE),
            emotion=_most(((p.tags.emotion, p.n_tokens) for p in voters), UNKNOWN_EMOTION),
            events=distinct(event for part in parts for event in part.events),
            duration_s=n_samples / SAMPLE_RATE_HZ,
            segments=make_segments(
                Passage(of_part, part.tags.language, part.tags.emotion, part.events)
                for of_part, part in zip(words, parts, strict=True)
            ),
        )

    def _settle(self, result: ChunkResult, tokens: list[Token]) -> str:
        hypothesis = result.hypothesis
        tags = self._vocabulary.tags(hypothesis.prompt_ids)
        body_events = self._vocabulary.body_events(hypothesis.token_ids.tolist())
        self._parts.append(_Part(tags, distinct(tags.events + body_events), len(tokens)))
        return self._words.add(tokens)


def _overlap(result: ChunkResult) -> _Overlap:
    """Of a chunk with the one before it."""
    return _Overlap(result.start_sample, result.start_sample + result.overlap_samples)


def _tokens(result: ChunkResult, vocabulary: Vocabulary) -> list[Token]:
    hypothesis = result.hypothesis
    end = result.end_sample
    frames = zip(
        hypothesis.token_ids.tolist(),
        hypothesis.first_frames.tolist(),
        hypothesis.last_frames.tolist(),
        strict=True,
    )
    return [
        Token(
            token_id,
            min(result.start_sample + first * FRAME_SAMPLES, end),
            min(result.start_sample + (last + 1) * FRAME_SAMPLES, end),
        )
        for token_id, first, last in frames
        if vocabulary.is_text(token_id)
    ]


def _mend(
    left: list[Token], right: list[Token], overlap: _Overlap, vocabulary: Vocabulary
) -> tuple[list[Token], list[Token]]:
    """Leave each word of the overlap on one side only."""
    splice = _splice(left, right, overlap, vocabulary)
    if splice is None:
        return left, right
    kept = right[splice.n_right :]
    # A word that the splice runs through belongs to the side that begins it.
    n_rest = _word_start(kept, 0, vocabulary)
    return left[: splice.n_left] + kept[:n_rest], kept[n_rest:]


def _splice(
    left: list[Token], right: list[Token], overlap: _Overlap, vocabulary: Vocabulary
) -> _Splice | None:
    """``None`` where one side heard nothing in the overlap, so that nothing is there twice."""
    earliest = overlap.start_sample - _SAME_TOKEN_SAMPLES
    n_before = sum(token.start_sample < earliest for token in left)
    latest = overlap.stop_sample + _SAME_TOKEN_SAMPLES
    n_shared = sum(token.start_sample < latest for token in right)
    matches = _align(left[n_before:], right[:n_shared])
    if matches:
        shifted = [(n_before + i, j) for i, j in matches]
        return _best_match(right, shifted, overlap, vocabulary)
    left_is_silent = all(token.start_sample < overlap.start_sample for token in left)
    right_is_silent = all(token.start_sample >= overlap.stop_sample for token in right)
    if left_is_silent or right_is_silent:
        return None
    time = _cut_time(left, right, overlap, vocabulary)
    return _Splice(*(_first_word(side, time, overlap, vocabulary) for side in (left, right)))


def _align(left: list[Token], right: list[Token]) -> list[tuple[int, int]]:
    """Index pairs of a common subsequence, weighted by how near in time its tokens are.

    The weight falls from 1 to 0 with the square of the distance, so that among repeated words
    those of one moment are matched, even if a shift would match one more.
    """
    best = [[0.0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i in reversed(range(len(left))):
        for j in reversed(range(len(right))):
            matched = _nearness(left[i], right[j])
            matched = matched + best[i + 1][j + 1] if matched else 0.0
            best[i][j] = max(matched, best[i + 1][j], best[i][j + 1])
    pairs = []
    i = j = 0
    while i < len(left) and j < len(right):
        if best[i][j] == best[i + 1][j]:
            i += 1
        elif best[i][j] == best[i][j + 1]:
            j += 1
        else:
            pairs.append((i, j))
            i, j = i + 1, j + 1
    return pairs


def _nearness(left: Token, right: Token) -> float:
    if left.id != right.id:
        return 0.0
    distance = abs(left.start_sample - right.start_sample) / _SAME_TOKEN_SAMPLES
    return max(0.0, 1 - distance * distance)


def _best_match(
    right: list[Token], matches: list[tuple[int, int]], overlap: _Overlap, vocabulary: Vocabulary
) -> _Splice:
    """Change sides ahead of a match: far from the edges, between words, central."""
    first, last = overlap.inner()

    def cost(match: tuple[int, int]) -> tuple[bool, bool, float]:
        token = right[match[1]]
        is_doubtful = not first <= token.start_sample <= last
        is_torn = not vocabulary.starts_word(token.id)
        return is_doubtful, is_torn, abs(token.start_sample - overlap.middle)

    return _Splice(*min(matches, key=cost))


def _cut_time(
    left: list[Token], right: list[Token], overlap: _Overlap, vocabulary: Vocabulary
) -> float:
    """Where to change sides that agree on nothing: central, in a gap, and losing few words."""
    left_words = [t.start_sample for t in left if vocabulary.starts_word(t.id)]
    right_words = [t.start_sample for t in right if vocabulary.starts_word(t.id)]
    first, last = overlap.inner()
    times = {first, last, *(t for t in (*left_words, *right_words) if first < t < last)}

    def cost(gap: tuple[float, float]) -> float:
        time = sum(gap) / 2
        n_lost = sum(t >= time for t in left_words) + sum(t < time for t in right_words)
        return abs(time - overlap.middle) - (gap[1] - gap[0]) + n_lost * _WORD_SAMPLES

    before, after = min(pairwise(sorted(times)), key=cost)
    return (before + after) / 2


def _first_word(tokens: list[Token], time: float, overlap: _Overlap, vocabulary: Vocabulary) -> int:
    """How many tokens come ahead of the first word that begins at ``time`` or later."""
    n_ahead = sum(token.start_sample < time for token in tokens)
    n_whole = _word_start(tokens, n_ahead, vocabulary)
    rest = tokens[n_ahead:n_whole]
    is_within = all(token.start_sample < overlap.stop_sample for token in rest)
    return n_whole if is_within else n_ahead


def _word_start(tokens: list[Token], n: int, vocabulary: Vocabulary) -> int:
    while n < len(tokens) and not vocabulary.starts_word(tokens[n].id):
        n += 1
    return n


def _most(votes: Iterable[tuple[str, int]], unknown: str) -> str:
    """The name with the most votes, the first of equals; without votes, ``unknown``."""
    counts: dict[str, int] = {}
    for name, n_tokens in votes:
        counts[name] = counts.get(name, 0) + n_tokens
    nothing = (NO_SPEECH, UNKNOWN_LANGUAGE, UNKNOWN_EMOTION)
    known = {name: n for name, n in counts.items() if name not in nothing}
    return max(known or counts, key=lambda name: counts[name], default=unknown)
