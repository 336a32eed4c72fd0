"""Token ids → language, emotion, events and plain text.

Tags such as ``<|en|>`` are pieces of the vocabulary. They are told from words by their ids, so that
no text is ever searched for them and no literal word can be mistaken for one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from unicodedata import category

UNKNOWN_LANGUAGE = "unknown"
UNKNOWN_EMOTION = "EMO_UNKNOWN"
NO_SPEECH = "nospeech"

EMOTIONS = frozenset(
    ("HAPPY", "SAD", "ANGRY", "NEUTRAL", "FEARFUL", "DISGUSTED", "SURPRISED", UNKNOWN_EMOTION)
)
_TEXT_NORMS = frozenset(("withitn", "woitn"))

_TAG = re.compile(r"<\|(.+)\|>")
_CONTROLS = frozenset(("<unk>", "<s>", "</s>", "<pad>"))
# The vocabulary has Whisper's hundred codes, Chinese dialects, and pairs such as zh/en.
_LANGUAGE = re.compile(r"nospeech|minnan|wuyu|dialect|[a-z]{2,3}(/[a-z]{2,3})?")
# Names of tasks and times, unused slots, and the ends of events that a tag of their own opened.
_NO_EVENT = re.compile(
    r"/.*|[\d.]+|SPECIAL_TOKEN_\d+|ASR|AED|SER"
    r"|startof.*|endoftext|translate|transcribe|notimestamps"
)
# Han, kana, bopomofo, ideographic and full-width punctuation; Hangul is written with spaces.
_UNSPACED = re.compile(
    "[\u2e80-\u30ff\u3100-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff00-\uff9f\U00020000-\U0003ffff]"
)
_CLOSING = frozenset(",.!?;:%)]}…")
_TRAILING_MARKS = ("Po", "Pe", "Pf")  # Unicode's commas, stops and closing brackets
_SPACE_PIECE = "▁"  # how sentencepiece writes a space


@dataclass(frozen=True)
class Tags:
    """What the prompt positions say, the text norm aside: a client asked for that one itself."""

    language: str
    emotion: str
    events: tuple[str, ...]


def _no_ids(_text: str) -> list[int]:
    return []


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A model's ``size`` pieces, by what they are; build it with ``from_pieces``.

    ``tag_names`` maps the ids of tags to their names (``24885`` → ``"en"``), ``control_ids`` are
    those that stand for no text, and ``word_start_ids`` those that begin a word: pieces with a
    leading ``▁``, and Chinese and Japanese characters; a comma or stop belongs to the word before.
    ``joining_ids`` begin with a letter or digit that goes on with the word before, if that is one
    of ``open_ids``, which end in such a letter or digit. ``encode`` is the way from a text to ids.
    """

    size: int
    tag_names: Mapping[int, str]
    control_ids: frozenset[int]
    word_start_ids: frozenset[int]
    joining_ids: frozenset[int]
    open_ids: frozenset[int]
    decode: Callable[[list[int]], str]
    encode: Callable[[str], list[int]]
    blank_id: int = 0

    @classmethod
    def from_pieces(
        cls,
        pieces: Sequence[str],
        decode: Callable[[list[int]], str],
        encode: Callable[[str], list[int]] = _no_ids,
        *,
        blank_id: int = 0,
    ) -> Vocabulary:
        """``pieces`` by id, and the tokenizer's own ways (``DecodeIds``, ``EncodeAsIds``)."""
        tags = {i: found[1] for i, piece in enumerate(pieces) if (found := _TAG.fullmatch(piece))}
        controls = {i for i, piece in enumerate(pieces) if piece in _CONTROLS}
        starts = {i for i, piece in enumerate(pieces) if _starts_word(piece)}
        joining = {i for i, piece in enumerate(pieces) if piece[:1].isalnum()} - starts
        open_ended = {i for i, piece in enumerate(pieces) if _is_open(piece)}
        controls.add(blank_id)
        return cls(
            size=len(pieces),
            tag_names=tags,
            control_ids=frozenset(controls),
            word_start_ids=frozenset(starts),
            joining_ids=frozenset(joining),
            open_ids=frozenset(open_ended),
            decode=decode,
            encode=encode,
            blank_id=blank_id,
        )

    def is_text(self, token_id: int) -> bool:
        """Neither a tag nor a control piece."""
        return token_id not in self.tag_names and token_id not in self.control_ids

    def starts_word(self, token_id: int) -> bool:
        """Whether text may be parted ahead of this token."""
        return token_id in self.word_start_ids

    def is_joint(self, before: int | None, after: int) -> bool:
        """Whether no word goes on from one token (``None``: there is none) into the next."""
        return after not in self.joining_ids or before not in self.open_ids

    def tags(self, prompt_ids: Iterable[int]) -> Tags:
        """Read by name, not by position: the model may leave a blank or a word in any of them."""
        names = self._names(prompt_ids)
        languages = [name for name in names if _is_language(name)]
        emotions = [name for name in names if name in EMOTIONS]
        return Tags(
            language=languages[0] if languages else UNKNOWN_LANGUAGE,
            emotion=emotions[0] if emotions else UNKNOWN_EMOTION,
            events=distinct(name for name in names if _is_event(name)),
        )

    def body_events(self, token_ids: Iterable[int]) -> tuple[str, ...]:
        """Events among the words, each once, in order."""
        return distinct(name for name in self._names(token_ids) if _is_event(name))

    def text(self, token_ids: Iterable[int]) -> str:
        """The words alone."""
        return self.decode([int(i) for i in token_ids if self.is_text(int(i))]).strip()

    def tag_ids(self, names: Iterable[str]) -> dict[str, int]:
        """The ids of those tags that the model has, by name."""
        wanted = set(names)
        return {name: i for i, name in self.tag_names.items() if name in wanted}

    def raw(
        self, prompt_ids: Iterable[int], token_ids: Iterable[int], *, first_frame: int = 0
    ) -> str:
        """Text with its tags, as FunASR's ``AutoModel.generate`` gives it.

        Upstream joins repeats over prompt positions and audio frames together, and drops blanks
        only then: a first token in ``first_frame`` 0 that repeats the last prompt is joined to it.
        """
        row = [int(i) for i in prompt_ids]
        body = [int(i) for i in token_ids]
        if row and body and first_frame == 0 and body[0] == row[-1]:
            del body[0]
        joined = [this for k, this in enumerate(row) if k == 0 or this != row[k - 1]]
        return self.decode([i for i in joined + body if i != self.blank_id])

    def _names(self, ids: Iterable[int]) -> list[str]:
        return [self.tag_names[int(i)] for i in ids if int(i) in self.tag_names]


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once, in the order of first appearance."""
    return tuple(dict.fromkeys(names))


def join(left: str, right: str) -> str:
    """Two stretches of text, with a space between them where the script has one.

    No space beside a Chinese or Japanese character or punctuation mark, not even one that faces a
    Latin word: the model writes mixed text that way unless a piece brings its own space. None
    ahead of closing punctuation. One space everywhere else, Korean included.
    """
    left, right = left.rstrip(), right.lstrip()
    if not left or not right or right[0] in _CLOSING:
        return left + right
    is_unspaced = _UNSPACED.match(left[-1]) or _UNSPACED.match(right[0])
    return left + right if is_unspaced else f"{left} {right}"


def join_texts(texts: Iterable[str]) -> str:
    return reduce(join, texts, "").strip()


def _starts_word(piece: str) -> bool:
    if piece.startswith(_SPACE_PIECE):
        return True
    is_mark = category(piece[:1] or " ") in _TRAILING_MARKS
    return _UNSPACED.match(piece) is not None and not is_mark


def _is_open(piece: str) -> bool:
    return piece[-1:].isalnum() and not _UNSPACED.match(piece[-1])


def _is_language(name: str) -> bool:
    return _LANGUAGE.fullmatch(name) is not None


def _is_event(name: str) -> bool:
    if name in EMOTIONS or name in _TEXT_NORMS or _is_language(name):
        return False
    return _NO_EVENT.fullmatch(name) is None
