"""What the network's first layer reads, for engines other than torch's."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sensevoice_service.encoder import (
    EMOTION_ROW,
    EVENT_ROW,
    EncoderConfig,
    SenseVoice,
    sinusoidal_positions,
)
from sensevoice_service.frontend import FeatureBatch

Features = NDArray[np.float32]


class EncoderInputs:
    """Puts prompts and positions to features, as ``SenseVoice.encode`` does."""

    def __init__(self, model: SenseVoice) -> None:
        self._config: EncoderConfig = model.config
        self._scale = np.float32(math.sqrt(model.config.output_size))
        self._prompts = model.embed.weight.detach().numpy().copy()
        self._positions = np.empty((0, model.config.input_size), np.float32)

    def rows(self, batch: FeatureBatch) -> Iterator[Features]:
        """Each row without its padding: float32 ``(4 + T, input_size)``."""
        languages, textnorms = batch.language_rows.tolist(), batch.textnorm_rows.tolist()
        features = batch.features.numpy()
        for index, length in enumerate(batch.lengths):
            prompts = self._prompts[[languages[index], EMOTION_ROW, EVENT_ROW, textnorms[index]]]
            x = np.concatenate((prompts, features[index, :length]))
            yield x * self._scale + self._first_positions(len(x))

    def _first_positions(self, n_frames: int) -> Features:
        positions = self._positions
        if len(positions) < n_frames:
            positions = sinusoidal_positions(2 * n_frames, self._config.input_size).numpy()
            self._positions = positions  # threads that meet here may replace it by a shorter one
        return positions[:n_frames]
