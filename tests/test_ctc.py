from __future__ import annotations

from itertools import groupby, product

import numpy as np
import pytest
from numpy.typing import NDArray

from sensevoice_service.ctc import align, best_path
from sensevoice_service.types import Hypothesis

PROMPTS = [11, 12, 13, 14]


def heard(*frame_ids: int) -> Hypothesis:
    return best_path(np.array([*PROMPTS, *frame_ids], np.int32))


def tokens(hypothesis: Hypothesis) -> list[tuple[int, int, int]]:
    """Each token with its first and last frame."""
    columns = (hypothesis.token_ids, hypothesis.first_frames, hypothesis.last_frames)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_repeats_are_joined_and_keep_their_first_and_last_frame() -> None:
    assert tokens(heard(7, 7, 7, 8)) == [(7, 0, 2), (8, 3, 3)]


def test_blanks_are_dropped_and_count_as_frames() -> None:
    assert tokens(heard(0, 0, 7, 0, 8, 8, 0)) == [(7, 2, 2), (8, 4, 5)]


def test_a_blank_parts_two_tokens_of_one_id() -> None:
    assert tokens(heard(7, 0, 7)) == [(7, 0, 0), (7, 2, 2)]


def test_prompt_positions_are_kept_apart_with_blanks_and_repeats() -> None:
    hypothesis = best_path(np.array([0, 5, 5, 9, 9, 9, 3], np.int32))
    assert hypothesis.prompt_ids == (0, 5, 5, 9)
    assert tokens(hypothesis) == [(9, 0, 1), (3, 2, 2)]


def test_frames_of_blanks_alone_hold_no_token() -> None:
    hypothesis = heard(0, 0, 0)
    assert tokens(hypothesis) == []
    assert hypothesis.prompt_ids == tuple(PROMPTS)


def test_a_row_of_prompts_alone_holds_no_token() -> None:
    assert tokens(heard()) == []


def test_ids_and_frames_are_int32_and_prompts_are_plain_numbers() -> None:
    for hypothesis in (heard(7, 0, 8), heard()):
        assert hypothesis.token_ids.dtype == np.int32
        assert hypothesis.first_frames.dtype == np.int32
        assert hypothesis.last_frames.dtype == np.int32
        assert [type(prompt) for prompt in hypothesis.prompt_ids] == [int] * 4


def test_any_row_is_read_as_a_walk_over_its_runs_reads_it() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        row = rng.integers(0, 4, rng.integers(1, 40)).tolist()
        expected, frame = [], 0
        for token_id, run in groupby(row):
            length = len(list(run))
            if token_id:
                expected.append((token_id, frame, frame + length - 1))
            frame += length
        assert tokens(heard(*row)) == expected


def log_probs_of(rng: np.random.Generator, n_frames: int, n_tokens: int) -> NDArray[np.float32]:
    logits = rng.normal(0, 2, (n_frames, n_tokens))
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=1)[:, None], np.float32)


def test_tokens_of_the_best_path_are_aligned_to_its_frames() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        log_probs = log_probs_of(rng, int(rng.integers(1, 30)), 5)
        greedy = heard(*log_probs.argmax(axis=1).tolist())
        first, last = align(log_probs, greedy.token_ids.tolist())
        assert first.dtype == last.dtype == np.int32
        assert first.tolist() == greedy.first_frames.tolist()
        assert last.tolist() == greedy.last_frames.tolist()


def test_given_tokens_take_the_likeliest_of_all_their_paths() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        log_probs = log_probs_of(rng, 6, 3)
        columns = rng.integers(1, 3, 2).tolist()
        paths = [path for path in product(range(3), repeat=6) if spelled(path) == columns]
        likeliest = max(paths, key=lambda path: float(log_probs[np.arange(6), path].sum()))
        wanted = tokens(heard(*likeliest))
        first, last = align(log_probs, columns)
        assert list(zip(columns, first.tolist(), last.tolist(), strict=True)) == wanted


def spelled(path: tuple[int, ...]) -> list[int]:
    return [token_id for token_id, _ in groupby(path) if token_id]


def test_nothing_is_aligned_to_nothing() -> None:
    first, last = align(np.zeros((3, 2), np.float32), [])
    assert first.tolist() == last.tolist() == []


def test_a_token_said_twice_needs_a_blank_between() -> None:
    log_probs = log_probs_of(np.random.default_rng(2), 3, 2)
    first, last = align(log_probs, [1, 1])
    assert (first.tolist(), last.tolist()) == ([0, 2], [0, 2])
    with pytest.raises(ValueError, match="2 tokens do not fit 2 frames"):
        align(log_probs[:2], [1, 1])
