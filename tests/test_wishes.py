from __future__ import annotations

import pytest

from sensevoice_service.wishes import hotwords_of, languages_of, without_controls


@pytest.mark.parametrize(
    ("text", "language", "among"),
    [
        ("", "auto", ()),
        ("auto", "auto", ()),
        (" EN ", "en", ()),
        ("zh,zh,", "zh", ()),
        ("zh, en", "auto", ("zh", "en")),
    ],
)
def test_languages_are_one_or_some_to_detect_one_of(
    text: str, language: str, among: tuple[str, ...]
) -> None:
    assert languages_of(text) == (language, among)


@pytest.mark.parametrize(
    ("text", "words"),
    [("xx", "must be one of auto, zh"), ("zh,auto", "not both"), ("zh;en", "must be one of")],
)
def test_languages_that_there_are_not_are_told(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        languages_of(text)


def test_hot_words_are_parted_by_commas_of_either_script_and_line_ends() -> None:
    text = "new  york,北京，上海、new york\r\nturn\x00 off,,"
    assert hotwords_of(text) == ("new york", "北京", "上海", "turn off")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (",".join(map(str, range(101))), "has 101 words or phrases, at most 100"),
        ("好" * 51, "of over 50 characters"),
    ],
)
def test_too_many_or_too_long_hot_words_are_told(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        hotwords_of(text)


def test_a_text_without_controls_is_one_line() -> None:
    assert without_controls(" a\r\nb\x1b[31m\u2028c\ud800 ") == "ab[31mc"
