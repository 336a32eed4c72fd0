from __future__ import annotations

import struct
from collections.abc import Generator

import numpy as np
import pytest

from sensevoice_service.audio import AudioLimits, decode
from sensevoice_service.plain_wav import HEAD_BYTES, find_samples, reading_plain_wavs
from sensevoice_service.types import SAMPLE_RATE_HZ, Block, CorruptAudio, Upload
from tests.audio_files import NO_LIMIT, Samples, pcm16, upload, voice, wav

N_SAMPLES = 40_000
DATA = pcm16(voice(N_SAMPLES / SAMPLE_RATE_HZ))
LIST = b"LIST\x05\0\0\0INFOx\0"


class Called(Exception):
    """The decoder was asked."""


def refuse(_upload: Upload, _limits: AudioLimits) -> Generator[Block, None, None]:
    raise Called
    yield


def joined(blocks: Generator[Block, None, None]) -> Samples:
    found, end = [], 0
    for block in blocks:
        assert block.start_sample == end
        assert block.samples.dtype == np.float32
        end += len(block.samples)
        found.append(block.samples)
    return np.concatenate(found)


@pytest.mark.parametrize(
    "data",
    [
        wav(DATA),
        wav(DATA, before_data=LIST),
        wav(DATA) + LIST,
        wav(DATA, riff_bytes=0),
        wav(DATA + b"\x01\x02\x03", data_bytes=len(DATA)),
        wav(b"\x00\x80\xff\x7f" + DATA),
        wav(DATA[:2]),
    ],
    ids=["usual", "text ahead", "text behind", "no size", "more behind", "extremes", "one sample"],
)
@pytest.mark.parametrize("block_s", [0.5, 1.0, 60.0])
def test_a_plain_wav_gives_what_its_decoder_would(data: bytes, block_s: float) -> None:
    limits = AudioLimits(NO_LIMIT.max_audio_s, block_s)
    expected = joined(decode(upload(data), limits))
    found = joined(reading_plain_wavs(refuse)(upload(data), limits))
    np.testing.assert_array_equal(found, expected, strict=True)


def test_blocks_are_as_long_as_asked_for() -> None:
    blocks = reading_plain_wavs(refuse)(upload(wav(DATA)), AudioLimits(60, block_s=1.0))
    assert [len(block.samples) for block in blocks] == [16_000, 16_000, 8_000]


def with_fmt(fmt: bytes) -> bytes:
    body = b"WAVE" + fmt + b"data" + struct.pack("<I", len(DATA)) + DATA
    return b"RIFF" + struct.pack("<I", len(body)) + body


PLAIN_FMT = wav(b"")[12:36]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        wav(b""),
        wav(DATA)[:-1],
        wav(DATA + b"x"),
        wav(DATA, data_bytes=0),
        wav(DATA, data_bytes=0xFFFF_FFFF),
        wav(DATA)[:40],
        wav(DATA, rate_hz=8_000),
        wav(DATA, n_channels=2),
        wav(DATA, n_bits=8),
        wav(DATA, n_bits=32, kind=3),
        wav(DATA, kind=7, n_bits=8),
        wav(DATA, before_data=LIST * (HEAD_BYTES // len(LIST))),
        wav(DATA, before_data=b"LIST\xff\xff\xff\xff"),
        b"RIFX" + wav(DATA)[4:],
        b"RIFF" + bytes(4) + b"AVI " + wav(DATA)[12:],
        with_fmt(b""),
        with_fmt(2 * PLAIN_FMT),
        with_fmt(b"fmt \x0e\0\0\0" + PLAIN_FMT[8:22]),
        b"ID3\x04\0\0\0\0\0\0" + wav(DATA),
    ],
)
def test_all_else_is_for_the_decoder(data: bytes) -> None:
    assert find_samples(upload(data)) is None
    with pytest.raises(Called):
        next(reading_plain_wavs(refuse)(upload(data), NO_LIMIT))


def test_what_is_too_long_is_for_the_decoder_to_refuse() -> None:
    limit_s = N_SAMPLES / SAMPLE_RATE_HZ
    assert next(reading_plain_wavs(refuse)(upload(wav(DATA)), AudioLimits(limit_s)))
    with pytest.raises(Called):
        next(reading_plain_wavs(refuse)(upload(wav(DATA)), AudioLimits(limit_s - 0.1)))


def test_the_position_of_the_file_tells_how_far_it_is_read() -> None:
    file = upload(wav(DATA))
    blocks = reading_plain_wavs(refuse)(file, AudioLimits(60, block_s=1.0))
    positions = [file.file.tell() for _ in blocks]
    assert positions == [44 + 32_000, 44 + 64_000, 44 + 80_000]


def test_a_file_that_is_cut_off_meanwhile_is_corrupt() -> None:
    file = upload(wav(DATA))
    blocks = reading_plain_wavs(refuse)(file, AudioLimits(60, block_s=1.0))
    next(blocks)
    file.file.truncate(44 + 40_001)
    with pytest.raises(CorruptAudio):
        next(blocks)
