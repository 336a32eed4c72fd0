"""Stand-ins for the library of ``native/``."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from sensevoice_service.frontend import N_MELS
from sensevoice_service.types import LFR_STACK_FRAMES, lfr_frames


@dataclass(frozen=True)
class Encoding:
    """The arguments of ``sensevoice_encode``, in the order of ``encoder.h``."""

    network: Any
    cores: Any
    x: ctypes.c_void_p
    n_frames: ctypes.c_void_p
    n_utterances: int
    has_followers: bool
    n_calls_before: ctypes.c_uint32
    ids: ctypes.c_void_p
    hidden: ctypes.c_void_p
    logits: ctypes.c_void_p


class Silent:
    """Takes weights in int8, and makes features of zeros."""

    def sensevoice_weight_parts(self) -> int:
        return 0

    def sensevoice_highest_weight_sum(self) -> int:
        return 0

    def sensevoice_features(self, *arguments: Any) -> int:
        _, _, n_samples, out = arguments
        n_bytes = lfr_frames(n_samples.value) * LFR_STACK_FRAMES * N_MELS * 4
        ctypes.memset(out, 0, n_bytes)
        return 1
