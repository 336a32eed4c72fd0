"""Stand-ins for the library of ``native/``."""

from __future__ import annotations

import ctypes
from typing import Any

from sensevoice_service.frontend import N_MELS
from sensevoice_service.types import LFR_STACK_FRAMES, lfr_frames


class Silent:
    """Makes features of zeros."""

    def sensevoice_features(self, *arguments: Any) -> int:
        _, _, n_samples, out = arguments
        n_bytes = lfr_frames(n_samples.value) * LFR_STACK_FRAMES * N_MELS * 4
        ctypes.memset(out, 0, n_bytes)
        return 1
