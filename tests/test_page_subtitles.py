"""The page makes subtitles itself, by the service's rules: both must give the same bytes."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pytest

from sensevoice_service.cli.remote import transcript_of
from sensevoice_service.formats import FileOutcome, file_body
from sensevoice_service.subtitles import SubtitleRules, to_srt, to_vtt
from sensevoice_service.types import Transcript, Word
from tests.browser import Browser
from tests.http_service import house, serving
from tests.test_subtitles import (
    HOSTILE,
    plain,
    random_rules,
    random_transcript,
    said,
    segment,
    transcript,
)

MADE_BY_THE_PAGE = """
const [{ srt, vtt }, { cues }] = await Promise.all(
  ["save", "cues"].map((name) => import(`/page/js/${name}.js`)));
return arguments[0].map(([detail, rules]) => {
  const shown = cues(detail, rules);
  return [srt(shown), vtt(shown)];
});
"""
WIDE_BY_THE_PAGE = """
const { isWide } = await import("/page/js/breaks.js");
return arguments[0].filter((code) => isWide(String.fromCodePoint(code)));
"""


@pytest.fixture
def page(browser: Browser) -> Iterator[Browser]:
    with serving(house().app()) as port:
        browser.open(f"http://127.0.0.1:{port}/")
        yield browser


def agree(
    page: Browser, cases: list[tuple[Transcript, SubtitleRules]], timestamps: str = "word"
) -> None:
    # Of the times as they are told, in whole milliseconds.
    details = [file_body(FileOutcome("a", one), timestamps) for one, _ in cases]
    told = [[detail, asdict(rules)] for detail, (_, rules) in zip(details, cases, strict=True)]
    made = page.waiting_script(MADE_BY_THE_PAGE, told)
    for detail, (_, rules), (srt, vtt) in zip(details, cases, made, strict=True):
        script = transcript_of(detail)
        assert srt == to_srt(script, rules)
        assert vtt == to_vtt(script, rules)


@pytest.mark.parametrize("timestamps", ["word", "segment"])
def test_random_transcripts_are_cut_alike(page: Browser, timestamps: str) -> None:
    rng = np.random.default_rng(7)
    cases = [(random_transcript(rng), random_rules(rng)) for _ in range(60)]
    agree(page, cases, timestamps)


SPOKEN = " the| a|今|天，| sat.| Mr.| e.g.| <in>,| extraordinary|。| “well”;|かな|、| 한국| (so)"


def with_pauses(rng: np.random.Generator) -> Transcript:
    """Words of all kinds, with pauses of all lengths between them, in one segment."""
    words, at_s = list[Word](), 0.0
    for text in rng.choice(SPOKEN.split("|"), 80):
        at_s += float(rng.choice([0, 0, 0.05, 0.3, 0.499, 0.5, 0.7]))
        words.append(Word(at_s, at_s + 0.25, str(text) if words else str(text).lstrip()))
        at_s += 0.25
    return transcript(segment(words), duration_s=at_s)


def test_pauses_and_marks_are_weighed_alike(page: Browser) -> None:
    rng = np.random.default_rng(11)
    agree(page, [(with_pauses(rng), random_rules(rng)) for _ in range(60)])


def test_punctuation_and_words_that_are_too_long_are_cut_alike(page: Browser) -> None:
    texts = (
        "Dr. Who met Mr. Li at 9 p.m. on a street. It rained, e.g. cats – and dogs; really!",
        "“你好，”他说。“今天天气很好（真的），我们去北京吧！”然后…他走了",
        "한국어는 띄어쓰기가 있습니다. 그래서 다르게 나뉩니다, 그렇죠?",
        "カタカナ、ひらがな。ｶﾀｶﾅ！ＡＢＣ１２３　全角",
        "a" * 130 + " b " + "字" * 70,
    )
    rules = (SubtitleRules(), SubtitleRules(20, 8, 3, 0.5, 4.0), SubtitleRules(9, 3, 1, 0.0, 9.0))
    agree(page, [(transcript(said(text)), rule) for text in texts for rule in rules])


def test_hostile_texts_are_escaped_alike(page: Browser) -> None:
    agree(
        page,
        [
            (transcript(plain(text, 1, 4), plain("after", 5, 6)), SubtitleRules())
            for text in HOSTILE
        ],
        "segment",
    )


def test_a_transcript_of_nothing_is_empty_in_both(page: Browser) -> None:
    agree(page, [(transcript(), SubtitleRules())])


def test_the_page_knows_how_wide_each_character_is(page: Browser) -> None:
    """Of letters, marks, digits and punctuation: symbols are not written by a recogniser."""
    code_points = [
        code for code in range(0x20, 0x110000) if unicodedata.category(chr(code))[0] in "LMNP"
    ]
    wide = page.waiting_script(WIDE_BY_THE_PAGE, code_points)
    assert set(wide) == {
        code for code in code_points if unicodedata.east_asian_width(chr(code)) in "WF"
    }
