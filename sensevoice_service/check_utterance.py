"""Speech that ships with the project, to see that an engine hears what the fp32 model hears."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from sensevoice_service.types import Chunk, DecodeOptions

CHECK_UTTERANCE = Path(__file__).parents[1] / "samples" / "hello.wav"


def check_chunk() -> Chunk:
    """Two seconds of it."""
    with wave.open(str(CHECK_UTTERANCE)) as reader:
        samples = np.frombuffer(reader.readframes(reader.getnframes()), "<i2")
    return Chunk(samples.astype(np.float32) / np.float32(32_768), 0, 0, DecodeOptions())
