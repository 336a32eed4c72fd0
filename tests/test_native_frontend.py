"""Features by C against those of torch, which are held to FunASR's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sensevoice_service.check_utterance import check_chunk
from sensevoice_service.frontend import INT16_SCALE, Frontend, mel_banks
from sensevoice_service.native_frontend import NativeFrontend, triangles
from sensevoice_service.types import lfr_frames
from tests.engines import NATIVE_TARGETS, native_library
from tests.models import Model, chunk_of, noise, tone

CLOSE = 2e-4  # of features that reach from -8 to 8


@pytest.fixture(scope="module")
def plain(demo: Model) -> Frontend:
    return demo.engine.frontend


@pytest.fixture(scope="module", params=NATIVE_TARGETS, ids=lambda target: target.name)
def native(request: pytest.FixtureRequest, plain: Frontend) -> NativeFrontend:
    return NativeFrontend(plain, native_library(request.param))


@pytest.mark.parametrize("n_samples", [1, 399, 400, 401, 559, 560, 2_960, 16_000, 37_777])
def test_each_length_has_the_features_of_torch(
    native: NativeFrontend, plain: Frontend, n_samples: int
) -> None:
    (found, lengths), (wanted, _) = (one.features([noise(n_samples)]) for one in (native, plain))
    assert lengths == [lfr_frames(n_samples)]
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, atol=CLOSE, rtol=0)


def test_speech_tones_and_silence_have_the_features_of_torch(
    native: NativeFrontend, plain: Frontend
) -> None:
    spoken = check_chunk().samples
    for samples in (spoken, 1e-4 * spoken, tone(8_000, 3_000.0), np.zeros(8_000, np.float32)):
        (found, _), (wanted, _) = (one.features([samples]) for one in (native, plain))
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)


def test_rows_of_a_batch_end_in_zeros(native: NativeFrontend, plain: Frontend) -> None:
    chunks = [chunk_of(noise(n), language="zh") for n in (16_000, 700, 9_000)]
    found, wanted = native(chunks), plain(chunks)
    assert found.lengths == wanted.lengths
    assert found.n_frames is not None
    torch.testing.assert_close(found.features, wanted.features, atol=CLOSE, rtol=0)
    assert not found.features[1, found.lengths[1] :].any()
    assert torch.equal(found.language_rows, wanted.language_rows)


def test_whole_numbers_are_the_samples_that_they_stand_for(native: NativeFrontend) -> None:
    floats = np.round(noise(5_000) * INT16_SCALE) / np.float32(INT16_SCALE)
    whole = (floats * INT16_SCALE).astype(np.int16)
    (found, _), (wanted, _) = (native.features([one]) for one in (whole, floats))
    assert torch.equal(found, wanted)


def test_samples_that_lie_apart_are_read_in_their_order(native: NativeFrontend) -> None:
    samples = noise(8_000)
    (found, _), (wanted, _) = (
        native.features([one]) for one in (samples[::2], samples[::2].copy())
    )
    assert torch.equal(found, wanted)


def test_want_of_memory_is_told(plain: Frontend) -> None:
    class Full:
        def sensevoice_features(self, *arguments: Any) -> int:
            return 0

    as_library: Any = Full()
    with pytest.raises(MemoryError, match="features of 8000 samples"):
        NativeFrontend(plain, as_library).features([noise(8_000)])


def test_triangles_are_the_banks_without_their_zeros() -> None:
    banks = mel_banks().numpy()
    first_bins, n_bins, weights = triangles(banks)
    rebuilt, at = np.zeros_like(banks), 0
    for band, (first, n) in enumerate(zip(first_bins, n_bins, strict=True)):
        rebuilt[first : first + n, band] = weights[at : at + n]
        at += n
    assert at == len(weights)
    assert np.array_equal(rebuilt, banks)
