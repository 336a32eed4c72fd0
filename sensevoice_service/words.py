"""Tokens on the file's clock → words with their starts and ends.

A CTC model says when a token begins, hardly ever when it ends: its tokens last a frame or two. A
word ends where the next one begins, or, ahead of a pause, after the time that its letters take.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise, takewhile
from unicodedata import category

from sensevoice_service.tags import Vocabulary, join
from sensevoice_service.types import FRAME_SAMPLES, SAMPLE_RATE_HZ, Word

# Stacking repeats the first frame ahead of itself, which centres encoder frame i on i × 60 ms.
_LEAD_SAMPLES = FRAME_SAMPLES // 2
_LETTER_SAMPLES = SAMPLE_RATE_HZ * 9 // 100
_SYLLABLE_SAMPLES = SAMPLE_RATE_HZ * 28 // 100
_NEAR_SAMPLES = SAMPLE_RATE_HZ * 25 // 100  # a shorter gap between words is none
_LEAST_SAMPLES = SAMPLE_RATE_HZ // 50  # between the starts of words, also if heard at one time
_DIGITS_APART_SAMPLES = SAMPLE_RATE_HZ * 6 // 10
_OPENING = ("Ps", "Pi")

# Of single characters, all scripts in use at one time, and of the words that are used most.
_remembered = lru_cache(maxsize=1 << 14)


@dataclass(frozen=True)
class Token:
    """A token of text on the file's clock, from the centre of its first frame.

    ``end_sample`` is the centre of the frame after its last.
    """

    id: int
    start_sample: int
    end_sample: int


@dataclass(frozen=True, slots=True)
class _Look:
    """What tokens of one id add to the text.

    ``text`` is that behind a token of its own kind, ``surface`` the same without space, which takes
    about ``length_samples`` to say. One that ``is_opening`` is a space or opening marks alone: they
    belong to what follows.
    """

    text: str
    surface: str
    length_samples: int
    starts_word: bool
    is_spoken: bool
    is_opening: bool
    is_closing: bool


@dataclass(frozen=True, slots=True)
class _Piece:
    token: Token
    look: _Look


@dataclass(frozen=True, slots=True)
class _Sound:
    """A word before its neighbours are known: it ends at about ``end_sample``."""

    part: int
    text: str
    start_sample: int
    end_sample: int


class WordBuilder:
    """Makes the words of a file part by part; a part is what one chunk adds to it.

    All texts put together are the text of the file: a word brings the space ahead of it, if its
    tokens have one or, at the start of a part, if its script has. Marks belong to the word before
    them, also if a part begins with them, opening ones to the word after; beside a Chinese or
    Japanese character, Latin letters and digits are a word of their own.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._looks = _looks(vocabulary)
        self._sounds: list[_Sound] = []
        self._n_parts = 0
        # Of the last part that has any pieces: the next one may hand back a comma or a stop to it.
        self._last: list[_Piece] = []
        self._last_part = self._n_before_last = 0

    def add(self, part: Sequence[Token]) -> str:
        """Take the next part; returns what the text of the file gained, at its end."""
        pieces = [_Piece(token, self._looks[token.id]) for token in part]
        closing = list(takewhile(lambda piece: piece.look.is_closing, pieces)) if self._last else []
        gained = self._close(closing) if closing else ""
        if own := pieces[len(closing) :]:
            self._last, self._last_part = own, self._n_parts
            self._n_before_last = len(self._sounds)
            gained += self._write_last()
        self._n_parts += 1
        return gained

    def words(self, n_samples: int) -> list[tuple[Word, ...]]:
        """The words of each part of a file of ``n_samples``.

        Starts never run backwards, no word ends after the next one's start, and all times lie in
        the file.
        """
        starts = in_order([s.start_sample for s in self._sounds], n_samples, _LEAST_SAMPLES)
        words: list[list[Word]] = [[] for _ in range(self._n_parts)]
        for sound, start, following in zip(self._sounds, starts, [*starts[1:], None], strict=False):
            end = max(start, min(sound.end_sample, n_samples))
            if following is not None and following - end <= _NEAR_SAMPLES:
                end = following
            words[sound.part] += _characters(sound.text, start, end)
        return [tuple(of_part) for of_part in words]

    def _close(self, marks: Sequence[_Piece]) -> str:
        before = sum(len(sound.text) for sound in self._sounds[self._n_before_last :])
        del self._sounds[self._n_before_last :]
        self._last += marks
        return self._write_last()[before:]

    def _write_last(self) -> str:
        groups = _groups(self._last)
        texts = _texts(groups, self._vocabulary)
        for k, (group, text) in enumerate(zip(groups, texts, strict=True)):
            if not k:
                text = spaced(self._sounds[-1].text if self._sounds else "", text)
            self._sounds.append(_Sound(self._last_part, text, *_span(group)))
        return "".join(sound.text for sound in self._sounds[self._n_before_last :])


def spaced(before: str, text: str) -> str:
    """``text`` with the space that its script wants between it and what stands ``before`` it."""
    return join(before, text)[len(before.rstrip()) :]


def in_order(starts: Sequence[int], stop: int, apart: int) -> list[int]:
    """The starts, moved ``apart`` where they run backwards, and back from ``stop``.

    Where the room is too short for that, the first ones are 0.
    """
    ordered: list[int] = []
    earliest = 0
    for start in starts:
        ordered.append(max(start, earliest))
        earliest = ordered[-1] + apart
    latest = stop - apart
    for k in reversed(range(len(ordered))):
        ordered[k] = max(0, min(ordered[k], latest))
        latest = ordered[k] - apart
    return ordered


class _Looks(dict[int, _Look]):
    """Of a vocabulary's tokens by their ids, each found when it is first asked for."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self._vocabulary = vocabulary

    def __missing__(self, token_id: int) -> _Look:
        # The first of two takes away the space that a tokenizer drops at the start of a text.
        text = _text_behind([token_id], [token_id], self._vocabulary)
        surface = text.strip()
        is_spoken = any(map(_is_spoken, surface))
        is_opening = all(category(char) in _OPENING for char in surface)
        look = self[token_id] = _Look(
            text=text,
            surface=surface,
            length_samples=sum(map(_length, surface)),
            starts_word=self._vocabulary.starts_word(token_id),
            is_spoken=is_spoken,
            is_opening=is_opening,
            is_closing=not (is_spoken or is_opening) and _is_unspaced(surface),
        )
        return look


# All files share them: a server has one vocabulary.
_looks = lru_cache(maxsize=4)(_Looks)


def _groups(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
    """The pieces of each word; spaces that nothing follows are left out."""
    groups: list[list[_Piece]] = []
    waiting: list[_Piece] = []
    for piece in pieces:
        look = piece.look
        if look.is_opening or not (look.is_spoken or groups):
            waiting.append(piece)
        elif look.is_spoken and (not groups or waiting or _begins(groups[-1], piece)):
            groups.append([*waiting, piece])
            waiting = []
        else:
            groups[-1] += [*waiting, piece]
            waiting = []
    while waiting and not waiting[-1].look.surface:
        waiting.pop()
    if groups:
        groups[-1] += waiting
    elif waiting:
        groups.append(waiting)
    return groups


def _begins(group: Sequence[_Piece], piece: _Piece) -> bool:
    """Whether a word begins with ``piece``, ``group`` being what comes before it."""
    if piece.look.starts_word:
        return True
    last = _spoken(group)[-1]
    ahead, surface = last.look.surface, piece.look.surface
    if any(_is_unspaced(char) for char in ahead if _is_spoken(char)):
        return True
    gap = piece.token.start_sample - last.token.end_sample
    return surface[0].isdigit() and ahead[-1].isdigit() and gap > _DIGITS_APART_SAMPLES


def _spoken(group: Sequence[_Piece]) -> Sequence[_Piece]:
    """Without marks, whose place in time means nothing; all, if there is nothing else."""
    return [piece for piece in group if piece.look.is_spoken] or group


def _span(group: Sequence[_Piece]) -> tuple[int, int]:
    """Where a word starts, and about where it ends."""
    spoken = _spoken(group)
    first, last = spoken[0].token, spoken[-1].token
    start = max(0, first.start_sample - _LEAD_SAMPLES)
    length = spoken[-1].look.length_samples
    return start, max(last.end_sample, last.start_sample + length) - _LEAD_SAMPLES


def _length(char: str) -> int:
    """How long a character takes: letters of an alphabet are short, others are syllables."""
    if not _is_spoken(char):
        return 0
    return _LETTER_SAMPLES if char < "\u1100" and char.isalpha() else _SYLLABLE_SAMPLES


def _texts(groups: Sequence[Sequence[_Piece]], vocabulary: Vocabulary) -> list[str]:
    """What each group adds to the text of all.

    Where tokens make something else of each other than of themselves, each group is decoded behind
    the one before it.
    """
    texts = ["".join(piece.look.text for piece in group) for group in groups]
    ids = [[piece.token.id for piece in group] for group in groups]
    if "".join(texts).strip() != vocabulary.decode(list(chain(*ids))).strip():
        texts = [_text_behind(a, b, vocabulary) for a, b in pairwise([[], *ids])]
    return [text if k else text.strip() for k, text in enumerate(texts)]


def _text_behind(before: list[int], ids: list[int], vocabulary: Vocabulary) -> str:
    """What ``ids`` add to the text of those ``before`` them."""
    n_chars = len(vocabulary.decode(before)) if before else 0
    return vocabulary.decode(before + ids)[n_chars:]


def _characters(text: str, start: int, end: int) -> Iterator[Word]:
    """One word, or one for each character if a token has several of them, in equal shares."""
    texts = _split(text)
    if len(texts) == 1:
        yield Word(start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ, text)
        return
    bounds = [(start + (end - start) * k / len(texts)) for k in range(len(texts) + 1)]
    for part, (first, last) in zip(texts, pairwise(bounds), strict=True):
        yield Word(first / SAMPLE_RATE_HZ, last / SAMPLE_RATE_HZ, part)


@_remembered
def _split(text: str) -> tuple[str, ...]:
    """Cut ahead of each unspaced character that is spoken, and ahead of letters behind one."""
    parts = [""]
    waiting = last = ""
    for char in text:
        if char.isspace() or category(char) in _OPENING:
            waiting += char
            continue
        if _is_spoken(char):
            if last and (_is_unspaced(last) or _is_unspaced(char)):
                parts.append("")
            last = char
        parts[-1] += waiting + char
        waiting = ""
    parts[-1] += waiting
    return tuple(parts)


@_remembered
def _is_spoken(char: str) -> bool:
    """Letters, digits and symbols, not punctuation."""
    return category(char)[0] in "LNS"


@_remembered
def _is_unspaced(text: str) -> bool:
    """Whether no space comes between a Latin word and ``text``."""
    return join("x", text) == "x" + text
