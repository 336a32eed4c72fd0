"""What a client of OpenAI's API asks for in its form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from starlette.datastructures import FormData

from sensevoice_service.routes import forms
from sensevoice_service.routes.errors import UnsupportedFormat
from sensevoice_service.routes.forms import FormLimits
from sensevoice_service.types import LANGUAGES, DecodeOptions, InvalidRequest, Upload
from sensevoice_service.wishes import MAX_HOTWORDS, hotwords_of, phrases_of

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
STREAMED_FORMATS = ("json", "text")
GRANULARITIES = ("segment", "word")
GRANULARITIES_FIELD = "timestamp_granularities[]"

# What clients call the languages, beside their own codes and what follows a code, as in zh-CN.
_LANGUAGES = {
    **dict.fromkeys(("cmn", "chi", "zho", "chinese", "mandarin"), "zh"),
    **dict.fromkeys(("eng", "english"), "en"),
    **dict.fromkeys(("zh-yue", "zh-hk", "cantonese"), "yue"),
    **dict.fromkeys(("jpn", "japanese"), "ja"),
    **dict.fromkeys(("kor", "korean"), "ko"),
}

_PARTING = re.compile(r"[,，、;；\r\n]")
_SENTENCE = re.compile(r"[?!？！。]|^[^.]*\.$")
MAX_PROMPT_WORDS = 50
_MAX_PHRASE_WORDS, _MAX_PHRASE_CHARACTERS = 4, 30


@dataclass(frozen=True)
class Asked:
    """``form`` is one of ``FORMATS``, ``granularities`` are some of ``GRANULARITIES``."""

    upload: Upload
    options: DecodeOptions
    form: str
    granularities: tuple[str, ...]
    is_stream: bool


def asked(form: FormData, limits: FormLimits) -> Asked:
    """Raises ``InvalidRequest`` and ``UnsupportedFormat``."""
    uploads = forms.uploads(form, limits, "file")
    if len(uploads) > 1:
        raise InvalidRequest(f"one file is taken, {len(uploads)} were sent", param="file")
    answer_form = forms.answer_form(form, "response_format", FORMATS, "json")
    is_stream = forms.switch(form, "stream", default=False)
    if is_stream and answer_form not in STREAMED_FORMATS:
        message = f"stream=true takes response_format {' or '.join(STREAMED_FORMATS)}"
        raise UnsupportedFormat(message, param="stream")
    _check_temperature(form)
    return Asked(
        upload=uploads[0],
        options=_decode_options(form),
        form=answer_form,
        granularities=_granularities(form, answer_form),
        is_stream=is_stream,
    )


def _decode_options(form: FormData) -> DecodeOptions:
    names = tuple(dict.fromkeys(map(_language, _values(form, "language", "languages"))))
    if len(names) > 1 and "auto" in names:
        raise InvalidRequest("language must be auto or languages, not both", param="language")
    keywords = ",".join(_values(form, "keywords"))
    words = (
        *forms.hotwords(form),
        *forms.parsed(hotwords_of, keywords, "keywords"),
        *prompt_words(forms.text(form, "prompt")),
    )
    return DecodeOptions(
        language=names[0] if len(names) == 1 else "auto",
        use_itn=forms.switch(form, "use_itn", default=True),
        among=names if len(names) > 1 else (),
        hotwords=tuple(dict.fromkeys(words))[:MAX_HOTWORDS],
    )


def _language(name: str) -> str:
    tag = name.lower().replace("_", "-")
    for known in (tag, tag.partition("-")[0]):
        found = _LANGUAGES.get(known, known)
        if found in LANGUAGES:
            return found
    raise InvalidRequest(f"language must be one of {', '.join(LANGUAGES)}", param="language")


def prompt_words(prompt: str) -> tuple[str, ...]:
    """The words and phrases of a prompt that is a list of them; of any other text, none.

    Whisper's prompts are either names to be spelt right, with commas between them, or the text
    ahead of the audio, whose words are not expected again.
    """
    words = phrases_of(prompt, _PARTING)
    is_list = 2 <= len(words) <= MAX_PROMPT_WORDS and all(map(_is_phrase, words))
    return tuple(dict.fromkeys(words)) if is_list else ()


def _is_phrase(text: str) -> bool:
    if _SENTENCE.search(text) or len(text) > _MAX_PHRASE_CHARACTERS:
        return False
    return len(text.split()) <= _MAX_PHRASE_WORDS


def _granularities(form: FormData, answer_form: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(map(str.lower, _values(form, "timestamp_granularities"))))
    if not names:
        return ("segment",)
    if not set(names) <= set(GRANULARITIES):
        message = f"{GRANULARITIES_FIELD} must be one of {', '.join(GRANULARITIES)}"
        raise UnsupportedFormat(message, param=GRANULARITIES_FIELD)
    if answer_form != "verbose_json":
        message = f"{GRANULARITIES_FIELD} needs response_format=verbose_json"
        raise UnsupportedFormat(message, param=GRANULARITIES_FIELD)
    return names


def _check_temperature(form: FormData) -> None:
    """It has no effect: nothing is drawn at random."""
    given = forms.text(form, "temperature")
    try:
        is_good = not given or 0 <= float(given) <= 1
    except ValueError:
        is_good = False
    if not is_good:
        raise InvalidRequest("temperature must be a number from 0 to 1", param="temperature")


def _values(form: FormData, *fields: str) -> Iterator[str]:
    """Of fields that may be repeated, with or without ``[]``, and have commas in them."""
    for field in fields:
        for value in (*form.getlist(field), *form.getlist(f"{field}[]")):
            if not isinstance(value, str):
                raise InvalidRequest(f"{field} must be text, not a file", param=field)
            yield from filter(None, map(str.strip, value.split(",")))
