"""What hot words gain and what they cost, on the bundled model; the table is ``bench.hotwords``."""

from __future__ import annotations

import numpy as np

from bench.hotwords import (
    KINDS,
    LIST_PHRASES,
    SEED,
    Condition,
    Score,
    count,
    draw,
    score,
    share_of,
)
from sensevoice_service.loading import EngineOptions, open_model
from sensevoice_service.model_store import open_folder
from training.speech import Espeak
from training.train import DEMO_FOLDER

N_SENTENCES = 120


def test_in_noise_hot_words_are_heard_more_often_and_seldom_made_up(espeak: Espeak) -> None:
    opened = open_model(open_folder(DEMO_FOLDER), EngineOptions("cpu"))
    scores: list[Score] = []
    for index, (language, phrase_words) in enumerate(KINDS):
        condition = Condition(language, phrase_words, noise_db=-22.0)
        sentences = draw(condition, espeak, SEED + 100 + index, N_SENTENCES)
        scores.append(score(opened, condition, sentences))
    recall, false, word_error = (
        np.mean([getattr(one, name) for one in scores], axis=0)
        for name in ("recall", "false", "word_error")
    )
    assert recall[1] >= recall[0] + 0.04
    assert recall[1] >= 0.93
    assert false[1] <= false[0] + 0.01
    assert word_error[1] < word_error[0]


def test_a_sentence_holds_the_first_phrase_of_its_list_and_no_strange_one(espeak: Espeak) -> None:
    for language, phrase_words in KINDS:
        for sentence in draw(Condition(language, phrase_words, -24.0), espeak, SEED, 10):
            assert count(sentence.held[0], sentence.words) > 0
            assert not any(count(phrase, sentence.words) for phrase in sentence.strange)
            assert len(sentence.held) == len(sentence.strange) == LIST_PHRASES
            assert {len(phrase) for phrase in sentence.held} == {phrase_words}


def test_phrases_are_counted_word_by_word() -> None:
    words = ("new", "york", "new", "york", "newer")
    assert count(("new", "york"), words) == 2
    assert count(("new",), words) == 2
    assert count(("york", "york"), words) == count(("a",) * 6, words) == 0
    assert share_of([(("new",),), (("old",), ("york",)), (("old",),)], [words] * 3) == 2 / 3
