"""Paths of a CTC model: the best of all, and the best for tokens that are given.

Graves et al., 2006, "Connectionist Temporal Classification": repeats are joined, blanks dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sensevoice_service.types import PROMPT_FRAMES, Hypothesis

BLANK_ID = 0


def best_path(frame_ids: NDArray[np.int32]) -> Hypothesis:
    """``frame_ids`` is one row's arg-max, int32 ``(4 + T,)``, without padding."""
    prompts, frames = frame_ids[:PROMPT_FRAMES], frame_ids[PROMPT_FRAMES:]
    starts = np.flatnonzero(np.diff(frames, prepend=-1)).astype(np.int32)
    ends = np.append(starts[1:], np.int32(len(frames))) - 1
    spoken = frames[starts] != BLANK_ID
    return Hypothesis(
        token_ids=frames[starts][spoken],
        first_frames=starts[spoken],
        last_frames=ends[spoken].astype(np.int32),
        prompt_ids=tuple(prompts.tolist()),
    )


def align(
    log_probs: NDArray[np.float32], columns: Sequence[int]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """First and last frame, int32 ``(n_tokens,)`` each, of tokens on their likeliest path.

    ``log_probs`` is ``(T, n)`` with the blank in column 0, ``columns`` are the tokens' columns in
    order. For the tokens of the best path these are its frames. Raises ``ValueError`` where there
    are too few frames for the tokens.
    """
    labels = np.zeros(2 * len(columns) + 1, np.intp)  # a blank ahead of each token, and one behind
    labels[1::2] = columns
    states = _likeliest_states(log_probs[:, labels], labels)
    of_token = [np.flatnonzero(states == 2 * k + 1) for k in range(len(columns))]
    if not all(len(frames) for frames in of_token):
        raise ValueError(f"{len(columns)} tokens do not fit {len(log_probs)} frames")
    first = np.array([frames[0] for frames in of_token], np.int32)
    return first, np.array([frames[-1] for frames in of_token], np.int32)


def _likeliest_states(scores: NDArray[np.float32], labels: NDArray[np.intp]) -> NDArray[np.intp]:
    """Viterbi over ``(T, n_states)``: stay, go on, or go past a blank between unlike tokens."""
    n_frames, n_states = scores.shape
    cannot_skip = np.ones(n_states, bool)
    cannot_skip[2:] = (labels[2:] == 0) | (labels[2:] == labels[:-2])
    steps = np.zeros((n_frames, n_states), np.intp)
    reached = np.full((3, n_states), -np.inf)
    best = np.full(n_states, -np.inf)
    best[:2] = scores[0, :2]
    for frame in range(1, n_frames):
        reached[0] = best
        reached[1, 1:] = best[:-1]
        reached[2, 2:] = best[:-2]
        reached[2, cannot_skip] = -np.inf
        steps[frame] = reached.argmax(axis=0)
        best = reached.max(axis=0) + scores[frame]
    states = np.zeros(n_frames, np.intp)
    states[-1] = n_states - 2 + best[-2:].argmax() if n_states > 1 else 0
    for frame in range(n_frames - 1, 0, -1):
        states[frame - 1] = states[frame] - steps[frame, states[frame]]
    return states
