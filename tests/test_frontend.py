from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.reference import FunAsr
from sensevoice_service.frontend import (
    LANGUAGE_ROWS,
    WITH_ITN_ROW,
    WITHOUT_ITN_ROW,
    Frontend,
    few_sizes,
    read_cmvn,
    require_known,
    stack_lfr,
)
from sensevoice_service.types import FBANK_WINDOW_SAMPLES, LANGUAGES, fbank_frames, lfr_frames
from tests.models import CPU, Model, Samples, chunk_of, noise, tone

Make = Callable[[int], Samples]

PARITY = 1e-4  # of features whose spread is about 1
ROUNDING = 2e-6  # sums of other lengths, in another order

# Around a window (400 samples) and a shift (160), around an LFR frame, and up to 20 s.
LENGTHS = (400, 401, 559, 560, 561, 1_359, 1_360, 1_361, 16_000, 48_123, 320_000)
SHORT_LENGTHS = (1, 2, 3, 80, 160, 399)


def silence(n_samples: int) -> Samples:
    return np.zeros(n_samples, np.float32)


def square(n_samples: int) -> Samples:
    """At full scale, where one float more would clip."""
    return np.sign(tone(n_samples, 100.0)).astype(np.float32)


def faint(n_samples: int) -> Samples:
    return noise(n_samples, level=1e-4)


def offset(n_samples: int) -> Samples:
    return noise(n_samples, level=0.01) + np.float32(0.3)


KINDS: tuple[Make, ...] = (noise, tone, silence, square, faint, offset)


@pytest.mark.parametrize("make", KINDS)
def test_features_are_those_of_funasr(model: Model, funasr: FunAsr, make: Make) -> None:
    for n_samples in LENGTHS:
        samples = make(n_samples)
        features, lengths = model.engine.frontend.features([samples])
        expected = funasr.features(samples)
        assert lengths == [len(expected)] == [lfr_frames(n_samples)]
        torch.testing.assert_close(features[0], expected, rtol=0, atol=PARITY)


def test_a_mixed_batch_has_the_features_of_funasr_in_every_row(
    model: Model, funasr: FunAsr
) -> None:
    waveforms = [make(n_samples) for make in KINDS for n_samples in LENGTHS]
    features, lengths = model.engine.frontend.features(waveforms)
    for row, samples, length in zip(features, waveforms, lengths, strict=True):
        torch.testing.assert_close(row[:length], funasr.features(samples), rtol=0, atol=PARITY)
        assert not row[length:].any()


def test_a_row_is_in_a_batch_what_it_is_alone(small_model: Model) -> None:
    frontend = small_model.engine.frontend
    waveforms = [make(n) for make in KINDS for n in (*SHORT_LENGTHS, *LENGTHS)]
    features, lengths = frontend.features(waveforms)
    for row, samples, length in zip(features, waveforms, lengths, strict=True):
        alone, _ = frontend.features([samples])
        torch.testing.assert_close(row[:length], alone[0], rtol=0, atol=ROUNDING)


def test_a_row_is_its_own_frames_stacked_and_normalised(small_model: Model) -> None:
    frontend, cmvn = small_model.engine.frontend, read_cmvn(small_model.folder.cmvn)
    waveforms = [noise(n_samples, seed=n_samples) for n_samples in (*LENGTHS, *SHORT_LENGTHS)]
    features, lengths = frontend.features(waveforms)
    for row, samples, length in zip(features, waveforms, lengths, strict=True):
        expected = (stack_lfr(frontend.fbank([samples])) + cmvn.shift) * cmvn.scale
        torch.testing.assert_close(row[:length], expected, rtol=0, atol=ROUNDING)
        assert not row[length:].any()


def test_16_bit_samples_are_as_good_as_floats(small_model: Model) -> None:
    frontend = small_model.engine.frontend
    integers = [(noise(n) * 32_768).clip(-32_768, 32_767).astype(np.int16) for n in (9_000, 399)]
    floats = [one / np.float32(32_768) for one in integers]
    expected, _ = frontend.features(floats)
    assert torch.equal(frontend.features(integers)[0], expected)
    assert torch.equal(frontend.features([integers[0], floats[1]])[0], expected)


def test_frames_of_several_waveforms_follow_each_other(small_model: Model) -> None:
    frontend = small_model.engine.frontend
    waveforms = [noise(n_samples, seed=n_samples) for n_samples in (1_000, 1, 561, 16_000, 400)]
    alone = [frontend.fbank([samples]) for samples in waveforms]
    torch.testing.assert_close(frontend.fbank(waveforms), torch.cat(alone), rtol=0, atol=ROUNDING)


def test_transforms_come_in_few_sizes() -> None:
    assert [few_sizes(n) for n in (1, 64, 65, 998, 1_024, 1_025)] == [
        64,
        64,
        128,
        1_024,
        1_024,
        1_152,
    ]
    assert len({few_sizes(n) for n in range(2**14, 2**15)}) <= 9
    assert all(n <= few_sizes(n) <= n * 1.125 for n in range(512, 5_000))


def test_sizes_rounded_for_a_gpu_leave_the_features_as_they_are(
    small_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unpinned(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *values, pin_memory, **more: make(*values, **more)

    plain = small_model.engine.frontend
    rounded = Frontend(read_cmvn(small_model.folder.cmvn), CPU)
    monkeypatch.setattr(rounded, "_is_gpu", True)
    monkeypatch.setattr(torch, "empty", unpinned(torch.empty))
    monkeypatch.setattr(torch, "tensor", unpinned(torch.tensor))
    for waveforms in ([noise(16_000)], [noise(n_samples) for n_samples in (*LENGTHS, 1)]):
        expected = plain.features(waveforms)[0]
        torch.testing.assert_close(rounded.features(waveforms)[0], expected, rtol=0, atol=ROUNDING)


def test_all_the_work_is_on_the_device(small_model: Model) -> None:
    """A tensor left on the host would not mix with those of a device that holds no data."""
    meta = torch.device("meta")
    batch = Frontend(read_cmvn(small_model.folder.cmvn), meta)(
        [chunk_of(noise(n_samples)) for n_samples in (100, 16_000)]
    )
    assert batch.n_frames is not None
    on_device = (batch.features, batch.n_frames, batch.language_rows, batch.textnorm_rows)
    assert {tensor.device for tensor in on_device} == {meta}
    assert batch.features.shape == (2, 17, 560)


@pytest.mark.parametrize("n_samples", SHORT_LENGTHS)
@pytest.mark.parametrize("make", KINDS)
def test_less_than_a_window_is_padded_with_silence_to_one(
    small_model: Model, make: Make, n_samples: int
) -> None:
    """FunASR shrinks its window instead, and so its resolution; there is no parity to be had."""
    frontend = small_model.engine.frontend
    samples = make(n_samples)
    features, lengths = frontend.features([samples])
    padded = np.pad(samples, (0, FBANK_WINDOW_SAMPLES - n_samples))
    assert lengths == [1]
    assert features.isfinite().all()
    assert torch.equal(features, frontend.features([padded])[0])


def test_the_features_of_one_waveform_are_the_same_each_time(small_model: Model) -> None:
    samples = noise(16_000)
    first, second = (small_model.engine.frontend.features([samples])[0] for _ in range(2))
    assert torch.equal(first, second)


def test_waveforms_are_left_as_they_were(small_model: Model) -> None:
    samples = noise(1_000)
    before = samples.copy()
    small_model.engine.frontend.features([samples])
    assert np.array_equal(samples, before)


@pytest.mark.parametrize("n_frames", [*range(1, 30), 997])
def test_low_frame_rate_stacks_like_funasr(n_frames: int) -> None:
    from funasr.frontends.wav_frontend import apply_lfr

    frames = torch.arange(n_frames * 2.0).view(n_frames, 2)
    assert torch.equal(stack_lfr(frames), apply_lfr(frames, 7, 6))


@pytest.mark.parametrize("n_samples", [1, 399, 400, 559, 560, 1_360, 16_000, 48_123])
def test_frames_are_counted_as_they_come_out(small_model: Model, n_samples: int) -> None:
    frontend = small_model.engine.frontend
    samples = noise(n_samples)
    assert len(frontend.fbank([samples])) == fbank_frames(n_samples)
    assert frontend.features([samples])[0].shape[1] == lfr_frames(n_samples)


def test_a_batch_carries_the_prompt_rows_of_each_chunk(small_model: Model) -> None:
    chunks = [chunk_of(noise(2_000), language, use_itn=False) for language in LANGUAGES]
    chunks += [chunk_of(noise(9_000), "ja", use_itn=True)]
    batch = small_model.engine.frontend(chunks)
    assert batch.language_rows.tolist() == [LANGUAGE_ROWS[name] for name in (*LANGUAGES, "ja")]
    assert batch.textnorm_rows.tolist() == [WITHOUT_ITN_ROW] * len(LANGUAGES) + [WITH_ITN_ROW]
    assert batch.n_frames is not None
    assert tuple(batch.n_frames.tolist()) == batch.lengths == (2,) * len(LANGUAGES) + (9,)
    assert batch.features.device == CPU


def test_the_prompt_rows_are_those_of_funasr(funasr: FunAsr) -> None:
    assert {name: funasr.language_rows[name] for name in LANGUAGES} == LANGUAGE_ROWS
    assert funasr.textnorm_rows == {"withitn": WITH_ITN_ROW, "woitn": WITHOUT_ITN_ROW}


def test_a_batch_without_padding_has_no_frame_counts(small_model: Model) -> None:
    same_frames = [chunk_of(noise(n_samples)) for n_samples in (16_000, 16_001)]
    assert small_model.engine.frontend(same_frames).n_frames is None


def test_cmvn_is_read_as_funasr_reads_it(model: Model) -> None:
    from funasr.frontends.wav_frontend import load_cmvn

    cmvn = read_cmvn(model.folder.cmvn)
    assert torch.equal(torch.stack((cmvn.shift, cmvn.scale)), load_cmvn(str(model.folder.cmvn)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("<Rescale>", "<Scale>", id="no scale"),
        pytest.param("<AddShift>", "", id="no shift"),
        pytest.param("]", "", id="no end"),
        pytest.param("[ -", "[ minus -", id="a word"),
        pytest.param("[ -", "[ 1 -", id="a value too many"),
    ],
)
def test_a_cmvn_that_is_not_understood_is_refused(
    small_model: Model, tmp_path: Path, old: str, new: str
) -> None:
    text = small_model.folder.cmvn.read_text()
    assert old in text
    path = tmp_path / "am.mvn"
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=r"."):
        read_cmvn(path)


def test_a_configuration_of_other_features_is_refused() -> None:
    known = {"fs": 16_000, "window": "hamming", "n_mels": 80, "lfr_m": 7, "lfr_n": 6}
    require_known({**known, "cmvn_file": None})
    require_known({})
    for name, other in (("fs", 8_000), ("window", "povey"), ("lfr_n", 1), ("frame_shift", 20)):
        with pytest.raises(ValueError, match=name):
            require_known({**known, name: other})
