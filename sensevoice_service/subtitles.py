"""Transcripts as subtitles: SubRip (SRT) and WebVTT."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import accumulate
from typing import TYPE_CHECKING
from unicodedata import east_asian_width

import numpy as np

from sensevoice_service.segments import Sizes, divide, text_of
from sensevoice_service.types import Segment, Transcript, Word
from sensevoice_service.words import in_order, spaced

if TYPE_CHECKING:
    from config import Settings

_ARROW = re.compile("-{2,}>")
_FEWEST = 100.0  # a line more is never worth a better break


@dataclass(frozen=True)
class SubtitleRules:
    """How much text a cue may have, and how long it is shown, seconds.

    A line has up to ``max_line_latin`` characters, up to ``max_line_cjk`` wide ones (Chinese,
    Japanese, Korean), or shares of both.
    """

    max_line_latin: int = 42
    max_line_cjk: int = 21
    max_lines: int = 2
    min_s: float = 0.8
    max_s: float = 7.0

    def __post_init__(self) -> None:
        if min(self.max_line_latin, self.max_line_cjk, self.max_lines) < 1:
            raise ValueError("a cue has at least one line, and a line at least one character")
        if not 0 <= self.min_s <= self.max_s:
            raise ValueError("min_s must be between 0 and max_s")

    @classmethod
    def of(cls, settings: Settings) -> SubtitleRules:
        return cls(
            max_line_latin=settings.SUBTITLE_LINE_LATIN,
            max_line_cjk=settings.SUBTITLE_LINE_CJK,
            max_lines=settings.SUBTITLE_LINES,
            min_s=settings.SUBTITLE_MIN_SEC,
            max_s=settings.SUBTITLE_MAX_SEC,
        )


@dataclass(frozen=True)
class Cue:
    """Lines shown from ``start_ms`` to ``end_ms`` of the file."""

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]


def to_srt(transcript: Transcript, rules: SubtitleRules) -> str:
    """SubRip has no escapes: an arrow in the text, which would part the cue, is shortened."""
    blocks = []
    for number, cue in enumerate(cues(transcript, rules), start=1):
        times = f"{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}"
        lines = [_ARROW.sub("->", line) for line in cue.lines]
        blocks.append("\n".join([str(number), times, *lines, ""]))
    return "\n".join(blocks)


def to_vtt(transcript: Transcript, rules: SubtitleRules) -> str:
    """WebVTT (https://www.w3.org/TR/webvtt1/) with ``&``, ``<`` and ``>`` escaped."""
    blocks = ["WEBVTT\n"]
    for cue in cues(transcript, rules):
        times = f"{_clock(cue.start_ms, '.')} --> {_clock(cue.end_ms, '.')}"
        lines = [escape(line, quote=False) for line in cue.lines]
        blocks.append("\n".join([times, *lines, ""]))
    return "\n".join(blocks)


def cues(transcript: Transcript, rules: SubtitleRules) -> tuple[Cue, ...]:
    """The segments as cues that can be read, in order, none over another or past the end.

    A segment that is too long for one cue is parted at punctuation, pauses and between words. One
    that is too short stays on the screen in the silence behind it; where there is none, it shares a
    cue with what follows.
    """
    stretches: list[Sequence[Word]] = []
    for segment in transcript.segments:
        words = [part for word in _words(segment) for part in _cut(word, rules)]
        layout = _Layout(words, rules)
        stretches += divide(words, layout.cue_end, _each(layout.cue_share)) if words else ()
    return tuple(_timed(_shared(stretches, rules), rules, _ms(transcript.duration_s)))


class _Layout:
    """What of ``words`` fits a line or a cue, by word indices.

    Widths are whole numbers, so that a line of either script is full at its last character.
    """

    def __init__(self, words: Sequence[Word], rules: SubtitleRules) -> None:
        self._words = words
        self._rules = rules
        self._margins = [_width(_margin(word.text), rules) for word in words]
        self._ends = [0, *accumulate(_width(word.text, rules) for word in words)]

    def line_end(self, start: int) -> int:
        """How far a line from ``start`` reaches."""
        end = start
        while end < len(self._words) and self.line_share(start, end + 1) <= 1:
            end += 1
        return end

    def line_share(self, start: int, end: int) -> float:
        width = self._ends[end] - self._ends[start] - self._margins[start]
        return width / (self._rules.max_line_latin * self._rules.max_line_cjk)

    def cue_end(self, start: int) -> int:
        end = start
        for _ in range(self._rules.max_lines):
            end = self.line_end(end) if end < len(self._words) else end
        while end > start + 1 and self._seconds(start, end) > self._rules.max_s:
            end -= 1
        return end

    def cue_share(self, start: int, end: int) -> float:
        width = self.line_share(start, end) / self._rules.max_lines
        return max(width, self._seconds(start, end) / self._rules.max_s)

    def lines(self) -> tuple[str, ...]:
        """All words in as few lines as can be, of like width."""
        parts = divide(self._words, self.line_end, _each(self.line_share), _FEWEST)
        return tuple(text_of(part) for part in parts)

    def _seconds(self, start: int, end: int) -> float:
        return self._words[end - 1].end_s - self._words[start].start_s


def _each(share: Callable[[int, int], float]) -> Callable[[int, int], Sizes]:
    """The shares of all parts from a word to those up to a last one, as ``divide`` asks."""
    return lambda start, last: np.array([share(start, end) for end in range(start + 1, last + 1)])


def _words(segment: Segment) -> Iterator[Word]:
    """The words with single spaces; those of a text alone share its time by their letters."""
    words = segment.words
    if not words:
        found = list(re.finditer(r"\s*\S+", segment.text))
        letter_s = (segment.end_s - segment.start_s) / max(1, len(segment.text))
        at = segment.start_s
        words = tuple(
            Word(at + part.start() * letter_s, at + part.end() * letter_s, part[0])
            for part in found
        )
    for word in words:
        if text := " ".join(word.text.split()):
            yield replace(word, text=" " + text if _margin(word.text) else text)


def _cut(word: Word, rules: SubtitleRules) -> Iterator[Word]:
    """The word, or, if it is wider than a line, lines of it, which share its time."""
    line_width = rules.max_line_latin * rules.max_line_cjk
    if _width(word.text.lstrip(), rules) <= line_width:
        yield word
        return
    texts = [_margin(word.text)]
    for char in word.text.lstrip():
        if _width((texts[-1] + char).lstrip(), rules) > line_width:
            texts.append("")
        texts[-1] += char
    share_s = (word.end_s - word.start_s) / len(texts)
    for k, text in enumerate(texts):
        yield Word(word.start_s + k * share_s, word.start_s + (k + 1) * share_s, text)


def _margin(text: str) -> str:
    """The space ahead of a word, which is not shown where a line begins."""
    return " " if text[:1].isspace() else ""


def _width(text: str, rules: SubtitleRules) -> int:
    is_wide = [east_asian_width(char) in "WF" for char in text]
    return sum(rules.max_line_latin if wide else rules.max_line_cjk for wide in is_wide)


def _shared(stretches: Iterable[Sequence[Word]], rules: SubtitleRules) -> list[Sequence[Word]]:
    """The stretches; one that the next leaves too little time is put before it, if both fit."""
    shared: list[Sequence[Word]] = []
    for words in stretches:
        both = _joined(shared[-1], words) if shared else words
        if shared and words[0].start_s - both[0].start_s < rules.min_s and _is_cue(both, rules):
            shared[-1] = both
        else:
            shared.append(words)
    return shared


def _joined(left: Sequence[Word], right: Sequence[Word]) -> Sequence[Word]:
    first = right[0]
    text = first.text if _margin(first.text) else spaced(left[-1].text, first.text)
    return [*left, replace(first, text=text), *right[1:]]


def _is_cue(words: Sequence[Word], rules: SubtitleRules) -> bool:
    return _Layout(words, rules).cue_end(0) == len(words)


def _timed(
    stretches: Sequence[Sequence[Word]], rules: SubtitleRules, duration_ms: int
) -> Iterator[Cue]:
    starts = in_order([_ms(words[0].start_s) for words in stretches], duration_ms, apart=1)
    for words, start, limit in zip(stretches, starts, [*starts[1:], duration_ms], strict=False):
        end = max(_ms(words[-1].end_s), start + _ms(rules.min_s))
        end = min(end, start + _ms(rules.max_s), limit)
        yield Cue(start, end, _Layout(words, rules).lines())


def _ms(time_s: float) -> int:
    return round(time_s * 1000)


def _clock(time_ms: int, point: str) -> str:
    """Hours have two digits or more."""
    minutes, ms = divmod(time_ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{ms // 1000:02d}{point}{ms % 1000:03d}"
