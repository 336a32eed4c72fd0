from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, product

import numpy as np
import pytest
from numpy.typing import NDArray

from sensevoice_service.beam_search import FrameScores, prefer
from sensevoice_service.ctc import best_path
from sensevoice_service.hotwords import LONE_SHARE, HotWords, Match
from sensevoice_service.tags import Vocabulary
from sensevoice_service.types import Hypothesis

PIECES = ("<blank>", *(f"▁w{n}" for n in range(1, 40)))
PROMPTS = [31, 32, 33, 34]


def decode(ids: list[int]) -> str:
    return "".join(PIECES[i] for i in ids).replace("▁", " ")


VOCABULARY = Vocabulary.from_pieces(PIECES, decode)


LONE = 1.25 / LONE_SHARE  # so that a token by itself is worth 1.25 nats


def hot_words(*phrases: Sequence[int], boost: float = 2.5) -> HotWords:
    return HotWords(phrases, VOCABULARY, boost)


def scores_of(probabilities: Sequence[dict[int, float]], n_ids: int = 6) -> FrameScores:
    """Each frame's probabilities by id; the blank has what is left, the others next to nothing."""
    rows = np.full((len(probabilities), n_ids), 1e-9, np.float32)
    for row, frame in zip(rows, probabilities, strict=True):
        row[list(frame)] = list(frame.values())
        row[0] = 1 - row[1:].sum()
    return FrameScores(np.arange(n_ids, dtype=np.int32), np.log(rows))


def greedy_of(scores: FrameScores) -> Hypothesis:
    ids = scores.token_ids[scores.log_probs.argmax(axis=1)]
    return best_path(np.concatenate((PROMPTS, ids)).astype(np.int32))


def hear(scores: FrameScores, hot: HotWords) -> list[tuple[int, int, int]]:
    heard = prefer(hot, scores, greedy_of(scores))
    assert heard.prompt_ids == tuple(PROMPTS)
    columns = (heard.token_ids, heard.first_frames, heard.last_frames)
    assert {column.dtype for column in columns} == {np.dtype(np.int32)}
    return list(zip(*(column.tolist() for column in columns), strict=True))


NEAR_MISS = [{1: 0.9}, {}, {2: 0.7, 3: 0.25}, {2: 0.7, 3: 0.25}, {}, {4: 0.9}]


def test_a_hot_word_that_was_nearly_heard_is_written_at_its_own_frames() -> None:
    scores = scores_of(NEAR_MISS)
    assert hear(scores, hot_words()) == [(1, 0, 0), (2, 2, 3), (4, 5, 5)]
    assert hear(scores, hot_words([3], boost=LONE)) == [(1, 0, 0), (3, 2, 3), (4, 5, 5)]


def test_it_replaces_what_it_resembles_and_is_not_squeezed_in_beside_it() -> None:
    """One frame of three would be cheaper to take than all."""
    scores = scores_of([{}, *[{2: 0.6, 3: 0.3}] * 3, {}])
    assert hear(scores, hot_words([3], boost=LONE)) == [(3, 1, 3)]


def test_one_that_is_far_from_what_was_heard_is_not() -> None:
    scores = scores_of([{1: 0.9}, {}, {2: 0.98, 3: 0.001}, {}])
    greedy = greedy_of(scores)
    assert prefer(hot_words([3]), scores, greedy) is greedy


def test_where_no_hot_word_is_likely_the_arg_max_is_kept_as_it_is() -> None:
    scores = scores_of(NEAR_MISS)
    greedy = greedy_of(scores)
    assert prefer(hot_words([5], [1, 5]), scores, greedy) is greedy
    assert prefer(hot_words(), scores, greedy) is greedy


def test_half_a_phrase_changes_nothing() -> None:
    scores = scores_of([*NEAR_MISS, {5: 0.01}])
    greedy = greedy_of(scores)
    assert prefer(hot_words([3, 5]), scores, greedy) is greedy


def test_a_phrase_is_carried_by_all_of_its_tokens() -> None:
    """One of them alone would be too unlikely."""
    scores = scores_of([{1: 0.6, 3: 0.3}, {}, {2: 0.95, 4: 0.02}, {}, {5: 0.9}])
    assert [i for i, _, _ in hear(scores, hot_words([3, 4, 5]))] == [3, 4, 5]
    assert [i for i, _, _ in hear(scores, hot_words([4]))] == [1, 2, 5]


def test_what_was_heard_anyhow_keeps_its_frames() -> None:
    scores = scores_of(NEAR_MISS)
    assert hear(scores, hot_words([1], [2], [4])) == hear(scores, hot_words())


def test_a_hot_word_said_twice_is_written_twice() -> None:
    scores = scores_of([{2: 0.6, 3: 0.3}, {}, {2: 0.6, 3: 0.3}])
    assert hear(scores, hot_words([3], boost=LONE)) == [(3, 0, 0), (3, 2, 2)]


def test_an_utterance_of_one_frame_and_of_silence() -> None:
    assert hear(scores_of([{2: 0.6, 3: 0.3}]), hot_words([3], boost=LONE)) == [(3, 0, 0)]
    assert hear(scores_of([{}, {}]), hot_words([3])) == []


def test_ids_are_those_of_the_vocabulary_not_of_the_columns() -> None:
    log_probs = scores_of(NEAR_MISS).log_probs
    scores = FrameScores(np.array([0, 11, 12, 13, 14, 15], np.int32), log_probs)
    assert [i for i, _, _ in hear(scores, hot_words([13], boost=LONE))] == [11, 13, 14]


def test_frames_where_all_is_unlikely_are_searched_too() -> None:
    flat = np.full((20, 6), -9.0, np.float32)
    flat[5, 3] = -1.0
    scores = FrameScores(np.arange(6, dtype=np.int32), flat)
    assert 3 in [i for i, _, _ in hear(scores, hot_words([3], boost=LONE))]


def best_by_brute_force(hot: HotWords, log_probs: NDArray[np.float32]) -> tuple[int, ...]:
    totals: dict[tuple[int, ...], float] = {}
    n_frames, n_ids = log_probs.shape
    for path in product(range(n_ids), repeat=n_frames):
        text = tuple(i for i, _ in groupby(path) if i)
        probability = float(np.exp(log_probs[np.arange(n_frames), path].sum()))
        totals[text] = totals.get(text, 0.0) + probability
    return max(totals, key=lambda text: totals[text] * np.exp(gain_of(hot, text)))


def gain_of(hot: HotWords, text: Sequence[int]) -> float:
    match, before = Match(), None
    for token_id in text:
        match, before = hot.advance(match, before, token_id), token_id
    return hot.gain(match)


@pytest.mark.parametrize("seed", range(20))
def test_it_finds_the_text_whose_paths_and_gains_are_worth_most(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2.0, (40, 4))
    logits = logits[np.diff(logits.argmax(axis=1), prepend=-1) != 0][:6]  # no runs to be joined
    log_probs = np.asarray(logits - np.logaddexp.reduce(logits, axis=1)[:, None], np.float32)
    hot = hot_words([1, 2], [3], boost=1.5)
    scores = FrameScores(np.arange(4, dtype=np.int32), log_probs)
    text = best_by_brute_force(hot, log_probs)
    if gain_of(hot, text):
        assert tuple(i for i, _, _ in hear(scores, hot)) == text
    else:
        greedy = greedy_of(scores)
        assert prefer(hot, scores, greedy) is greedy
