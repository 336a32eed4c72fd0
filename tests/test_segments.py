from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest

from sensevoice_service.segments import Passage, divide, ends_sentence, make_segments
from sensevoice_service.types import Segment, Word

SPEECH = ("Speech",)


def words_of(*timed: tuple[str, float, float]) -> list[Word]:
    return [Word(start_s, end_s, text) for text, start_s, end_s in timed]


def passage(*timed: tuple[str, float, float], tags: str = "en HAPPY") -> Passage:
    language, emotion = tags.split()
    return Passage(words_of(*timed), language, emotion, SPEECH)


def spoken(texts: Sequence[str], start_s: float = 0.0, each_s: float = 0.4) -> list[Word]:
    """One word right after the other."""
    return [
        Word(start_s + k * each_s, start_s + (k + 1) * each_s, text) for k, text in enumerate(texts)
    ]


def texts(segments: Sequence[Segment]) -> list[str]:
    return [segment.text for segment in segments]


def test_words_without_a_pause_are_one_segment() -> None:
    (segment,) = make_segments([passage(("the", 0.2, 0.5), (" cat", 0.5, 0.9), (" sat", 1.3, 1.5))])
    assert (segment.start_s, segment.end_s, segment.text) == (0.2, 1.5, "the cat sat")
    assert (segment.language, segment.emotion, segment.events) == ("en", "HAPPY", SPEECH)
    assert "".join(word.text for word in segment.words) == segment.text


def test_a_pause_parts_segments() -> None:
    segments = make_segments([passage(("the", 0.2, 0.5), (" cat", 1.0, 1.3), (" sat", 1.3, 1.5))])
    assert texts(segments) == ["the", "cat sat"]
    assert (segments[1].start_s, segments[1].words[0].text) == (1.0, "cat")


@pytest.mark.parametrize("end", [".", "?", "!", "。", "？", "！", "…", '."', "。”", ".)"])
def test_the_end_of_a_sentence_parts_segments(end: str) -> None:
    segments = make_segments([passage((f"cats{end}", 0, 0.5), (" the", 0.5, 0.9))])
    assert texts(segments) == [f"cats{end}", "the"]


@pytest.mark.parametrize("word", ["Mr.", "J.", "U.S.", "e.g.", "3.5", "a.b", "cat,", "猫，", "《"])
def test_other_points_do_not(word: str) -> None:
    assert not ends_sentence(Word(0, 1, word))
    assert len(make_segments([passage((word, 0, 0.5), (" the", 0.5, 0.9))])) == 1


@pytest.mark.parametrize(("pause_s", "n_segments"), [(0.0, 1), (0.1, 1), (0.3, 2)])
def test_a_comma_parts_segments_where_there_is_a_short_pause(
    pause_s: float, n_segments: int
) -> None:
    for comma in (",", "，", "、"):
        said = passage((f"cat{comma}", 0, 0.5), (" the", 0.5 + pause_s, 1.2))
        assert len(make_segments([said])) == n_segments
    assert len(make_segments([passage(("cat", 0, 0.5), (" the", 0.5 + pause_s, 1.2))])) == 1


def test_a_seam_between_like_chunks_parts_nothing() -> None:
    segments = make_segments(
        [passage(("the", 0, 0.5)), passage((" cat", 0.5, 0.9)), passage((" sat", 1.5, 1.9))]
    )
    assert texts(segments) == ["the cat", "sat"]


@pytest.mark.parametrize("tags", ["en SAD", "zh HAPPY"])
def test_a_segment_has_the_tags_of_one_kind_of_chunk(tags: str) -> None:
    left, right = passage(("the", 0, 0.5)), passage((" cat", 0.5, 0.9), tags=tags)
    segments = make_segments([left, right])
    assert texts(segments) == ["the", "cat"]
    assert [f"{segment.language} {segment.emotion}" for segment in segments] == ["en HAPPY", tags]


def test_other_events_begin_a_segment_and_passages_without_words_add_none() -> None:
    empty = Passage([], "nospeech", "EMO_UNKNOWN", ("BGM",))
    noisy = Passage(words_of((" cat", 0.5, 0.9)), "en", "HAPPY", ("BGM",))
    segments = make_segments([empty, passage(("the", 0, 0.5)), empty, noisy])
    assert [segment.events for segment in segments] == [SPEECH, ("BGM",)]
    assert make_segments([]) == make_segments([empty]) == ()


def test_speech_without_an_end_is_parted_at_the_best_places() -> None:
    said = spoken(["word", *[" word"] * 49])  # 20 s
    said[29] = Word(said[29].start_s, said[29].end_s, " word,")
    segments = make_segments([Passage(said, "en", "HAPPY", SPEECH)])
    assert [len(segment.words) for segment in segments] == [30, 20]
    assert all(segment.end_s - segment.start_s <= 15 for segment in segments)


def test_the_parts_of_endless_speech_are_alike() -> None:
    segments = make_segments([Passage(spoken("今" * 100), "zh", "HAPPY", SPEECH)])  # 40 s
    assert sorted(len(segment.words) for segment in segments) == [33, 33, 34]


def test_a_word_longer_than_a_segment_may_be_stays_whole() -> None:
    segments = make_segments([passage(("the", 0, 20), (" cat", 20, 50))])
    assert texts(segments) == ["the", "cat"]


def random_passages(rng: np.random.Generator) -> Iterator[Passage]:
    at_s = 0.0
    for _ in range(int(rng.integers(0, 6))):
        words = []
        for _ in range(int(rng.integers(0, 80))):
            at_s += float(rng.choice([0, 0, 0, 0, 0.1, 0.3, 1.0]))
            end_s = at_s + float(rng.uniform(0.02, 0.6))
            text = str(rng.choice([" the", " cat", "今", "天，", " sat.", "。", " in,", " Mr."]))
            words.append(Word(at_s, end_s, text))
            at_s = end_s
        emotion = str(rng.choice(["HAPPY", "SAD"]))
        yield Passage(words, str(rng.choice(["en", "zh"])), emotion, SPEECH)


@pytest.mark.parametrize("seed", range(50))
def test_no_word_is_lost_or_moved(seed: int) -> None:
    passages = list(random_passages(np.random.default_rng(seed)))
    segments = make_segments(passages)
    words = [word for passage in passages for word in passage.words]
    kept = [word for segment in segments for word in segment.words]
    assert [(w.start_s, w.end_s, w.text.strip()) for w in kept] == [
        (w.start_s, w.end_s, w.text.strip()) for w in words
    ]
    for segment in segments:
        assert "".join(word.text for word in segment.words) == segment.text
        assert segment.start_s == segment.words[0].start_s
        assert segment.end_s == segment.words[-1].end_s
        assert segment.end_s - segment.start_s <= 15
        gaps_s = [after.start_s - before.end_s for before, after in pairwise(segment.words)]
        assert all(gap_s < 0.5 for gap_s in gaps_s)


def test_words_are_divided_into_the_fewest_parts_unless_a_break_is_bad() -> None:
    words = spoken(["a", "b", "cat.", "d", "e"])

    def part(reach: int) -> list[str]:
        parts = divide(
            words, lambda i: min(i + reach, 5), lambda i, j: np.arange(1, j - i + 1) / reach
        )
        return ["".join(word.text for word in words) for words in parts]

    assert part(5) == ["abcat.de"]
    assert part(4) == ["abcat.", "de"]
    assert part(3) == ["abcat.", "de"]
    assert part(1) == ["a", "b", "cat.", "d", "e"]
