"""What a client asks of the recogniser, as it writes it: in a form's field or on a command line."""

from __future__ import annotations

import re

from sensevoice_service.types import LANGUAGES

MAX_HOTWORDS = 100
MAX_HOTWORD_CHARACTERS = 50

_PARTING = re.compile(r"[,，、\r\n]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def without_controls(text: str) -> str:
    """And without blanks at its ends: it stays one line, of an answer or of the log."""
    return _CONTROL.sub("", text).strip()


def phrases_of(text: str, parting: re.Pattern[str]) -> list[str]:
    """What stands between the marks, each on one line; nothing of what is empty."""
    parts = filter(None, parting.split(text))
    phrases = (without_controls(" ".join(part.split())) for part in parts)
    return [phrase for phrase in phrases if phrase]


def languages_of(text: str) -> tuple[str, tuple[str, ...]]:
    """A language, or ``auto`` and those that it is limited to.

    Raises ``ValueError``, which says what the text must be.
    """
    given = (name.strip().lower() for name in text.split(","))
    names = tuple(dict.fromkeys(name for name in given if name)) or ("auto",)
    if not set(names) <= set(LANGUAGES):
        raise ValueError(f"must be one of {', '.join(LANGUAGES)}, or some of them between commas")
    if len(names) == 1:
        return names[0], ()
    if "auto" in names:
        raise ValueError("must be auto or a list of languages, not both")
    return "auto", names


def hotwords_of(text: str) -> tuple[str, ...]:
    """Words and phrases between commas or line ends, once each.

    Raises ``ValueError``, which says what is too much of the text.
    """
    words = tuple(dict.fromkeys(phrases_of(text, _PARTING)))
    if len(words) > MAX_HOTWORDS:
        raise ValueError(f"has {len(words)} words or phrases, at most {MAX_HOTWORDS} are taken")
    if any(len(word) > MAX_HOTWORD_CHARACTERS for word in words):
        raise ValueError(f"has a word or phrase of over {MAX_HOTWORD_CHARACTERS} characters")
    return words
