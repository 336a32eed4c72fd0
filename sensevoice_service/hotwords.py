"""Words that a client expects: how the model may spell them, and what a token sequence gains.

An Aho–Corasick automaton over token ids (Aho and Corasick, 1975, "Efficient String Matching: An Aid
to Bibliographic Search") follows a transcript as it grows. Each token that goes on with a phrase is
worth a boost on credit: it is kept when the phrase ends at the end of a word, and taken back when
the phrase breaks off.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile

from sensevoice_service.tags import Vocabulary

# Between two tokens where no word goes on although the second has no space of its own: "用AI写".
JOINT = -1
# The nats that a token of a phrase is worth, chosen with ``bench.hotwords``. A token by itself is
# worth less: in noise there is always some word that it resembles.
BOOST = 2.0
LONE_SHARE = 0.2
# What a phrase that is not whole yet may gain: with more, it would drive out all else meanwhile.
MOST_CREDIT = 6.0
# A Chinese character, behind which a Latin word is spelled without a leading space.
_ANCHOR = "中"


@dataclass(frozen=True, slots=True)
class Match:
    """How far a transcript has come: ``kept`` is what whole phrases have earned, in nats.

    ``state`` is the place in the automaton, and ``paid`` what of its credit is in ``kept`` already.
    """

    state: int = 0
    kept: float = 0.0
    paid: float = 0.0


class HotWords:
    """Phrases as sequences of token ids; threads may share it."""

    def __init__(
        self, phrases: Iterable[Sequence[int]], vocabulary: Vocabulary, boost: float = BOOST
    ) -> None:
        self._vocabulary = vocabulary
        self._phrases = frozenset(tuple(phrase) for phrase in phrases)
        self.token_ids = frozenset(i for phrase in self._phrases for i in phrase)
        self._children: list[dict[int, int]] = [{}]
        self._credits = [0.0]
        self._ends = [0.0]  # credit of the longest phrase that ends here
        self._falls = [0]  # where the longest other beginning of a phrase is that ends here
        for phrase in sorted(self._phrases, key=len):
            self._add(phrase, boost)
        self._link()

    def can_appear(self, token_ids: frozenset[int]) -> bool:
        """Whether any phrase is made of these tokens alone."""
        return any(token_ids.issuperset(phrase) for phrase in self._phrases)

    def advance(self, match: Match, before: int | None, token_id: int) -> Match:
        """``token_id`` comes after ``before``, or first (``None``)."""
        state, kept, paid = match.state, match.kept, match.paid
        joins = not self._vocabulary.is_joint(before, token_id)
        if not joins and self._ends[state] > paid:
            kept, paid = kept + self._ends[state] - paid, self._ends[state]
        for symbol in self._symbols(token_id, joins):
            following = self._children[state].get(symbol)
            if following is None:
                following, paid = self._fall(state, symbol), 0.0
            state = following
        return Match(state, kept, paid)

    def credit(self, match: Match) -> float:
        """What the transcript gains so far, phrases that are not whole yet included."""
        return match.kept + max(0.0, self._credits[match.state] - match.paid)

    def gain(self, match: Match) -> float:
        """What it gains if it ends here."""
        return match.kept + max(0.0, self._ends[match.state] - match.paid)

    def _add(self, phrase: Sequence[int], boost: float) -> None:
        """To be called with short phrases first."""
        state, before, whole, credit = 0, None, 0.0, 0.0
        for token_id in phrase:
            joins = not self._vocabulary.is_joint(before, token_id)
            for symbol in self._symbols(token_id, joins):
                state = self._children[state].setdefault(symbol, len(self._credits))
                if state == len(self._credits):
                    self._new_state()
            if len(phrase) > 1:
                credit = min(credit + boost, whole + MOST_CREDIT)
            self._credits[state] = max(self._credits[state], credit)
            whole = max(whole, self._ends[state])
            credit = max(credit, whole)
            before = token_id
        self._ends[state] = boost * (len(phrase) if len(phrase) > 1 else LONE_SHARE)
        self._credits[state] = max(self._credits[state], self._ends[state])

    def _new_state(self) -> None:
        self._children.append({})
        self._credits.append(0.0)
        self._ends.append(0.0)
        self._falls.append(0)

    def _symbols(self, token_id: int, joins: bool) -> tuple[int, ...]:
        """A token that could join but does not is marked: phrases begin where words begin."""
        if joins or token_id not in self._vocabulary.joining_ids:
            return (token_id,)
        return (JOINT, token_id)

    def _link(self) -> None:
        """Breadth first, so that the states a state may fall to are ready before it."""
        ahead = deque(self._children[0].values())
        while ahead:
            state = ahead.popleft()
            fallen = self._falls[state]
            self._ends[state] = max(self._ends[state], self._ends[fallen])
            for symbol, child in self._children[state].items():
                self._falls[child] = self._fall(state, symbol)
                ahead.append(child)

    def _fall(self, state: int, symbol: int) -> int:
        """Where ``symbol`` leads from the longest other beginning that it goes on with."""
        while state:
            state = self._falls[state]
            if (following := self._children[state].get(symbol)) is not None:
                return following
        return 0


def make_hot_words(words: Iterable[str], vocabulary: Vocabulary, boost: float = BOOST) -> HotWords:
    """Each word or phrase in all its spellings; one that the model cannot write is left out."""
    spellings = (spelling for word in words for spelling in spell(word, vocabulary))
    return HotWords(spellings, vocabulary, boost)


def spell(word: str, vocabulary: Vocabulary) -> set[tuple[int, ...]]:
    """The token ids by which the model may write a word or phrase, whatever its letters' case.

    With the space that a Latin word has ahead of it, and as it stands behind Chinese. None where
    the vocabulary lacks a piece.
    """
    word = " ".join(word.split())
    found = set()
    for text in {word, word.lower(), word.upper(), word.title(), word[:1].upper() + word[1:]}:
        for ids in _encodings(text, vocabulary):
            spoken = _without_space(ids, vocabulary)
            if spoken and all(vocabulary.is_text(i) for i in spoken):
                found.add(spoken)
    return found


def _encodings(text: str, vocabulary: Vocabulary) -> Iterator[list[int]]:
    yield vocabulary.encode(text)
    anchor, anchored = vocabulary.encode(_ANCHOR), vocabulary.encode(_ANCHOR + text)
    if anchor and anchored[: len(anchor)] == anchor:
        yield anchored[len(anchor) :]


def _without_space(ids: Sequence[int], vocabulary: Vocabulary) -> tuple[int, ...]:
    """Without a piece that is a space alone, as it stands ahead of Chinese at the start of text."""

    def is_space(token_id: int) -> bool:
        return vocabulary.is_text(token_id) and not vocabulary.decode([token_id]).strip()

    return tuple(dropwhile(is_space, ids))
