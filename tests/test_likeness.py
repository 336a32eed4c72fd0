from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sensevoice_service.check_utterance import check_chunk
from sensevoice_service.engine import Precision
from sensevoice_service.frontend import FeatureBatch
from sensevoice_service.likeness import likeness, require_likeness
from sensevoice_service.types import ModelError
from tests.models import CPU, Model


class Deaf:
    """An engine whose hidden states are the same whatever it is given."""

    precision: Precision = "int8"
    device = CPU

    def __init__(self, demo: Model, value: float) -> None:
        self.frontend = demo.engine.frontend
        self._size = demo.engine.model.config.output_size
        self._value = value

    def hidden(self, batch: FeatureBatch) -> list[NDArray[np.float32]]:
        shapes = ((length + 4, self._size) for length in batch.lengths)
        return [np.full(shape, self._value, np.float32) for shape in shapes]


def test_it_is_one_for_the_same_and_none_for_noise() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(50, 64)).astype(np.float32)
    assert likeness([a[:20], a[20:]], [a[:20], 2 * a[20:]]) == pytest.approx(1.0, abs=1e-6)
    assert abs(likeness([a], [rng.normal(size=a.shape).astype(np.float32)])) < 0.1


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan])
def test_an_engine_that_hears_nothing_is_refused(demo: Model, value: float) -> None:
    with pytest.raises(ModelError, match=r"int8 on this CPU .* agree with fp32 .* QUANTIZE=off"):
        require_likeness(demo.engine, Deaf(demo, value), check_chunk())


def test_in_fp32_a_gpu_can_only_be_left(demo: Model) -> None:
    deaf = Deaf(demo, 0.0)
    deaf.precision, deaf.device = "fp32", torch.device("cuda:1")
    with pytest.raises(ModelError, match=r"fp32 on cuda:1 .* DEVICE=cpu"):
        require_likeness(demo.engine, deaf, check_chunk())
