from __future__ import annotations

from collections.abc import Sequence

import pytest

from sensevoice_service.hotwords import MOST_CREDIT, HotWords, Match, make_hot_words, spell
from sensevoice_service.tags import Vocabulary
from tests.models import Model

PIECES = (
    "<blank>",
    "▁",
    "▁new",
    "▁york",
    "▁he",
    "llo",
    "ai",
    "▁ai",
    "今",
    "天",
    ",",
    "s",
    "▁times",
)
BLANK, SPACE, NEW, YORK, HE, LLO, AI, SPACED_AI, NOW, DAY, COMMA, S, TIMES = range(len(PIECES))
BOOST = 2.0


def decode(ids: list[int]) -> str:
    return "".join(PIECES[i] for i in ids).replace("▁", " ")


VOCABULARY = Vocabulary.from_pieces(PIECES, decode)


def hot_words(*phrases: Sequence[int]) -> HotWords:
    return HotWords(phrases, VOCABULARY, BOOST)


def follow(hot: HotWords, *token_ids: int) -> Match:
    match, before = Match(), None
    for token_id in token_ids:
        match, before = hot.advance(match, before, token_id), token_id
    return match


def gain(hot: HotWords, *token_ids: int) -> float:
    return hot.gain(follow(hot, *token_ids))


def credit(hot: HotWords, *token_ids: int) -> float:
    return hot.credit(follow(hot, *token_ids))


def test_a_phrase_is_worth_more_the_longer_it_is() -> None:
    hot = hot_words([NEW], [NOW, DAY])
    assert 0 < gain(hot, NEW) < gain(hot, NOW, DAY)
    assert gain(hot, YORK) == 0


def test_a_token_by_itself_is_worth_less_than_one_of_a_phrase() -> None:
    hot = hot_words([NEW], [NOW, DAY])
    assert 0 < gain(hot, NEW) < gain(hot, NOW, DAY) / 2
    both = hot_words([NEW], [NEW, YORK])
    assert gain(both, NEW) == gain(hot, NEW) < credit(both, NEW)


def test_what_is_not_whole_gains_on_credit_and_loses_it_where_it_breaks_off() -> None:
    hot = hot_words([NEW, YORK])
    assert credit(hot, NEW) > 0
    assert gain(hot, NEW) == 0
    assert credit(hot, NEW, TIMES) == gain(hot, NEW, TIMES) == 0
    assert credit(hot, NEW, YORK) == gain(hot, NEW, YORK) > 0


def test_what_was_earned_is_kept() -> None:
    hot = hot_words([NEW, YORK])
    once = gain(hot, NEW, YORK)
    assert gain(hot, NEW, YORK, TIMES) == once
    assert gain(hot, NEW, YORK, TIMES, NEW, YORK) == pytest.approx(2 * once)


def test_credit_has_a_limit_and_the_whole_phrase_has_none() -> None:
    hot = hot_words([NOW, DAY] * 5)
    assert credit(hot, *[NOW, DAY] * 4) == MOST_CREDIT
    assert gain(hot, *[NOW, DAY] * 5) == 10 * BOOST > MOST_CREDIT


def test_a_phrase_that_begins_another_is_not_earned_twice() -> None:
    hot, longer = hot_words([NEW], [NEW, YORK]), hot_words([NEW, YORK])
    assert gain(hot, NEW, YORK) == gain(longer, NEW, YORK)
    assert gain(hot, NEW, TIMES) == gain(hot_words([NEW]), NEW)


def test_a_phrase_that_ends_another_is_earned_where_the_other_breaks_off() -> None:
    hot = hot_words([NEW, YORK, TIMES], [YORK])
    assert gain(hot, NEW, YORK, NEW) == gain(hot_words([YORK]), YORK) > 0
    assert gain(hot, NEW, YORK, TIMES) == gain(hot_words([NEW, YORK, TIMES]), NEW, YORK, TIMES)


def test_a_false_start_does_not_hide_the_phrase_behind_it() -> None:
    hot = hot_words([NEW, NEW, YORK])
    assert gain(hot, NEW, NEW, NEW, YORK) == gain(hot, NEW, NEW, YORK) > 0


def test_a_word_is_not_found_at_the_beginning_of_a_longer_one() -> None:
    hot = hot_words([HE])
    assert gain(hot, HE) > 0
    assert gain(hot, HE, LLO) == 0
    assert gain(hot, HE, COMMA, NEW) == gain(hot, HE, NEW) == gain(hot, HE)


def test_a_word_of_several_pieces_is_found_whole() -> None:
    hot = hot_words([HE, LLO])
    assert gain(hot, HE, LLO, NEW) > 0
    assert gain(hot, HE, NEW) == 0
    assert gain(hot, HE, LLO, S) == 0


def test_a_word_without_a_space_is_found_behind_chinese_and_not_inside_a_word() -> None:
    hot = hot_words([AI])
    assert gain(hot, NOW, AI, DAY) == gain(hot, AI) > 0
    assert gain(hot, HE, AI) == 0
    mixed = hot_words([NOW, AI, DAY])
    assert gain(mixed, NOW, AI, DAY) > 0


def test_without_phrases_nothing_is_gained() -> None:
    hot = hot_words()
    assert gain(hot, NEW, YORK) == credit(hot, NEW, YORK) == 0
    assert not hot.token_ids
    assert not hot.can_appear(frozenset(range(len(PIECES))))


def test_a_phrase_can_appear_where_all_of_its_tokens_can() -> None:
    hot = hot_words([NEW, YORK], [NOW])
    assert hot.can_appear(frozenset({NEW, YORK}))
    assert hot.can_appear(frozenset({NOW, NEW}))
    assert not hot.can_appear(frozenset({NEW, TIMES}))


def written(word: str, model: Model) -> set[str]:
    return {model.vocabulary.decode(list(ids)) for ids in spell(word, model.vocabulary)}


def test_words_are_spelled_by_the_model_s_own_tokenizer(demo: Model) -> None:
    assert written("hello world", demo) == {"hello world"}
    assert written(" Hello   World ", demo) == {"hello world"}
    assert written("今天", demo) == {"今天"}
    assert {len(ids) for ids in spell("今天", demo.vocabulary)} == {2}


def test_letters_are_tried_in_each_case_and_without_a_space(small_model: Model) -> None:
    vocabulary = small_model.vocabulary
    found = spell("Ab", vocabulary)
    for text in ("Ab", "ab", "AB"):
        assert tuple(vocabulary.encode(text)) in found
        assert tuple(vocabulary.encode("中" + text)[len(vocabulary.encode("中")) :]) in found


@pytest.mark.parametrize("word", ["", "  ", "xyzzy", "hello xyzzy", "☃", "<|en|>", "hello <|zh|>"])
def test_what_the_model_cannot_write_has_no_spelling(demo: Model, word: str) -> None:
    assert spell(word, demo.vocabulary) == set()


def test_a_list_keeps_the_words_that_can_be_written(demo: Model) -> None:
    hot = make_hot_words(("xyzzy", "hello", "今天"), demo.vocabulary)
    (hello,) = demo.vocabulary.encode("hello")
    assert hello in hot.token_ids
    assert len(hot.token_ids) == 3
