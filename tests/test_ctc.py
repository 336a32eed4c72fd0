from __future__ import annotations

from itertools import groupby

import numpy as np

from sensevoice_service.ctc import best_path
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
