"""The best path of a CTC model: arg-max ids of frames to tokens with their frames.

Graves et al., 2006, "Connectionist Temporal Classification": repeats are joined, blanks dropped.
"""

from __future__ import annotations

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
