from __future__ import annotations

import io
import struct
import sys
import tempfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
import soundfile
from av.codec.codec import UnknownCodecError

from sensevoice_service.audio import AudioLimits, decode
from sensevoice_service.types import SAMPLE_RATE_HZ, AudioTooLong, CorruptAudio, Upload
from tests.audio_files import (
    NO_LIMIT,
    Samples,
    caf,
    decoded,
    encode,
    pcm16,
    upload,
    voice,
    wav,
)

ID3V1 = b"TAG" + b"title".ljust(125, b"\0")
LYRICS = b"LYRICSBEGININD0000200LYR00005hello000043LYRICS200"
# Frames' headers, as a picture has them by chance; the last one's frame would go on behind the tag.
PICTURE = b"\xff\xfb\x90\x64" * 25_000 + bytes(256) + b"\xff\xf3\x48\xc4" + bytes(20)
MP3_FRAME_SAMPLES = 576  # of MPEG-2, that is at 16 kHz
AMR_WB = b"#!AMR-WB\n"
WIDE_FRAMES = b"".join(bytes([4, *17 * [index % 7]]) for index in range(100))  # a faint rattle


def id3_tag(content: bytes) -> bytes:
    sizes = (len(content) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\4\0\0" + bytes(sizes) + content


def ape_tag(content: bytes) -> bytes:
    items = struct.pack("<II", len(content), 2) + b"Cover Art (Front)\0" + content
    header, footer = (
        b"APETAGEX" + struct.pack("<IIII8x", 2000, len(items) + 32, 1, flags << 29)
        for flags in (0b101, 0b100)
    )
    return header + items + footer


def with_silence(samples: Samples, n_samples: int) -> Samples:
    return np.concatenate([samples, np.zeros(n_samples, np.float32), samples])


def natively(data: bytes) -> Samples:
    """What the decoder makes of it that libav itself would choose, at its own rate."""
    with av.open(io.BytesIO(data)) as media:
        return np.concatenate([frame.to_ndarray()[0] for frame in media.decode(audio=0)])


def likeness(one: Samples, other: Samples) -> float:
    """Correlation at no shift, over what both have."""
    n_samples = min(len(one), len(other))
    return float(np.corrcoef(one[:n_samples], other[:n_samples])[0, 1])


def loudness_ratio(one: Samples, other: Samples) -> float:
    return float(np.sqrt(np.mean(one**2) / np.mean(other**2)))


@pytest.mark.parametrize(
    ("codec", "container", "rate_hz"),
    [
        ("pcm_u8", "wav", 8_000),
        ("pcm_s16le", "wav", 16_000),
        ("pcm_s24le", "wav", 48_000),
        ("pcm_s32le", "wav", 44_100),
        ("pcm_f32le", "wav", 22_050),
        ("pcm_f64le", "wav", 96_000),
        ("pcm_alaw", "wav", 8_000),
        ("pcm_mulaw", "wav", 8_000),
        ("pcm_s16be", "aiff", 22_050),
        ("pcm_s16le", "caf", 11_025),
        ("pcm_s16be", "au", 16_000),
        ("flac", "flac", 44_100),
        ("flac", "ogg", 16_000),
        ("libmp3lame", "mp3", 44_100),
        ("libmp3lame", "mp3", 16_000),
        ("libopus", "ogg", 48_000),
        ("libopus", "webm", 48_000),
        ("libopus", "matroska", 24_000),
        ("alac", "ipod", 44_100),
    ],
)
def test_a_file_is_decoded_to_its_own_length_and_waveform(
    codec: str, container: str, rate_hz: int
) -> None:
    duration_s = 2.3451
    samples = decoded(encode(voice(duration_s, rate_hz), rate_hz, codec, container))
    expected = voice(duration_s)
    assert abs(len(samples) - len(expected)) <= 1
    assert likeness(samples, expected) > 0.995
    assert loudness_ratio(samples, expected) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("container", ["mp4", "ipod", "mov", "matroska"])
def test_aac_is_aligned_and_keeps_at_most_a_frame_of_padding(container: str) -> None:
    samples = decoded(encode(voice(2.0, 48_000), 48_000, "aac", container))
    assert 0 <= len(samples) - 32_000 <= 1024 * 16_000 / 48_000 + 1
    assert likeness(samples, voice(2.0)) > 0.99


@pytest.mark.parametrize(
    ("codec", "container", "delay_samples"),
    [("aac", "adts", 1024), ("aac", "avi", 1024), ("libmp3lame", "avi", 1105)],
)
def test_where_no_header_tells_the_encoders_delay_it_stays(
    codec: str, container: str, delay_samples: int
) -> None:
    samples = decoded(encode(voice(2.0), SAMPLE_RATE_HZ, codec, container))
    assert 0 <= len(samples) - 2 * SAMPLE_RATE_HZ <= delay_samples + 1152
    assert likeness(samples[delay_samples:], voice(2.0)) > 0.99


@pytest.mark.parametrize("options", [{}, {"dtx": "1"}])
@pytest.mark.parametrize(("container", "late_samples"), [("amr", 80), ("3gp", -20)])
def test_amr_narrow_band_is_decoded_with_silence_that_was_not_sent(
    container: str, late_samples: int, options: dict[str, str]
) -> None:
    """Its encoder looks 5 ms ahead, and says in 3GP that it were 6.25."""
    sound = with_silence(voice(2.0, 8_000), 3 * 8_000)
    codec = "libopencore_amrnb"
    data = encode(sound, 8_000, codec, container, codec_options=options, bit_rate=12_200)
    samples, expected = decoded(data), with_silence(voice(2.0), 3 * SAMPLE_RATE_HZ)
    assert abs(len(samples) - len(expected)) <= 0.025 * SAMPLE_RATE_HZ
    # A sample earlier or later it is 0.73.
    assert likeness(samples[max(0, late_samples) :], expected[max(0, -late_samples) :]) > 0.79
    assert loudness_ratio(samples, expected) == pytest.approx(0.88, abs=0.02)
    assert np.abs(samples[3 * SAMPLE_RATE_HZ : 4 * SAMPLE_RATE_HZ]).max() < 1e-4


def test_amr_wide_band_is_decoded_as_ffmpeg_itself_does() -> None:
    assert likeness(decoded(AMR_WB + WIDE_FRAMES), natively(AMR_WB + WIDE_FRAMES)) > 0.99


def test_amr_wide_band_is_decoded_with_silence_that_was_not_sent() -> None:
    noise_as_before = bytes([9 << 3 | 4, *bytes(5)]) + 49 * bytes([15 << 3 | 4])
    samples = decoded(AMR_WB + WIDE_FRAMES + noise_as_before + WIDE_FRAMES)
    first, pause, second = np.split(samples, [2 * SAMPLE_RATE_HZ, 3 * SAMPLE_RATE_HZ])
    assert np.array_equal(first, decoded(AMR_WB + WIDE_FRAMES))
    assert np.abs(pause).max() < np.abs(first).max() / 2
    assert likeness(second, first) > 0.99


def test_amr_of_two_channels_is_averaged() -> None:
    data = encode(voice(2.0, 8_000), 8_000, "libopencore_amrnb", "amr", bit_rate=12_200)
    frames = [data[at : at + 32] for at in range(len(b"#!AMR\n"), len(data), 32)]
    both = b"#!AMR_MC1.0\n" + struct.pack("<I", 2) + b"".join(2 * frame for frame in frames)
    assert likeness(decoded(both), decoded(data)) > 0.999


def test_a_libav_without_opencore_decodes_amr_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def missing(name: str, mode: str) -> None:
        asked.append(name)
        raise UnknownCodecError(name)

    monkeypatch.setattr(av, "Codec", missing)
    assert np.array_equal(decoded(AMR_WB + WIDE_FRAMES), natively(AMR_WB + WIDE_FRAMES).clip(-1, 1))
    assert asked == ["libopencore_amrwb"]


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        *(("WAV", subtype) for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32")),
        *(("WAV", subtype) for subtype in ("FLOAT", "DOUBLE", "ALAW", "ULAW")),
        *(("WAVEX", "PCM_16"), ("RF64", "PCM_16"), ("AIFF", "PCM_24"), ("CAF", "FLOAT")),
        *(("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III")),
    ],
)
def test_files_of_another_encoder_have_their_length(kind: str, subtype: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, voice(1.7, 44_100), 44_100, format=kind, subtype=subtype)
    samples = decoded(file.getvalue())
    assert abs(len(samples) - 1.7 * SAMPLE_RATE_HZ) <= 1
    assert likeness(samples, voice(1.7)) > 0.995


@pytest.mark.parametrize(
    ("codec", "container"),
    [("aac", "mp4"), ("aac", "mov"), ("libopus", "matroska"), ("ac3", "avi")],
)
def test_the_sound_of_a_video_is_decoded(codec: str, container: str) -> None:
    data = encode(voice(2.0, 48_000), 48_000, codec, container, video_s=2.0)
    assert abs(len(decoded(data)) / SAMPLE_RATE_HZ - 2.0) < 0.05


def test_a_stream_of_unknown_length_as_browsers_record_it_is_decoded() -> None:
    data = encode(voice(2.0, 48_000), 48_000, "libopus", "webm", options={"live": "1"})
    assert abs(len(decoded(data)) - 2 * SAMPLE_RATE_HZ) <= 1


def test_channels_are_averaged() -> None:
    left, right = voice(1.0), np.full(SAMPLE_RATE_HZ, 0.2, np.float32)
    data = wav(pcm16(np.stack([left, right], axis=1).ravel()), n_channels=2)
    assert np.allclose(decoded(data), (left + right) / 2, atol=1e-4)


@pytest.mark.parametrize(
    ("codec", "container"), [("aac", "mp4"), ("libopus", "ogg"), ("flac", "flac")]
)
def test_eight_channels_are_averaged(codec: str, container: str) -> None:
    data = encode(voice(1.0, 48_000), 48_000, codec, container, n_channels=8)
    samples = decoded(data)
    assert abs(len(samples) - SAMPLE_RATE_HZ) <= 400
    assert np.isfinite(samples).all()
    assert samples.std() > 0.05


@pytest.mark.parametrize("labels", [(2, 1), (3, 3), (2, 1, 5, 7, 3, 3, 3, 3, 4, 9)])
def test_channels_in_an_order_of_their_own_are_averaged(labels: tuple[int, ...]) -> None:
    assert np.allclose(decoded(caf(voice(1.0), labels)), voice(1.0), atol=1e-4)


@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_samples_beyond_full_scale_are_clipped(rate_hz: int) -> None:
    loud = (4 * voice(1.0, rate_hz)).astype("<f4").tobytes()
    samples = decoded(wav(loud, rate_hz=rate_hz, n_bits=32, kind=3))
    assert samples.max() == 1.0
    assert samples.min() == -1.0


def test_silence_is_audio() -> None:
    samples = decoded(wav(bytes(32_000)))
    assert len(samples) == SAMPLE_RATE_HZ
    assert not samples.any()


def test_blocks_follow_each_other_from_zero_and_have_about_the_asked_length() -> None:
    data = wav(pcm16(voice(2.25, 44_100)), rate_hz=44_100)
    blocks = list(decode(upload(data), AudioLimits(60.0, block_s=0.5)))
    lengths = [len(block.samples) for block in blocks]
    assert [block.start_sample for block in blocks] == [0, *np.cumsum(lengths[:-1])]
    assert lengths[:4] == pytest.approx([8000] * 4, abs=500)
    assert sum(lengths) == 36_000
    assert all(block.samples.dtype == np.float32 for block in blocks)


@pytest.mark.parametrize("tag", [ID3V1, LYRICS, b"APETAGEX" + bytes(56), bytes(300)])
def test_tags_behind_an_mp3_are_no_damage(tag: bytes) -> None:
    data = encode(voice(2.0), SAMPLE_RATE_HZ, "libmp3lame", "mp3")
    assert len(decoded(data + tag)) >= 2 * SAMPLE_RATE_HZ


@pytest.mark.parametrize("stray", [b"\0", bytes(2), bytes(3), b"\n", b"\r\n"])
def test_a_few_stray_bytes_behind_an_mp3_are_no_damage(stray: bytes) -> None:
    data = encode(voice(2.0), SAMPLE_RATE_HZ, "libmp3lame", "mp3")
    assert np.array_equal(decoded(data + stray), decoded(data))


def test_joined_mp3_files_are_decoded_to_the_last() -> None:
    data = encode(voice(2.0), SAMPLE_RATE_HZ, "libmp3lame", "mp3", tags={"title": "one"})
    assert abs(len(decoded(data + data)) / SAMPLE_RATE_HZ - 4.0) < 0.15


@pytest.mark.parametrize("tag", [id3_tag(PICTURE), ape_tag(PICTURE)])
def test_a_picture_in_a_tag_behind_an_mp3_is_no_damage(tag: bytes) -> None:
    data = encode(voice(2.0), SAMPLE_RATE_HZ, "libmp3lame", "mp3", options={"write_xing": "0"})
    assert np.array_equal(decoded(data + tag + ID3V1), decoded(data))


@pytest.mark.parametrize("tag", [id3_tag(PICTURE), ape_tag(PICTURE), ape_tag(PICTURE) + ID3V1])
def test_a_picture_where_mp3_files_were_joined_costs_a_few_frames_at_most(tag: bytes) -> None:
    data = encode(voice(2.0), SAMPLE_RATE_HZ, "libmp3lame", "mp3", options={"write_xing": "0"})
    joined, apart = decoded(data + tag + data), decoded(data)
    assert 0 <= 2 * len(apart) - len(joined) <= 4 * MP3_FRAME_SAMPLES


def test_damage_behind_a_tag_is_damage() -> None:
    data = encode(voice(2.0), SAMPLE_RATE_HZ, "libmp3lame", "mp3", options={"write_xing": "0"})
    damaged = data[:4000] + bytes([0x55]) * 3000 + data[7000:]
    decoded(data + id3_tag(PICTURE) + data)
    with pytest.raises(CorruptAudio):
        decoded(data + id3_tag(PICTURE) + damaged)


@pytest.mark.parametrize(
    ("codec", "container"), [("libmp3lame", "mp3"), ("flac", "flac"), ("aac", "adts")]
)
def test_an_id3_tag_with_a_large_picture_is_passed_over(codec: str, container: str) -> None:
    options = {"id3v2_version": "0"} if container == "mp3" else None
    data = encode(voice(1.0), SAMPLE_RATE_HZ, codec, container, options=options)
    assert np.array_equal(decoded(id3_tag(PICTURE) + data), decoded(data))


def test_tags_in_another_encoding_are_no_fault() -> None:
    name = "你好".encode("gbk")
    info = b"LIST" + struct.pack("<I", 16) + b"INFOINAM" + struct.pack("<I", 4) + name
    assert len(decoded(wav(bytes(3200), before_data=info))) == 1600


@pytest.mark.parametrize("declared_bytes", [0, 0xFFFF_FFFF, 0x7FFF_F000])
def test_a_streamed_wav_has_no_size_and_is_read_to_its_end(declared_bytes: int) -> None:
    data = wav(bytes(3200), data_bytes=declared_bytes, riff_bytes=declared_bytes + 36 & 0xFFFF_FFFF)
    assert len(decoded(data)) == 1600


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        *(("wav", "pcm_s16le"), ("flac", "flac"), ("mp4", "aac"), ("mp3", "libmp3lame")),
        *(("ogg", "libopus"), ("webm", "libopus"), ("aiff", "pcm_s16be"), ("avi", "pcm_s16le")),
    ],
)
def test_a_header_that_counts_too_much_audio_is_refused_at_once(container: str, codec: str) -> None:
    data = encode(voice(8.0), SAMPLE_RATE_HZ, codec, container)
    with pytest.raises(AudioTooLong):
        next(decode(upload(data), AudioLimits(5.0)))


@pytest.mark.parametrize(
    ("container", "codec", "is_declared"),
    [
        *(("wav", "pcm_s16le", True), ("flac", "flac", True), ("mp4", "aac", True)),
        *(("mp3", "libmp3lame", True), ("ogg", "libopus", True), ("adts", "aac", False)),
    ],
)
def test_blocks_tell_what_the_header_counted(container: str, codec: str, is_declared: bool) -> None:
    data = encode(voice(3.0), SAMPLE_RATE_HZ, codec, container)
    (told,) = {block.declared_samples for block in decode(upload(data), AudioLimits(60.0))}
    assert told == pytest.approx(3 * SAMPLE_RATE_HZ * is_declared, abs=0.15 * SAMPLE_RATE_HZ)


@pytest.mark.parametrize(("container", "codec"), [("adts", "aac"), ("amr", "libopencore_amrnb")])
def test_audio_without_a_count_is_refused_when_it_passes_the_limit(
    container: str, codec: str
) -> None:
    blocks = decode(upload(encode(voice(8.0, 8_000), 8_000, codec, container)), AudioLimits(5.0))
    given = [next(blocks) for _ in range(4)]
    assert given[-1].start_sample + len(given[-1].samples) > 3 * SAMPLE_RATE_HZ
    with pytest.raises(AudioTooLong):
        list(blocks)


def test_audio_as_long_as_the_limit_is_not_too_long() -> None:
    assert len(decoded(wav(bytes(10 * 32_000)), AudioLimits(10.0))) == 10 * SAMPLE_RATE_HZ


def test_audio_a_little_longer_than_the_limit_is_too_long() -> None:
    with pytest.raises(AudioTooLong):
        decoded(wav(bytes(10 * 32_000 + 2)), AudioLimits(10.0))


def test_a_duration_guessed_from_the_bit_rate_is_not_believed() -> None:
    def part(duration_s: float, bit_rate: int) -> bytes:
        options = {"write_xing": "0", "id3v2_version": "0"}
        samples = voice(duration_s)
        return encode(
            samples, SAMPLE_RATE_HZ, "libmp3lame", "mp3", options=options, bit_rate=bit_rate
        )

    data = part(0.5, 8_000) + part(8.0, 160_000)
    assert 8.5 < len(decoded(data, AudioLimits(10.0))) / SAMPLE_RATE_HZ < 9.0


def test_a_long_picture_beside_short_audio_is_not_too_long() -> None:
    data = encode(voice(2.0, 48_000), 48_000, "libopus", "matroska", video_s=20.0)
    assert len(decoded(data, AudioLimits(5.0))) == pytest.approx(2 * SAMPLE_RATE_HZ, abs=1)


def test_a_file_that_was_read_before_is_decoded_from_its_start_and_left_open() -> None:
    source = upload(wav(pcm16(voice(1.0))))
    source.file.seek(0, io.SEEK_END)
    assert sum(len(block.samples) for block in decode(source, NO_LIMIT)) == SAMPLE_RATE_HZ
    assert not source.file.closed


@pytest.mark.parametrize("codec", ["pcm_s16le", "flac"])
def test_only_as_much_is_read_as_is_asked_for(codec: str) -> None:
    container = {"pcm_s16le": "wav", "flac": "flac"}[codec]
    source = upload(encode(voice(60.0), SAMPLE_RATE_HZ, codec, container))
    blocks = decode(source, NO_LIMIT)
    assert source.file.tell() == 0
    next(blocks)
    assert 0 < source.file.tell() < source.size_bytes / 10


def test_half_an_hour_is_decoded_in_the_memory_of_a_few_blocks() -> None:
    with tempfile.SpooledTemporaryFile(max_size=1024) as file:
        file.write(wav(b"", rate_hz=8_000, n_bits=8, data_bytes=1800 * 8_000))
        for _ in range(1800):
            file.write(bytes(8_000))
        n_samples = 0
        tracemalloc.start()
        for block in decode(Upload(file, "long", 0), NO_LIMIT):  # type: ignore[arg-type]
            n_samples += len(block.samples)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert n_samples == 1800 * SAMPLE_RATE_HZ
    assert peak_bytes < 20 * 4 * SAMPLE_RATE_HZ


@pytest.mark.parametrize("leave", ["close", "drop", "end", "raise"])
def test_the_decoder_is_freed_however_its_blocks_are_left(leave: str) -> None:
    source = upload(encode(voice(5.0), SAMPLE_RATE_HZ, "flac", "flac"))
    held_before = sys.getrefcount(source.file)
    blocks = decode(source, NO_LIMIT)
    next(blocks)
    held_between = sys.getrefcount(source.file)
    if leave == "close":
        blocks.close()
    elif leave == "end":
        list(blocks)
    elif leave == "raise":
        with pytest.raises(KeyError):
            blocks.throw(KeyError())
    else:
        del blocks
    held_after = sys.getrefcount(source.file)
    assert held_before == held_after < held_between


def test_files_are_decoded_side_by_side() -> None:
    files = [
        encode(voice(2.0 + index, 44_100), 44_100, codec, container)
        for index, (codec, container) in enumerate(
            [("flac", "flac"), ("libmp3lame", "mp3"), ("pcm_s16le", "wav"), ("alac", "ipod")]
        )
    ]
    with ThreadPoolExecutor(4) as pool:
        lengths = [len(samples) for samples in pool.map(decoded, files)]
    assert lengths == pytest.approx([32_000, 48_000, 64_000, 80_000], abs=1)
