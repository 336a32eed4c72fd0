from __future__ import annotations

import numpy as np
import pytest

from sensevoice_service.mpeg import find_frames, parse_frame
from sensevoice_service.types import SAMPLE_RATE_HZ
from tests.audio_files import encode, voice


@pytest.mark.parametrize(
    ("header", "length_bytes"),
    [
        (b"\xff\xfb\x90\x64", 417),  # MPEG-1 layer 3, 128 kbit/s, 44.1 kHz
        (b"\xff\xfb\x92\x64", 418),  # the same, padded
        (b"\xff\xf3\x48\xc4", 144),  # MPEG-2 layer 3, 32 kbit/s, 16 kHz
        (b"\xff\xe3\x18\xc4", 72),  # MPEG-2.5 layer 3, 8 kbit/s, 8 kHz
        (b"\xff\xfd\xa4\x04", 576),  # MPEG-1 layer 2, 192 kbit/s, 48 kHz
        (b"\xff\xff\x90\x04", 312),  # MPEG-1 layer 1, 288 kbit/s, 44.1 kHz
    ],
)
def test_the_header_of_a_frame_tells_its_length(header: bytes, length_bytes: int) -> None:
    frame = parse_frame(header + bytes(2))
    assert frame is not None
    assert frame.length_bytes == length_bytes
    assert not frame.is_aac


def test_the_header_of_an_adts_frame_tells_its_length() -> None:
    frame = parse_frame(b"\xff\xf1\x60\x40\x20\x1f")
    assert frame is not None
    assert frame.length_bytes == 256
    assert frame.is_aac


@pytest.mark.parametrize(
    "header",
    [
        b"\xff\xfb\x00\x64\0\0",  # free format
        b"\xff\xfb\xf0\x64\0\0",  # no such bit rate
        b"\xff\xfb\x9c\x64\0\0",  # no such rate
        b"\xff\xeb\x90\x64\0\0",  # no such version
        b"\xff\xf9\x60\x40\0\x1f",  # ADTS shorter than its header
        b"\xff\x7b\x90\x64\0\0",
        b"\xff\xfb\x90",
    ],
)
def test_what_no_encoder_writes_is_no_frame(header: bytes) -> None:
    assert parse_frame(header) is None


@pytest.mark.parametrize(("codec", "container"), [("libmp3lame", "mp3"), ("aac", "adts")])
def test_a_run_of_frames_is_found_behind_other_bytes(codec: str, container: str) -> None:
    options = {"id3v2_version": "0"} if container == "mp3" else {}
    data = (
        b"\xff\xfb"
        + bytes(70)
        + encode(voice(0.5), SAMPLE_RATE_HZ, codec, container, options=options)
    )
    found = find_frames(data, len(data))
    assert found is not None
    at, frame = found
    assert at == 72
    assert frame.is_aac == (codec == "aac")


def test_two_frames_are_a_run_if_they_are_the_whole_file() -> None:
    two = (b"\xff\xf3\x48\xc4" + bytes(140)) * 2
    assert find_frames(two, len(two)) is not None
    assert find_frames(two + bytes(10), len(two) + 10) is None
    assert find_frames(b"x" + two, len(two) + 1) is None


def test_frames_of_different_streams_are_no_run() -> None:
    mixed = (b"\xff\xf3\x48\xc4" + bytes(140)) + (b"\xff\xfb\x90\x64" + bytes(413)) * 2
    found = find_frames(mixed, len(mixed))
    assert found is None


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_run(seed: int) -> None:
    noise = np.random.default_rng(seed).bytes(1_000_000)
    assert find_frames(noise, len(noise)) is None
