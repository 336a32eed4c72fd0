from __future__ import annotations

import html
from itertools import pairwise

import numpy as np
import pytest
import srt  # type: ignore[import-untyped]
import webvtt

from config import Settings, load_settings
from sensevoice_service.subtitles import Cue, SubtitleRules, cues, to_srt, to_vtt
from sensevoice_service.tags import join_texts
from sensevoice_service.types import Segment, Transcript, Word

RULES = SubtitleRules()


def segment(words: list[Word]) -> Segment:
    text = "".join(word.text for word in words)
    return Segment(words[0].start_s, words[-1].end_s, text, "en", "NEUTRAL", (), tuple(words))


def transcript(*segments: Segment, duration_s: float = 3_600.0) -> Transcript:
    text = join_texts(one.text for one in segments)
    return Transcript(text, "en", "NEUTRAL", (), duration_s, segments)


def said(text: str, start_s: float = 0.0, each_s: float = 0.3) -> Segment:
    """One word after the other, a Chinese character being one."""
    parts = [" " + part for part in text.split(" ")] if " " in text else list(text)
    parts[0] = parts[0].lstrip()
    return segment(
        [
            Word(start_s + k * each_s, start_s + (k + 1) * each_s, part)
            for k, part in enumerate(parts)
        ]
    )


def plain(text: str, start_s: float, end_s: float) -> Segment:
    return Segment(start_s, end_s, text, "en", "NEUTRAL", ())


def lines_of(text: str, rules: SubtitleRules = RULES) -> list[tuple[str, ...]]:
    return [cue.lines for cue in cues(transcript(said(text, each_s=0.1)), rules)]


def test_a_short_segment_is_one_cue() -> None:
    (cue,) = cues(transcript(said("the cat sat", start_s=1.2345)), RULES)
    assert cue == Cue(1234, 2134, ("the cat sat",))


def test_no_line_begins_with_a_character_that_belongs_to_the_one_before() -> None:
    said_ = (
        "コンピューターサーバーのデータセンターでエラーが発生してちょっと様々なサポートセンターに"
    )
    heard = [lines_of(said_[at:] * 2) for at in range(20) if said_[at] not in "ュー"]
    lines = [line for cues_ in heard for cue in cues_ for line in cue]
    assert len(lines) > 50
    assert not [line for line in lines if line[0] in "ーュっょ々"]


def test_nothing_said_is_no_cue() -> None:
    assert cues(transcript(), RULES) == ()
    assert to_srt(transcript(), RULES) == ""
    assert to_vtt(transcript(), RULES) == "WEBVTT\n"


def test_a_full_line_of_either_script_stays_one_line() -> None:
    assert lines_of("abcde " * 6 + "abcdef") == [("abcde " * 6 + "abcdef",)]
    assert lines_of("今" * 21) == [("今" * 21,)]


def test_lines_are_balanced_and_broken_at_commas() -> None:
    assert lines_of("abcde " * 7 + "abcdef") == [
        ("abcde abcde abcde abcde", "abcde abcde abcde abcdef"),
    ]
    assert lines_of("今" * 10 + "天" * 14) == [("今" * 10 + "天" * 2, "天" * 12)]
    (lines,) = lines_of("well then the cat, sat on the mat of the other cat")
    assert lines == ("well then the cat,", "sat on the mat of the other cat")


def test_long_segments_are_parted_at_sentences_and_commas() -> None:
    text = "one two three four five six, seven eight nine ten eleven twelve thirteen, four five six"
    (first, second) = lines_of(text)
    assert " ".join(first) == "one two three four five six,"
    assert " ".join(second).endswith("thirteen, four five six")


def test_a_cue_is_shown_no_longer_than_it_may() -> None:
    slow = said("the cat sat on the mat", each_s=2.0)
    shown = cues(transcript(slow), RULES)
    assert [cue.lines for cue in shown] == [("the cat sat",), ("on the mat",)]
    assert [(cue.start_ms, cue.end_ms) for cue in shown] == [(0, 6_000), (6_000, 12_000)]


def test_a_word_that_lasts_too_long_leaves_the_screen() -> None:
    (cue,) = cues(transcript(plain("hm", 1, 20)), RULES)
    assert (cue.start_ms, cue.end_ms) == (1_000, 8_000)


def test_a_word_wider_than_a_line_is_cut() -> None:
    ((first, second),) = lines_of("x" * 50 + " y")
    assert (first, second) == ("x" * 42, "x" * 8 + " y")


def test_a_short_cue_stays_in_the_silence_behind_it() -> None:
    shown = cues(transcript(said("yes", each_s=0.1), said("no", 5, each_s=0.1)), RULES)
    assert [(cue.start_ms, cue.end_ms) for cue in shown] == [(0, 800), (5_000, 5_800)]


def test_it_does_not_stay_past_the_next_cue_or_the_end() -> None:
    long = said("今" * 42, start_s=0.5, each_s=0.1)
    shown = cues(transcript(said("yes no", each_s=0.1), long, duration_s=4.7), RULES)
    assert [(cue.start_ms, cue.end_ms) for cue in shown] == [(0, 500), (500, 4_700)]
    (last,) = cues(transcript(plain("yes", 1.0, 1.1), duration_s=1.4), RULES)
    assert (last.start_ms, last.end_ms) == (1_000, 1_400)


def test_cues_that_follow_too_soon_are_shown_together() -> None:
    quick = [
        segment([Word(0, 0.2, "Yes.")]),
        segment([Word(0.3, 0.5, "No.")]),
        segment([Word(0.5, 0.7, "今。")]),
        segment([Word(0.7, 1.0, "天。")]),
        segment([Word(3, 3.5, "Good.")]),
    ]
    shown = cues(transcript(*quick), RULES)
    assert [cue.lines for cue in shown] == [("Yes. No.今。天。",), ("Good.",)]
    assert (shown[0].start_ms, shown[0].end_ms) == (0, 1_000)


def test_segments_without_words_share_their_time_by_letters() -> None:
    text = " ".join(["word"] * 40)
    shown = cues(transcript(plain(text, 10, 22)), RULES)
    assert len(shown) >= 3
    assert " ".join(line for cue in shown for line in cue.lines) == text
    assert shown[0].start_ms == 10_000
    assert shown[-1].end_ms == 22_000


def test_times_are_rounded_to_milliseconds() -> None:
    rounded = transcript(plain("yes", 1.9996, 4.0004))
    (cue,) = cues(rounded, RULES)
    assert (cue.start_ms, cue.end_ms) == (2_000, 4_000)
    assert "00:00:02,000 --> 00:00:04,000" in to_srt(rounded, RULES)


def test_hours_may_pass_99() -> None:
    day5 = transcript(plain("yes", 359_999.9, 360_002.0), duration_s=400_000.0)
    assert "99:59:59,900 --> 100:00:02,000" in to_srt(day5, RULES)
    assert "99:59:59.900 --> 100:00:02.000" in to_vtt(day5, RULES)
    (cue,) = srt.parse(to_srt(day5, RULES))
    assert cue.end.total_seconds() == 360_002


HOSTILE = (
    "a --> b",
    "a ---> b",
    "00:00:01,000 --> 00:00:02,000",
    "7",
    "<b>bold</b> & <c.red>",
    "a &lt; b",
    "one\n\n2\n00:00:01,000",
    "NOTE this",
    "WEBVTT",
    "tab\tand\u2028line\x85end",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_survives_in_both_formats(text: str) -> None:
    both = transcript(plain(text, 1, 4), plain("after", 5, 6))
    shown = " ".join(text.split())
    first, second = srt.parse(to_srt(both, RULES))
    assert " ".join(first.content.split()) == shown.replace("--->", "->").replace("-->", "->")
    assert second.content == "after"
    one, two = webvtt.from_string(to_vtt(both, RULES)).captions
    assert " ".join(html.unescape(one.raw_text).split()) == shown
    assert one.text == one.raw_text  # the parser found no markup in it
    assert two.text == "after"


TEXTS = (" the", " a", "今", "天，", "ー", "ょ", " sat.", " <in>,", " extraordinary")


def milliseconds(clock: str) -> int:
    hours, minutes, seconds = clock.split(":")
    return (int(hours) * 60 + int(minutes)) * 60_000 + round(float(seconds) * 1000)


def random_transcript(rng: np.random.Generator) -> Transcript:
    segments, at_s = list[Segment](), 0.0
    for _ in range(int(rng.integers(1, 12))):
        words = list[Word]()
        for _ in range(int(rng.integers(1, 60))):
            at_s += float(rng.choice([0, 0, 0, 0.05, 0.4]))
            end_s = at_s + float(rng.uniform(0.02, 0.8))
            text = str(rng.choice(TEXTS))
            words.append(Word(at_s, end_s, text if words else text.lstrip()))
            at_s = end_s
        segments.append(segment(words))
        at_s += float(rng.choice([0, 0.3, 2.0]))
    return transcript(*segments, duration_s=segments[-1].end_s + float(rng.uniform(0, 1)))


def random_rules(rng: np.random.Generator) -> SubtitleRules:
    return SubtitleRules(
        max_line_latin=int(rng.integers(10, 50)),
        max_line_cjk=int(rng.integers(3, 25)),
        max_lines=int(rng.integers(1, 4)),
        min_s=float(rng.uniform(0, 1.5)),
        max_s=float(rng.uniform(1.5, 8)),
    )


@pytest.mark.parametrize("seed", range(60))
def test_cues_keep_their_rules_and_lose_no_text(seed: int) -> None:
    rng = np.random.default_rng(seed)
    script, rules = random_transcript(rng), random_rules(rng)
    shown = cues(script, rules)
    assert all(cue.start_ms < cue.end_ms <= round(script.duration_s * 1000) for cue in shown)
    assert all(before.end_ms <= after.start_ms for before, after in pairwise(shown))
    assert all(cue.end_ms - cue.start_ms <= 1000 * rules.max_s + 1 for cue in shown)
    for cue, limit in zip(shown, [cue.start_ms for cue in shown[1:]], strict=False):
        assert cue.end_ms - cue.start_ms >= min(round(1000 * rules.min_s), limit - cue.start_ms)
    for line in (line for cue in shown for line in cue.lines):
        n_wide = sum(char in "今天，ーょ" for char in line)
        share = n_wide / rules.max_line_cjk + (len(line) - n_wide) / rules.max_line_latin
        assert 0 < share <= 1 + 1e-9
    assert all(1 <= len(cue.lines) <= rules.max_lines for cue in shown)
    text = "".join(line for cue in shown for line in cue.lines)
    assert text.replace(" ", "") == script.text.replace(" ", "")


@pytest.mark.parametrize("seed", range(10))
def test_parsers_read_what_was_written(seed: int) -> None:
    script = random_transcript(np.random.default_rng(seed))
    shown = cues(script, RULES)
    parsed = list(srt.parse(to_srt(script, RULES)))
    assert [one.index for one in parsed] == list(range(1, len(shown) + 1))
    assert [
        Cue(
            round(one.start.total_seconds() * 1000),
            round(one.end.total_seconds() * 1000),
            tuple(one.content.split("\n")),
        )
        for one in parsed
    ] == list(shown)
    captions = webvtt.from_string(to_vtt(script, RULES)).captions
    assert [
        Cue(
            milliseconds(one.start),
            milliseconds(one.end),
            tuple(html.unescape(line) for line in one.lines),
        )
        for one in captions
    ] == list(shown)


@pytest.mark.parametrize(
    "rules",
    [{"max_line_latin": 0}, {"max_line_cjk": 0}, {"max_lines": 0}, {"min_s": -1}, {"max_s": 0.5}],
)
def test_rules_that_leave_no_room_are_refused(rules: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must|at least"):
        SubtitleRules(**rules)  # type: ignore[arg-type]


def test_the_rules_of_the_settings_are_those_by_default() -> None:
    assert SubtitleRules.of(Settings.model_construct()) == SubtitleRules()


def test_each_rule_can_be_set() -> None:
    settings = load_settings(
        SUBTITLE_LINE_LATIN=30,
        SUBTITLE_LINE_CJK=15,
        SUBTITLE_LINES=3,
        SUBTITLE_MIN_SEC=1.5,
        SUBTITLE_MAX_SEC=5.0,
    )
    assert SubtitleRules.of(settings) == SubtitleRules(30, 15, 3, 1.5, 5.0)
