from __future__ import annotations

import random

import pytest

from training.scoring import edit_distance, tokens_of


@pytest.mark.parametrize(
    ("reference", "heard", "errors"),
    [
        ("", "", 0),
        ("", "ab", 2),
        ("ab", "", 2),
        ("kitten", "sitting", 3),
        ("abcdef", "abdef", 1),
        ("abc", "abbc", 1),
        ("abc", "xyz", 3),
    ],
)
def test_errors_are_counted(reference: str, heard: str, errors: int) -> None:
    assert edit_distance(reference, heard) == errors


def test_the_distance_has_the_properties_of_one() -> None:
    rng = random.Random(0)
    for _ in range(200):
        a, b, c = ("".join(rng.choices("abc", k=rng.randrange(9))) for _ in range(3))
        assert edit_distance(a, b) == edit_distance(b, a)
        assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
        assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_tokens_are_words_digits_and_characters() -> None:
    assert tokens_of("Hello o'clock 21, 今天3点") == [
        *("hello", "o'clock", "2", "1", "今", "天", "3", "点"),
    ]
