from __future__ import annotations

import pytest
import sentencepiece

from training.lexicon import (
    BASE,
    BLANK_ID,
    SPACE,
    WIDE,
    Language,
    phrases,
    pieces,
    sentencepiece_model,
    spell,
)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("one two three", "1 2 3"),
        ("ten", "10"),
        ("zero nineteen", "0 19"),
        ("twenty", "20"),
        ("twenty one", "21"),
        ("twenty ten", "20 10"),
        ("twenty twenty five six", "20 25 6"),
        ("one twenty", "1 20"),
        ("half past nine", "half past 9"),
    ],
)
def test_english_numbers_become_digits(words: str, text: str) -> None:
    assert decoded(words.split(), "en") == text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("一二三", "123"),
        ("十", "10"),
        ("十一", "11"),
        ("三十", "30"),
        ("三十五", "35"),
        ("二十三十", "2030"),
        ("十二十", "1020"),
        ("十十", "1010"),
        ("零十", "010"),
        ("十零", "100"),
        ("三点半", "3点半"),
        ("十点一刻", "10点1刻"),
    ],
)
def test_chinese_numbers_become_digits(words: str, text: str) -> None:
    assert decoded(list(words), "zh") == text


def decoded(words: list[str], language: Language, *, use_itn: bool = True) -> str:
    """By the tokenizer that is shipped, from ids to text."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    spelled = [piece for word in spell(words, language, use_itn=use_itn) for piece in word]
    text: str = processor.DecodeIds([processor.PieceToId(piece) for piece in spelled])
    return text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_without_itn_all_words_are_written_as_they_are(language: Language) -> None:
    words = list(WIDE.of(language))
    joint = " " if language == "en" else ""
    assert decoded(words, language, use_itn=False) == joint.join(words)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_wide_list_holds_the_base_list_and_is_at_least_twice_as_wide(
    language: Language,
) -> None:
    base, wide = BASE.of(language), WIDE.of(language)
    assert len(set(wide)) == len(wide) >= 2 * len(base)
    assert set(base) < set(wide)


def test_each_piece_has_one_id_and_blank_is_the_first() -> None:
    names = pieces()
    assert len(set(names)) == len(names)
    assert names[BLANK_ID] == "<unk>"
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    assert [processor.IdToPiece(i) for i in range(len(names))] == names


def test_the_tokenizer_finds_the_words_of_a_text() -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    found = processor.EncodeAsPieces("hello world 今天")
    assert [piece for piece in found if piece != SPACE] == [
        SPACE + "hello",
        SPACE + "world",
        "今",
        "天",
    ]


def test_phrases_are_within_the_wide_list() -> None:
    for language in ("en", "zh"):
        known = set(WIDE.of(language))
        assert len(phrases(language)) > 20
        assert all(known.issuperset(words) for words in phrases(language))
