from __future__ import annotations

import io

import numpy as np
import pytest
import sentencepiece

from sensevoice_service.tags import (
    UNKNOWN_EMOTION,
    UNKNOWN_LANGUAGE,
    Tags,
    Vocabulary,
    join,
    join_texts,
)

TAGS = (
    *("zh", "en", "yue", "ja", "ko", "de", "minnan", "zh/en", "nospeech"),
    *("HAPPY", "SAD", "ANGRY", "NEUTRAL", "FEARFUL", "DISGUSTED", "SURPRISED", "EMO_UNKNOWN"),
    *("Speech", "BGM", "/BGM", "Applause", "Laughter", "Cry", "Sneeze", "Breath", "Cough"),
    *("Sing", "Event_UNK", "withitn", "woitn", "startoftranscript", "SPECIAL_TOKEN_7", "0.02"),
)
SENTENCES = (
    "The cat sat on the mat. The end.",
    "good morning to you and good night",
    "Less < and | or > are letters too.",
    "今天天气很好，我们去公园。",
    "안녕하세요 여러분",
)


class Tokenizer:
    """A tiny sentencepiece model with the tags as user-defined pieces, like the published one."""

    def __init__(self) -> None:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES),
            model_writer=model,
            model_type="bpe",
            vocab_size=160,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            user_defined_symbols=[f"<|{name}|>" for name in TAGS],
            minloglevel=2,
        )
        self.model = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

    def tag(self, name: str) -> int:
        return int(self.model.PieceToId(f"<|{name}|>"))

    def ids(self, text: str) -> list[int]:
        return [int(i) for i in self.model.EncodeAsIds(text)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer()


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    model = tokenizer.model
    pieces = [model.IdToPiece(i) for i in range(model.GetPieceSize())]
    return Vocabulary.from_pieces(pieces, model.DecodeIds)


def prompt(tokenizer: Tokenizer, *names: str) -> list[int]:
    return [tokenizer.tag(name) for name in names]


def test_the_four_prompt_positions_are_read(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    ids = prompt(tokenizer, "en", "HAPPY", "BGM", "withitn")
    assert vocabulary.tags(ids) == Tags("en", "HAPPY", ("BGM",))
    assert vocabulary.tags(np.array(ids, np.int32)) == vocabulary.tags(ids)


@pytest.mark.parametrize("language", ["zh", "yue", "ja", "ko", "nospeech", "de", "minnan", "zh/en"])
def test_languages_are_known_by_name(
    tokenizer: Tokenizer, vocabulary: Vocabulary, language: str
) -> None:
    tags = vocabulary.tags(prompt(tokenizer, language, "EMO_UNKNOWN", "Event_UNK", "woitn"))
    assert tags == Tags(language, "EMO_UNKNOWN", ("Event_UNK",))


def test_any_position_may_hold_any_tag(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    ids = prompt(tokenizer, "woitn", "Speech", "ja", "SAD")
    assert vocabulary.tags(ids) == Tags("ja", "SAD", ("Speech",))


def test_blanks_and_words_at_prompt_positions_are_passed_over(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    word = tokenizer.ids("good")[0]
    assert vocabulary.tags([0, word, 0, 0]) == Tags(UNKNOWN_LANGUAGE, UNKNOWN_EMOTION, ())
    assert vocabulary.tags([]) == Tags(UNKNOWN_LANGUAGE, UNKNOWN_EMOTION, ())
    assert vocabulary.tags([0, tokenizer.tag("SAD"), word, 0]).emotion == "SAD"


def test_the_first_of_several_languages_counts_and_every_event_once(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    tags = vocabulary.tags(prompt(tokenizer, "en", "zh", "Cough", "BGM", "Cough"))
    assert (tags.language, tags.events) == ("en", ("Cough", "BGM"))


def test_the_ends_of_events_and_names_of_tasks_are_no_events(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    names = ("/BGM", "startoftranscript", "SPECIAL_TOKEN_7", "0.02")
    assert vocabulary.tags(prompt(tokenizer, *names)).events == ()


def test_words_on_both_sides_of_a_tag_survive(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    ids = [
        tokenizer.tag("BGM"),
        *tokenizer.ids("good"),
        tokenizer.tag("Laughter"),
        *tokenizer.ids("morning"),
        tokenizer.tag("BGM"),
    ]
    assert vocabulary.text(ids) == "good morning"
    assert vocabulary.body_events(ids) == ("BGM", "Laughter")


def test_a_tag_inside_a_word_does_not_part_it(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    pieces = tokenizer.ids("公园")
    assert vocabulary.text([pieces[0], tokenizer.tag("Cough"), *pieces[1:]]) == "公园"


@pytest.mark.parametrize("text", ["The. The.", "The cat.", "今天天气很好，", "안녕하세요 여러분"])
def test_literal_words_survive(tokenizer: Tokenizer, vocabulary: Vocabulary, text: str) -> None:
    assert vocabulary.text(tokenizer.ids(text)) == text


def test_text_that_looks_like_a_tag_is_kept(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    spelled = [i for letter in "<|tag|>" for i in tokenizer.ids("x" + letter)[-1:]]
    assert vocabulary.text(spelled) == "<|tag|>"


def test_control_pieces_are_no_text(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    assert vocabulary.text([0, 1, *tokenizer.ids("good"), 0, 2]) == "good"
    assert vocabulary.text([]) == ""


def test_a_trailing_space_piece_leaves_no_space(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    assert vocabulary.text([*tokenizer.ids("good"), tokenizer.model.PieceToId("▁")]) == "good"


def test_the_blank_is_no_text_wherever_it_stands(tokenizer: Tokenizer) -> None:
    model = tokenizer.model
    pieces = [model.IdToPiece(i) for i in range(model.GetPieceSize())]
    good, blank = tokenizer.ids("good"), tokenizer.ids("night")[-1]
    vocabulary = Vocabulary.from_pieces(pieces, model.DecodeIds, blank_id=blank)
    assert vocabulary.text([blank, *good, blank]) == vocabulary.raw([blank], good) == "good"


def test_numpy_ids_are_decoded(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    ids = np.array(tokenizer.ids("good night"), np.int32)
    assert vocabulary.text(ids) == "good night"


def test_words_start_at_spaces_and_at_chinese_characters(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    piece_id = tokenizer.model.PieceToId
    assert vocabulary.starts_word(piece_id("▁good"))
    assert vocabulary.starts_word(piece_id("天"))
    assert not vocabulary.starts_word(piece_id("."))
    assert not vocabulary.starts_word(piece_id("，"))
    assert not vocabulary.starts_word(piece_id("g"))
    assert not vocabulary.starts_word(tokenizer.tag("en"))


def test_a_word_goes_on_where_a_letter_follows_a_letter(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    good, g, stop, day, comma, korean = (
        tokenizer.model.PieceToId(piece) for piece in ("▁good", "g", ".", "天", "，", "안")
    )
    assert korean != tokenizer.model.unk_id()
    assert not vocabulary.is_joint(good, g)
    assert not vocabulary.is_joint(korean, g)
    assert not vocabulary.is_joint(g, korean)
    joints = [(None, g), (good, good), (good, stop), (stop, g), (day, g), (g, day), (comma, g)]
    assert all(vocabulary.is_joint(before, after) for before, after in joints)


def test_tags_are_found_by_name(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    found = vocabulary.tag_ids(["zh", "en", "klingon"])
    assert found == {"zh": tokenizer.tag("zh"), "en": tokenizer.tag("en")}


def test_a_vocabulary_may_spell_nothing() -> None:
    vocabulary = Vocabulary.from_pieces(["<blank>", "a"], lambda ids: "a" * len(ids))
    assert vocabulary.encode("a") == []


def test_raw_text_joins_repeated_prompts_and_drops_blanks(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    en, bgm = tokenizer.tag("en"), tokenizer.tag("BGM")
    good = tokenizer.ids("good")
    assert vocabulary.raw([en, en, 0, bgm], good) == "<|en|><|BGM|> good"
    assert vocabulary.raw([en, 0, en, 0], good) == "<|en|><|en|> good"
    assert vocabulary.raw([en, bgm], []) == "<|en|><|BGM|>"
    assert vocabulary.raw([], good) == "good"


def test_raw_text_joins_a_first_token_that_repeats_the_last_prompt(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    en, bgm = tokenizer.tag("en"), tokenizer.tag("BGM")
    assert vocabulary.raw([en, bgm], [bgm, en]) == "<|en|><|BGM|><|en|>"
    assert vocabulary.raw([en, bgm], [bgm, en], first_frame=1) == "<|en|><|BGM|><|BGM|><|en|>"


@pytest.mark.parametrize("seed", range(20))
def test_raw_text_is_that_of_the_whole_row_of_arg_max_ids(
    tokenizer: Tokenizer, vocabulary: Vocabulary, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    choice = [0, tokenizer.tag("en"), tokenizer.tag("BGM"), *tokenizer.ids("good day")]
    row = rng.choice(choice, size=16).tolist()
    runs = [k for k in range(16) if k == 0 or row[k] != row[k - 1]]
    expected = tokenizer.model.DecodeIds([row[k] for k in runs if row[k]])
    body = row[4:]
    starts = [k for k in range(12) if body[k] and (k == 0 or body[k] != body[k - 1])]
    first_frame = starts[0] if starts else 0
    tokens = [body[k] for k in starts]
    assert vocabulary.raw(row[:4], tokens, first_frame=first_frame) == expected


@pytest.mark.parametrize(
    ("left", "right", "joined"),
    [
        ("good", "morning", "good morning"),
        ("Good.", "Morning", "Good. Morning"),
        ("今天", "天气", "今天天气"),
        ("今天，", "天气", "今天，天气"),
        ("こん", "にちは", "こんにちは"),
        ("안녕", "여러분", "안녕 여러분"),
        ("안녕 ABC", "여러분", "안녕 ABC 여러분"),
        ("我用", "iPhone", "我用iPhone"),
        ("iPhone", "很好", "iPhone很好"),
        ("Hello。", "World", "Hello。World"),
        ("word", ", and", "word, and"),
        ("word ", " and", "word and"),
        ("𠮷", "野家", "𠮷野家"),
        ("", "word", "word"),
        ("word", "", "word"),
        ("", "", ""),
    ],
)
def test_texts_are_joined_as_their_script_is_written(left: str, right: str, joined: str) -> None:
    assert join(left, right) == joined


def test_many_texts_are_joined_in_order() -> None:
    assert join_texts(["", " one ", "", "two", "三", "四", "five"]) == "one two三四five"
    assert join_texts([]) == ""
