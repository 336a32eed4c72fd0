from __future__ import annotations

import errno
import io
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from sensevoice_service import audio
from sensevoice_service.audio import decode
from sensevoice_service.containers import Container
from sensevoice_service.types import (
    SAMPLE_RATE_HZ,
    AudioTooLong,
    CorruptAudio,
    EmptyFile,
    ServiceError,
    UnsupportedAudio,
    Upload,
)
from tests.audio_files import NO_LIMIT, Samples, decoded, encode, pcm16, upload, voice, wav

PLAYLIST = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
SESSION = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {} RTP/AVP 0\n"
MP3 = encode(voice(1.0), SAMPLE_RATE_HZ, "libmp3lame", "mp3")
FLOATS = np.full(4000, 0.1, "<f4")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def was_called(server: socket.socket) -> bool:
    return bool(select.select([server], [], [], 0)[0])


def given_before_the_error(data: bytes) -> tuple[Samples, ServiceError | None]:
    given = [np.zeros(0, np.float32)]
    try:
        given.extend(block.samples for block in decode(upload(data), NO_LIMIT))
    except (AudioTooLong, CorruptAudio, UnsupportedAudio, EmptyFile) as error:
        return np.concatenate(given), error
    return np.concatenate(given), None


def damaged(data: bytes) -> bytes:
    middle = len(data) // 2
    noise = np.random.default_rng(1).bytes(200)
    return data[:middle] + noise + data[middle + len(noise) :]


@pytest.mark.parametrize("data", [b"", wav(b""), wav(b"", data_bytes=0xFFFF_FFFF)])
def test_a_file_without_samples_is_empty(data: bytes) -> None:
    with pytest.raises(EmptyFile):
        decoded(data)


@pytest.mark.parametrize(
    "data",
    [
        b"hello world\n" * 1000,
        b"the free and open world" * 100,
        b"%PDF-1.7\n" + MP3,
        b"PK\3\4\x14\0\0\0\0\0" + MP3,
        b"\x89PNG\r\n\x1a\n" + bytes(1000),
        b"\xff\xd8\xff\xe0\0\x10JFIF" + b"\xff\xe0" * 4000,
        bytes(100_000),
        b"\xff" * 100_000,
        b"R",
        encode(voice(0), 1, "", "mp4", video_s=1.0),
        encode(voice(0), 1, "", "matroska", video_s=1.0),
        wav(bytes(3200), kind=0x5555),
        encode(voice(1.0), SAMPLE_RATE_HZ, "wavpack", "matroska"),
        encode(voice(1.0), SAMPLE_RATE_HZ, "aac", "mpegts"),
    ],
)
def test_what_is_no_audio_is_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedAudio):
        decoded(data)


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_unsupported(seed: int) -> None:
    with pytest.raises(UnsupportedAudio):
        decoded(np.random.default_rng(seed).bytes(150_000))


@pytest.mark.parametrize(
    "text",
    [
        PLAYLIST.format("http://127.0.0.1:{port}/a.ts"),
        PLAYLIST.format("{canary}"),
        "ffconcat version 1.0\nfile '{canary}'\n",
        "ffconcat version 1.0\nfile 'http://127.0.0.1:{port}/a.wav'\n",
        SESSION.format("{port}"),
        "data:audio/wav;base64,UklGRg==",
        "http://127.0.0.1:{port}/a.wav",
        '<?xml version="1.0"?><MPD><BaseURL>http://127.0.0.1:{port}/</BaseURL></MPD>',
    ],
)
def test_a_file_that_points_elsewhere_is_unsupported_and_nothing_is_opened(
    text: str, listener: socket.socket, tmp_path: Path
) -> None:
    canary = tmp_path / "canary.wav"
    canary.write_bytes(wav(bytes(3200)))
    data = text.format(port=listener.getsockname()[1], canary=canary).encode()
    with pytest.raises(UnsupportedAudio):
        decoded(data)
    assert not was_called(listener)


@pytest.mark.parametrize("target", ["http://127.0.0.1:{port}/a.ts", "{canary}", "file:{canary}"])
def test_even_a_demuxer_of_playlists_could_open_nothing(
    target: str, listener: socket.socket, tmp_path: Path
) -> None:
    canary = tmp_path / "canary.ts"
    canary.write_bytes(encode(voice(1.0, 48_000), 48_000, "aac", "mpegts"))
    target = target.format(port=listener.getsockname()[1], canary=canary)
    with pytest.raises(UnsupportedAudio, match="other files"):
        audio._open(upload(PLAYLIST.format(target).encode()), Container("hls"))
    assert not was_called(listener)


def test_the_clients_name_of_a_file_is_not_opened(tmp_path: Path) -> None:
    canary = tmp_path / "canary.wav"
    canary.write_bytes(wav(bytes(3200)))
    file = io.BytesIO(b"not audio")
    file.name = str(canary)
    with pytest.raises(UnsupportedAudio):
        next(decode(Upload(file, str(canary), 9), NO_LIMIT))


@pytest.mark.parametrize("rate_hz", [0, 1, 999, 655_351, 10_000_000, 0xFFFF_FFFF])
def test_an_absurd_rate_is_corrupt(rate_hz: int) -> None:
    with pytest.raises(CorruptAudio):
        decoded(wav(bytes(32_000), rate_hz=rate_hz))


@pytest.mark.parametrize("n_channels", [65, 512, 1000, 32_767])
def test_too_many_channels_are_corrupt(n_channels: int) -> None:
    with pytest.raises(CorruptAudio):
        decoded(wav(bytes(n_channels * 200), n_channels=n_channels))


@pytest.mark.parametrize("n_channels", [1, 3, 8, 9, 64])
def test_up_to_64_channels_are_decoded(n_channels: int) -> None:
    assert len(decoded(wav(bytes(n_channels * 3200), n_channels=n_channels))) == 1600


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_corrupt(value: float, rate_hz: int) -> None:
    floats = FLOATS.copy()
    floats[1000] = value
    with pytest.raises(CorruptAudio):
        decoded(wav(floats.tobytes(), rate_hz=rate_hz, n_bits=32, kind=3))


def test_a_packet_too_large_to_decode_at_once_is_corrupt() -> None:
    with pytest.raises(CorruptAudio, match="packet"):
        decoded(wav(bytes(20_000_000), n_channels=65_535, n_bits=8))


@pytest.mark.parametrize(
    ("codec", "container"),
    [
        ("pcm_s16le", "wav"),
        ("pcm_s16be", "aiff"),
        ("pcm_s16le", "caf"),
        ("flac", "flac"),
        ("libmp3lame", "mp3"),
        ("libopus", "ogg"),
        ("flac", "ogg"),
        ("aac", "mp4"),
        ("aac", "adts"),
        ("libopus", "webm"),
        ("libopencore_amrnb", "amr"),
    ],
)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_file_that_is_cut_off_is_corrupt(codec: str, container: str, part: float) -> None:
    rate_hz = 8_000 if codec == "libopencore_amrnb" else 16_000
    data = encode(voice(3.0, rate_hz), rate_hz, codec, container)
    with pytest.raises(CorruptAudio):
        decoded(data[: int(part * len(data))])


@pytest.mark.parametrize("n_left", [1, 2, 3])
def test_an_mp3_that_is_cut_within_the_header_of_its_last_frame_is_corrupt(n_left: int) -> None:
    with av.open(io.BytesIO(MP3)) as media:
        last = max(packet.pos or 0 for packet in media.demux())
    with pytest.raises(CorruptAudio):
        decoded(MP3[: last + n_left])


@pytest.mark.parametrize("kind", range(9, 15))
def test_amr_with_a_kind_of_frame_that_is_none_is_corrupt(kind: int) -> None:
    data = encode(voice(1.0, 8_000), 8_000, "libopencore_amrnb", "amr")
    with pytest.raises(CorruptAudio):
        decoded(data + bytes([kind << 3 | 4]))


@pytest.mark.parametrize(
    ("codec", "container"),
    [
        ("flac", "flac"),
        ("libmp3lame", "mp3"),
        ("libopus", "ogg"),
        ("aac", "mp4"),
        ("aac", "adts"),
        ("adpcm_ms", "wav"),
    ],
)
def test_a_file_with_damage_in_its_middle_is_corrupt(codec: str, container: str) -> None:
    data = encode(voice(3.0), SAMPLE_RATE_HZ, codec, container)
    with pytest.raises(CorruptAudio):
        decoded(damaged(data))


@pytest.mark.parametrize("part", [0.2, 0.4, 0.6, 0.8, 0.99])
def test_a_single_wrong_bit_in_a_flac_file_is_corrupt(part: float) -> None:
    samples = 0.3 * np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE_HZ)
    data = bytearray(encode(samples.astype(np.float32), SAMPLE_RATE_HZ, "flac", "flac"))
    data[int(part * len(data))] ^= 0x10
    with pytest.raises(CorruptAudio):
        decoded(bytes(data))


@pytest.mark.parametrize(
    ("codec", "container"),
    [
        *(("pcm_s16le", "wav"), ("libmp3lame", "mp3"), ("flac", "flac"), ("libopus", "ogg")),
        *(("aac", "mp4"), ("aac", "adts"), ("libopus", "webm"), ("pcm_s16le", "avi")),
    ],
)
def test_wherever_a_file_is_cut_it_gives_audio_that_is_there_or_says_why_not(
    codec: str, container: str
) -> None:
    data = encode(voice(2.0), SAMPLE_RATE_HZ, codec, container)
    whole = decoded(data)
    edge = 2304  # two frames of MP3, whose trimmed end returns when the count of frames is gone
    for n_bytes in np.linspace(0, len(data) - 1, 50).astype(int):
        given, error = given_before_the_error(data[:n_bytes])
        sure = max(0, len(given) - edge)
        assert len(given) <= len(whole) + edge
        assert np.allclose(given[:sure], whole[:sure], atol=1e-3)
        assert len(given) or error


@pytest.mark.parametrize("seed", range(150))
def test_a_file_with_wrong_bytes_gives_blocks_or_an_error_of_ours(seed: int) -> None:
    random = np.random.default_rng(seed)
    kinds = (("alac", "mov"), ("aac", "mp4"), ("flac", "flac"), ("libopus", "webm"), ("aac", "avi"))
    codec, container = kinds[seed % len(kinds)]
    data = bytearray(encode(voice(0.3, 48_000), 48_000, codec, container, n_channels=2))
    places = random.integers(0, len(data), 4)
    heads = random.integers(0, min(800, len(data)), 4)
    tails = len(data) - 1 - random.integers(0, min(800, len(data)), 4)
    for place in (*places, *heads, *tails):
        data[place] = random.integers(256)
    given, error = given_before_the_error(bytes(data))
    assert np.isfinite(given).all()
    assert len(given) or error


def test_padding_behind_the_audio_costs_nothing() -> None:
    """libav would look for audio in it, and ask for the size of the file every eight bytes."""

    class Counting(io.BytesIO):
        n_seeks = 0

        def seek(self, offset: int, whence: int = 0, /) -> int:
            self.n_seeks += 1
            return super().seek(offset, whence)

    file = Counting(wav(pcm16(voice(1.0))) + bytes(100_000))
    blocks = decode(Upload(file, "speech", 0), NO_LIMIT)
    assert sum(len(block.samples) for block in blocks) == SAMPLE_RATE_HZ
    assert file.n_seeks < 100


def test_nothing_is_written_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    for data in (damaged(MP3), MP3[:500], wav(bytes(100), rate_hz=0), b"OggS" + bytes(100)):
        with pytest.raises(CorruptAudio):
            decoded(data)
    assert capfd.readouterr() == ("", "")


def test_a_disk_that_fails_is_no_fault_of_the_file() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 20_000:
                raise OSError("disk")
            return super().read(size)

    source = Upload(Failing(wav(pcm16(voice(3.0)))), "speech", 0)
    with pytest.raises(OSError, match="disk"):
        list(decode(source, NO_LIMIT))


def test_a_lack_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_memory(*_: object, **__: object) -> None:
        raise av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(av, "open", without_memory)
    with pytest.raises(MemoryError):
        decoded(wav(pcm16(voice(0.1))))
