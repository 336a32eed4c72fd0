from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest

from sensevoice_service.tags import Vocabulary, join_texts
from sensevoice_service.types import FRAME_SAMPLES, SAMPLE_RATE_HZ, Word
from sensevoice_service.words import Token, WordBuilder, in_order, spaced

if TYPE_CHECKING:
    from tests.models import Model

LATIN = ("▁the", "▁cat", "▁don", "▁in", "form", "ation", "s", "t", "hello", "▁f", "x")
MARKS = (*".,，。'()（）《》-%", "▁(", "▁-", "▁$", "▁")
DIGITS = tuple("0123456789")
HANZI = (*"今天气很好我们去看书", "▁今", "公园", "です", "天，")
HANGUL = ("▁안녕", "하세요")
PIECES = ("<unk>", "<|en|>", *LATIN, *MARKS, *DIGITS, *HANZI, *HANGUL)
IDS = {piece: i for i, piece in enumerate(PIECES)}
HOUR_FRAMES = 60_000

Heard = list[tuple[str, int]]  # pieces and their frames on the file's clock


def decode(ids: list[int]) -> str:
    return "".join(PIECES[i] for i in ids).replace("▁", " ").lstrip(" ")


VOCABULARY = Vocabulary.from_pieces(PIECES, decode)


def tokens(heard: Heard, n_frames: int = 1) -> list[Token]:
    return [
        Token(IDS[piece], frame * FRAME_SAMPLES, (frame + n_frames) * FRAME_SAMPLES)
        for piece, frame in heard
    ]


def make_words(
    parts: Sequence[Sequence[Token]], vocabulary: Vocabulary, n_samples: int
) -> list[tuple[Word, ...]]:
    """The words of all parts; what the text gains on the way is all of it."""
    builder = WordBuilder(vocabulary)
    gained = "".join([builder.add(part) for part in parts])
    words = builder.words(n_samples)
    assert gained == "".join(word.text for part in words for word in part)
    return words


def words_of(*parts: Heard, n_frames: int = HOUR_FRAMES) -> list[Word]:
    made = make_words([tokens(part) for part in parts], VOCABULARY, n_frames * FRAME_SAMPLES)
    return [word for part in made for word in part]


def texts(*pieces: str) -> list[str]:
    """The words of pieces said one after the other."""
    return [word.text for word in words_of([(piece, 3 * k) for k, piece in enumerate(pieces)])]


BYTES = ("▁ab", *(f"<0x{byte:02X}>" for byte in "猫".encode()), "▁c")


def decode_bytes(ids: list[int]) -> str:
    """As a tokenizer that spells out in bytes what it has no piece for."""
    pieces = (BYTES[i] for i in ids)
    spelt = [
        bytes([int(piece[3:5], 16)])
        if piece.startswith("<0x")
        else piece.replace("▁", " ").encode()
        for piece in pieces
    ]
    return b"".join(spelt).decode("utf-8", "replace").lstrip(" ")


def test_tokens_that_make_a_character_together_keep_it() -> None:
    vocabulary = Vocabulary.from_pieces(BYTES, decode_bytes)
    heard = [Token(i, 9_600 * i, 9_600 * i + 960) for i in range(len(BYTES))]
    assert decode_bytes([token.id for token in heard]) == "ab猫 c"
    [words] = make_words([heard], vocabulary, 60_000)
    assert "".join(word.text for word in words) == "ab猫 c"


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (["▁the", "▁cat", "s"], ["the", " cats"]),
        (["▁in", "form", "ation"], ["information"]),
        (["▁don", "'", "t"], ["don't"]),
        (["今", "天", "气"], ["今", "天", "气"]),
        (["今", "▁今", "天"], ["今", " 今", "天"]),
        (["▁안녕", "하세요", "▁안녕"], ["안녕하세요", " 안녕"]),
    ],
)
def test_spaces_part_words_and_characters_part_themselves(
    pieces: list[str], words: list[str]
) -> None:
    assert texts(*pieces) == words


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (["▁the", ",", "▁cat", "."], ["the,", " cat."]),
        (["今", "，", "天", "。"], ["今，", "天。"]),
        (["，", "今"], ["，今"]),
        (["今", "《", "看", "书", "》", "。"], ["今", "《看", "书》。"]),
        (["▁the", "▁(", "s", ")"], ["the", " (s)"]),
        (["hello", "(", "x", ")"], ["hello", "(x)"]),
        (["▁the", "▁", "-", "▁cat"], ["the -", " cat"]),
        (["▁the", "▁-", "▁cat"], ["the -", " cat"]),
        (["▁the", "（"], ["the（"]),
        (["。"], ["。"]),
        (["（"], ["（"]),
    ],
)
def test_marks_stay_with_the_word_that_they_stand_beside(
    pieces: list[str], words: list[str]
) -> None:
    assert texts(*pieces) == words


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        (["今", "hello", "s", "天"], ["今", "hellos", "天"]),
        (["今", "，", "hello"], ["今，", "hello"]),
        (["天", "3", "5", "天"], ["天", "35", "天"]),
        (["3", ".", "5", "%"], ["3.5%"]),
        (["▁$", "3", "0"], ["$30"]),
        (["▁the", "3"], ["the3"]),
    ],
)
def test_letters_and_digits_beside_a_character_are_a_word(
    pieces: list[str], words: list[str]
) -> None:
    assert texts(*pieces) == words


def test_digits_far_apart_are_words() -> None:
    said = words_of([("1", 5), ("2", 9), ("3", 40), ("4", 44)])
    assert [word.text for word in said] == ["12", "34"]
    assert said[1].start_s == pytest.approx(40 * 0.06 - 0.03)


def test_a_piece_of_several_characters_becomes_a_word_for_each() -> None:
    said = words_of([("公园", 10), ("です", 15), ("天，", 20), ("看", 24)])
    assert [word.text for word in said] == [*"公园です", "天，", "看"]
    starts_s = [word.start_s for word in said]
    assert starts_s == pytest.approx([0.57, 0.72, 0.87, 1.02, 1.17, 1.41])


@pytest.mark.parametrize("space", ["▁", "▁the"])
def test_spaces_that_nothing_follows_are_left_out(space: str) -> None:
    assert texts("▁cat", "▁the", "▁") == ["cat", " the"]
    assert texts("▁", "▁", space) in ([], ["the"])


def test_a_word_starts_at_the_edge_of_its_first_frame() -> None:
    """Frame i is centred on i × 60 ms."""
    first, second = words_of([("▁the", 0), ("▁cat", 100)])
    assert first.start_s == 0
    assert second.start_s == pytest.approx(5.97)


def test_a_word_lasts_until_the_next_one_where_there_is_no_pause() -> None:
    said = words_of([("▁the", 10), ("▁cat", 16), ("▁in", 21), ("form", 23), ("s", 27)])
    assert [word.start_s for word in said[1:]] == [word.end_s for word in said[:-1]]


def test_ahead_of_a_pause_a_word_lasts_as_long_as_its_letters() -> None:
    short, long, syllables, _ = words_of([("▁f", 10), ("▁the", 40), ("▁안녕", 70), ("▁the", 99)])
    lengths_s = [word.end_s - word.start_s for word in (short, long, syllables)]
    assert lengths_s == pytest.approx([0.09, 0.27, 0.56])


def test_a_word_lasts_through_its_last_frame() -> None:
    (word,) = make_words([tokens([("▁the", 10)], n_frames=20)], VOCABULARY, SAMPLE_RATE_HZ * 60)[0]
    assert word.end_s == pytest.approx(30 * 0.06 - 0.03)


def test_marks_tell_no_times() -> None:
    """A stop may be written long after the last word, a bracket long before the first."""
    (first, second) = words_of([("（", 10), ("今", 50), ("）", 55), ("。", 120), ("天", 200)])
    assert first.text == "（今）。"
    assert first.start_s == pytest.approx(2.97)
    assert first.end_s < 3.5
    assert second.start_s == pytest.approx(11.97)


def test_the_last_word_ends_with_the_file() -> None:
    (word,) = words_of([("▁the", 99)], n_frames=100)
    assert word.end_s == pytest.approx(6.0)


def test_parts_are_told_apart_and_joined_as_their_script_is() -> None:
    made = make_words(
        [
            tokens([("▁the", 5)]),
            tokens([("▁cat", 15), ("▁", 17)]),
            tokens([]),
            tokens([("今", 25)]),
            tokens([("hello", 35)]),
            tokens([("▁the", 45)]),
        ],
        VOCABULARY,
        SAMPLE_RATE_HZ * 60,
    )
    assert [[word.text for word in part] for part in made] == [
        *(["the"], [" cat"], [], ["今"], ["hello"], [" the"]),
    ]


def test_a_stop_at_the_start_of_a_part_closes_the_part_before() -> None:
    made = make_words(
        [tokens([("今", 5)]), tokens([]), tokens([("。", 15), ("天", 18)])], VOCABULARY, 10**6
    )
    assert [[word.text for word in part] for part in made] == [["今。"], [], ["天"]]


def test_a_text_grows_at_its_end_also_by_marks_that_belong_to_the_part_before() -> None:
    builder = WordBuilder(VOCABULARY)
    parts = [[("▁the", 5), ("▁", 6)], [(".", 15)], [], [(",", 20), ("▁cat", 25)], [("今", 35)]]
    gained = [builder.add(tokens(part)) for part in parts]
    assert gained == ["the", " .", "", ", cat", "今"]
    texts = [[word.text for word in part] for part in builder.words(10**6)]
    assert texts == [["the .,"], [], [], [" cat"], ["今"]]


def test_words_heard_at_one_time_follow_each_other() -> None:
    said = words_of([("今", 20), ("天", 22)], [("气", 21), ("很", 22), ("好", 40)])
    starts_s = [word.start_s for word in said]
    assert [word.text for word in said] == list("今天气很好")
    assert all(a < b for a, b in pairwise(starts_s))
    assert starts_s[3] - starts_s[1] < 0.1


def test_nothing_heard_gives_no_words() -> None:
    assert make_words([], VOCABULARY, 0) == []
    assert make_words([[], []], VOCABULARY, 0) == [(), ()]


def random_parts(rng: np.random.Generator) -> tuple[list[Heard], int]:
    """Any pieces at any rate; parts that follow each other, lap over, or lie apart."""
    parts: list[Heard] = []
    frame = 0
    for _ in range(int(rng.integers(1, 6))):
        frame = max(0, frame + int(rng.integers(-8, 30)))
        frames = frame + np.cumsum(rng.integers(1, int(rng.integers(2, 30)), rng.integers(0, 30)))
        pieces = rng.choice(PIECES[2:], len(frames)).tolist()
        parts.append(list(zip(pieces, frames.tolist(), strict=True)))
        frame = int(frames[-1]) if len(frames) else frame
    return parts, frame + 1


def assert_true(words: list[Word], n_samples: int) -> None:
    times = [time for word in words for time in (word.start_s, word.end_s)]
    assert times == sorted(times)
    assert all(0 <= time <= n_samples / SAMPLE_RATE_HZ + 1e-9 for time in times)
    starts_s = [word.start_s for word in words]
    assert len(set(starts_s)) == len(starts_s)
    assert all(word.text.strip() for word in words)


@pytest.mark.parametrize("seed", range(100))
def test_any_words_are_in_order_inside_the_file_and_none_is_lost(seed: int) -> None:
    rng = np.random.default_rng(seed)
    parts, n_frames = random_parts(rng)
    words = words_of(*parts, n_frames=n_frames)
    assert_true(words, n_frames * FRAME_SAMPLES)
    written = "".join(word.text for word in words)
    whole = join_texts(VOCABULARY.text([IDS[piece] for piece, _ in part]) for part in parts)
    assert written.replace(" ", "") == whole.replace(" ", "")
    first = VOCABULARY.text([IDS[piece] for piece, _ in parts[0]])
    assert "".join(word.text for word in words_of(parts[0])) == first


@pytest.mark.parametrize("seed", range(20))
def test_the_text_is_that_of_the_tokenizer(small_model: Model, seed: int) -> None:
    vocabulary = small_model.vocabulary
    rng = np.random.default_rng(seed)
    ids = [i for i in rng.integers(vocabulary.size, size=60).tolist() if vocabulary.is_text(i)]
    heard = [Token(i, k * FRAME_SAMPLES, (k + 1) * FRAME_SAMPLES) for k, i in enumerate(ids)]
    (words,) = make_words([heard], vocabulary, 200 * FRAME_SAMPLES)
    assert_true(list(words), 200 * FRAME_SAMPLES)
    assert "".join(word.text for word in words) == vocabulary.text(ids)


@pytest.mark.parametrize(
    ("before", "text", "expected"),
    [
        ("the", "cat", " cat"),
        ("the", " cat", " cat"),
        ("今", "天", "天"),
        ("今", " cat", "cat"),
        ("the", ",", ","),
        ("", "cat", "cat"),
    ],
)
def test_a_space_is_where_the_script_has_one(before: str, text: str, expected: str) -> None:
    assert spaced(before, text) == expected


@pytest.mark.parametrize(
    ("starts", "ordered"),
    [
        ([], []),
        ([3, 20, 50], [3, 20, 50]),
        ([3, 20, 15, 16, 60], [3, 20, 25, 30, 60]),
        ([50, 98, 99, 120], [50, 85, 90, 95]),
        ([-5, -5], [0, 5]),
        ([100] * 30, [*([0] * 11), *range(5, 100, 5)]),
    ],
)
def test_starts_are_put_in_order(starts: list[int], ordered: list[int]) -> None:
    assert in_order(starts, 100, 5) == ordered
