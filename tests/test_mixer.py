from __future__ import annotations

import io
import itertools

import av
import numpy as np
import pytest

from sensevoice_service.mixer import GraphMean, Mean, PlanesMean, mono_16k
from sensevoice_service.types import SAMPLE_RATE_HZ, CorruptAudio
from tests.audio_files import Samples, encode, voice

FRAME_SAMPLES = 1024


def frames(
    samples: Samples, rate_hz: int, sample_format: str = "flt", layout: str = "mono"
) -> list[av.AudioFrame]:
    """Frames of packed samples ``(n_samples, n_channels)``."""
    made = []
    for start in range(0, len(samples), FRAME_SAMPLES):
        packed = np.ascontiguousarray(samples[start : start + FRAME_SAMPLES]).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format=sample_format, layout=layout)
        frame.sample_rate = rate_hz
        made.append(frame)
    return made


def mixed(*parts: list[av.AudioFrame]) -> Samples:
    return np.concatenate(list(mono_16k(itertools.chain(*parts), 1.0)))


def sine(frequency_hz: float, rate_hz: int, duration_s: float = 0.5) -> Samples:
    t = np.arange(round(duration_s * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * frequency_hz * t)).astype(np.float32)


def level_db(samples: Samples) -> float:
    """Level of the middle part, against a sine of amplitude 0.5."""
    return float(20 * np.log10(np.std(samples[1000:-1000]) / (0.5 / np.sqrt(2)) + 1e-12))


@pytest.mark.parametrize("rate_hz", [22_050, 32_000, 44_100, 48_000, 44_099])
def test_what_16_khz_cannot_hold_is_gone(rate_hz: int) -> None:
    for frequency_hz in np.linspace(8_050, 0.99 * rate_hz / 2, 20):
        assert level_db(mixed(frames(sine(frequency_hz, rate_hz), rate_hz))) < -120


@pytest.mark.parametrize("rate_hz", [22_050, 32_000, 44_100, 48_000])
def test_speech_frequencies_pass_as_they_are(rate_hz: int) -> None:
    for frequency_hz in (100, 1_000, 4_000, 7_000, 7_400):
        samples = mixed(frames(sine(frequency_hz, rate_hz), rate_hz))
        expected = sine(frequency_hz, SAMPLE_RATE_HZ)
        assert np.abs(samples - expected)[400:-400].max() < 0.005


@pytest.mark.parametrize("rate_hz", [1_000, 8_000, 11_025, 16_000, 44_100, 48_000, 384_000])
@pytest.mark.parametrize("n_samples", [1, 7, 100, 999, 5_000, 20_011])
def test_the_number_of_samples_is_that_of_the_duration(rate_hz: int, n_samples: int) -> None:
    ones = np.full(n_samples, 0.5, np.float32)
    blocks = list(mono_16k(iter(frames(ones, rate_hz)), 1.0))
    assert sum(map(len, blocks)) == round(n_samples * SAMPLE_RATE_HZ / rate_hz)


@pytest.mark.parametrize("rate_hz", [8_000, 44_100, 48_000])
def test_a_click_stays_in_its_place(rate_hz: int) -> None:
    click = np.zeros(rate_hz, np.float32)
    click[rate_hz // 2] = 1.0
    assert np.argmax(np.abs(mixed(frames(click, rate_hz)))) == SAMPLE_RATE_HZ // 2


def test_16_khz_mono_passes_untouched() -> None:
    assert np.array_equal(mixed(frames(voice(1.3), SAMPLE_RATE_HZ)), voice(1.3))


@pytest.mark.parametrize(
    ("n_channels", "layout"), [(2, "stereo"), (6, "5.1"), (8, "7.1"), (3, "3C"), (64, "64C")]
)
def test_every_channel_weighs_the_same(n_channels: int, layout: str) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (5000, n_channels)).astype(np.float32)
    output = mixed(frames(samples, SAMPLE_RATE_HZ, layout=layout))
    assert np.allclose(output, samples.mean(axis=1), atol=1e-5)


@pytest.mark.parametrize("n_channels", [1, 2, 6, 7])
def test_planes_weigh_the_same_too(n_channels: int) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (5000, n_channels)).astype(np.float32)
    made = []
    for part in np.array_split(samples, 100):
        planes = np.ascontiguousarray(part.T)
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=f"{n_channels}C")
        frame.sample_rate = SAMPLE_RATE_HZ
        made.append(frame)
    blocks = list(mono_16k(iter(made), 0.1))
    assert [len(block) for block in blocks] == [1600, 1600, 1600, 200]
    assert np.allclose(np.concatenate(blocks), samples.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(("codec", "container"), [("mp3", "mp3"), ("aac", "mp4")])
@pytest.mark.parametrize("n_channels", [1, 2])
def test_planes_of_decoders_have_the_mean_that_libav_makes_of_them(
    codec: str, container: str, n_channels: int
) -> None:
    data = encode(voice(1.0, 44_100), 44_100, codec, container, n_channels=n_channels)
    with av.open(io.BytesIO(data)) as media:
        decoded = list(media.decode(audio=0))
    first = decoded[0]
    assert first.format.name == "fltp"
    means: list[Mean] = [
        PlanesMean(n_channels),
        GraphMean(44_100, "fltp", n_channels, first.layout.name, 10_000),
    ]
    for mean in means:
        for frame in decoded:
            mean.push(frame)
    ours, libavs = (np.concatenate(list(mean.flush())) for mean in means)
    assert len(ours) >= 44_100
    assert np.allclose(ours, libavs, rtol=0, atol=1e-7)


def test_opposite_channels_cancel() -> None:
    pair = np.stack([voice(1.0), -voice(1.0)], axis=1)
    assert np.abs(mixed(frames(pair, SAMPLE_RATE_HZ, layout="stereo"))).max() < 1e-6


@pytest.mark.parametrize(
    ("sample_format", "dtype", "scale", "offset"),
    [
        ("u8", "u1", 127, 128),
        ("s16", "i2", 32767, 0),
        ("s32", "i4", 2**31 - 129, 0),
        ("dbl", "f8", 1, 0),
    ],
)
def test_every_sample_format_has_the_same_full_scale(
    sample_format: str, dtype: str, scale: int, offset: int
) -> None:
    coded = (voice(0.5).astype(np.float64) * scale + offset).astype(dtype)
    output = mixed(frames(coded, SAMPLE_RATE_HZ, sample_format))
    assert np.allclose(output, voice(0.5), atol=2 / 127 if dtype == "u1" else 1e-4)


def test_a_change_of_rate_and_channels_on_the_way_is_followed() -> None:
    pair = np.repeat(voice(1.0, 44_100)[:, None], 2, axis=1)
    output = mixed(
        frames(voice(1.0, 8_000), 8_000),
        frames(pair, 44_100, layout="stereo"),
        frames(voice(1.0), SAMPLE_RATE_HZ),
    )
    assert len(output) == 3 * SAMPLE_RATE_HZ
    for part in output.reshape(3, -1):
        assert np.abs(part - voice(1.0))[200:-200].max() < 0.01


def test_changes_without_end_are_corrupt() -> None:
    pair = frames(np.zeros((8, 1), np.float32), 8_000) + frames(np.zeros((8, 1), np.float32), 9_000)
    assert len(mixed(pair * 40)) > 0
    with pytest.raises(CorruptAudio, match="too often"):
        mixed(pair * 60)


def test_gaps_in_the_timestamps_add_nothing() -> None:
    made = frames(voice(2.0, 48_000), 48_000)
    for index, frame in enumerate(made):
        frame.pts = 5000 * index
    assert len(mixed(made)) == 2 * SAMPLE_RATE_HZ


@pytest.mark.parametrize(("rate_hz", "slack"), [(SAMPLE_RATE_HZ, 0), (8_000, 1_500), (48_000, 500)])
def test_blocks_have_about_the_asked_length(rate_hz: int, slack: int) -> None:
    """The resampler looks ahead: the first block is shorter, and there is one more at the end."""
    lengths = list(map(len, mono_16k(iter(frames(voice(2.6, rate_hz), rate_hz)), 0.5)))
    assert lengths[:5] == pytest.approx([8_000] * 5, abs=slack)
    assert sum(lengths) == round(2.6 * SAMPLE_RATE_HZ)


@pytest.mark.parametrize("n_samples", [1, 40, 1_000])
def test_no_block_is_empty(n_samples: int) -> None:
    blocks = list(mono_16k(iter(frames(np.zeros(n_samples, np.float32), 48_000)), 0.001))
    assert all(map(len, blocks))


def test_blocks_come_while_frames_still_do() -> None:
    source = iter(frames(voice(10.0), SAMPLE_RATE_HZ))
    next(mono_16k(source, 1.0))
    assert len(list(source)) > 100


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("rate_hz", [16_000, 48_000])
def test_samples_that_are_no_numbers_are_corrupt(value: float, rate_hz: int) -> None:
    samples = voice(1.0, rate_hz)
    samples[500] = value
    with pytest.raises(CorruptAudio):
        mixed(frames(samples, rate_hz))


@pytest.mark.parametrize(("rate_hz", "layout"), [(999, "mono"), (655_351, "mono"), (8_000, "65C")])
def test_rates_and_channels_out_of_range_are_corrupt(rate_hz: int, layout: str) -> None:
    n_channels = 65 if layout == "65C" else 1
    with pytest.raises(CorruptAudio):
        mixed(frames(np.zeros((5000, n_channels), np.float32), rate_hz, layout=layout))
