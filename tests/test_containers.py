from __future__ import annotations

import io
import struct

import pytest

from sensevoice_service.containers import Container, inspect
from sensevoice_service.types import SAMPLE_RATE_HZ, CorruptAudio, EmptyFile, UnsupportedAudio
from tests.audio_files import encode, voice, wav


def inspected(data: bytes) -> Container:
    return inspect(io.BytesIO(data))


def encoded(codec: str, container: str, **options: str) -> bytes:
    return encode(voice(1.0), SAMPLE_RATE_HZ, codec, container, options=options)


def index_in_front(mp4: bytes) -> bytes:
    """The boxes in the order that players on the web like; the offsets are left as they were."""
    media, index = mp4.index(b"mdat") - 4, mp4.index(b"moov") - 4
    return mp4[:media] + mp4[index:] + mp4[media:index]


def ogg_page(lacing: bytes) -> bytes:
    """A page with a checksum that is computed as the Ogg specification tells, bit by bit."""
    head = b"OggS" + bytes(22) + bytes([len(lacing)]) + lacing
    page = bytearray(head + bytes(sum(lacing)))
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1) ^ (0x104C11DB7 if checksum >> 31 else 0)
    page[22:26] = checksum.to_bytes(4, "little")
    return bytes(page)


@pytest.mark.parametrize(
    ("codec", "container", "demuxer", "sized"),
    [
        ("pcm_s16le", "wav", "wav", True),
        ("pcm_s16be", "aiff", "aiff", True),
        ("pcm_s16le", "caf", "caf", True),
        ("pcm_s16be", "au", "au", True),
        ("pcm_s16le", "avi", "avi", True),
        ("flac", "flac", "flac", True),
        ("libopus", "ogg", "ogg", True),
        ("aac", "mp4", "mov", True),
        ("aac", "mov", "mov", True),
        ("libopus", "webm", "matroska", True),
        ("libopus", "matroska", "matroska", True),
        ("libmp3lame", "mp3", "mp3", True),
        ("mp2", "mp2", "mp3", False),
        ("aac", "adts", "aac", False),
    ],
)
def test_a_container_is_known_by_its_bytes(
    codec: str, container: str, demuxer: str, sized: bool
) -> None:
    found = inspected(encoded(codec, container))
    assert (found.demuxer, found.sized) == (demuxer, sized)


def test_amr_is_known_by_its_bytes() -> None:
    assert inspected(b"#!AMR\n" + bytes(100)) == Container("amr")
    assert inspected(b"#!AMR-WB\n" + bytes(100)) == Container("amr")


def test_the_header_of_flac_promises_a_number_of_samples() -> None:
    assert inspected(encoded("flac", "flac")).n_samples == SAMPLE_RATE_HZ


def test_an_mp3_without_an_encoders_note_has_no_counted_length() -> None:
    assert not inspected(encoded("libmp3lame", "mp3", write_xing="0")).sized


def test_a_container_starts_behind_its_id3_tags() -> None:
    flac = encoded("flac", "flac")
    tag = b"ID3\4\0\0\0\0\1\2" + bytes(130)
    footed = b"ID3\4\0\x10\0\0\0\x05" + bytes(5 + 10)
    assert inspected(tag + flac).start_byte == 140
    assert inspected(tag + footed + flac).start_byte == 165
    assert inspected(tag + flac).demuxer == "flac"


def test_an_mp3_starts_at_its_first_whole_frame() -> None:
    frames = encoded("libmp3lame", "mp3", write_xing="0", id3v2_version="0")
    assert inspected(bytes(5000) + frames).start_byte == 5000
    assert 0 < inspected(frames[100:]).start_byte < 500


def test_the_audio_data_of_a_wav_has_to_be_there() -> None:
    data = wav(bytes(3200))
    assert inspected(data).sized
    with pytest.raises(CorruptAudio, match="3200 bytes long and is 3199"):
        inspected(data[:-1])


def test_a_large_wav_has_its_size_in_another_chunk() -> None:
    sizes = struct.pack("<QQQI", 3300, 3200, 1600, 0)
    body = b"WAVEds64" + struct.pack("<I", len(sizes)) + sizes + wav(bytes(3200))[12:]
    data = b"RF64\xff\xff\xff\xff" + body.replace(b"data\x80\x0c\0\0", b"data\xff\xff\xff\xff")
    found = inspected(data)
    assert found.sized
    assert found.end_byte == len(data)
    with pytest.raises(CorruptAudio):
        inspected(data[:-1])


@pytest.mark.parametrize("declared_bytes", [0, 0x7FFF_F000, 0x8000_0000, 0xFFFF_FFFF])
def test_a_wav_whose_writer_could_not_seek_is_not_sized(declared_bytes: int) -> None:
    assert not inspected(wav(bytes(3200), data_bytes=declared_bytes, riff_bytes=36)).sized


@pytest.mark.parametrize(
    ("tag", "bytes_per_s", "is_slow"),
    [(1, 32_000, True), (1, 96_000, True), (1, 176_400, False), (17, 8_100, False), (1, 0, False)],
)
def test_plain_samples_of_a_low_rate_come_in_larger_packets(
    tag: int, bytes_per_s: int, is_slow: bool
) -> None:
    data = bytearray(wav(bytes(3200)))
    struct.pack_into("<H", data, 20, tag)
    struct.pack_into("<I", data, 28, bytes_per_s)
    assert bool(inspected(bytes(data)).packet_bytes) == is_slow


def test_what_follows_an_empty_data_chunk_is_no_audio() -> None:
    data = wav(b"") + b"LIST\4\0\0\0INFO"
    with pytest.raises(EmptyFile):
        inspected(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])


@pytest.mark.parametrize(
    ("codec", "container"),
    [
        ("pcm_s16be", "aiff"),
        ("pcm_s16le", "caf"),
        ("pcm_s16be", "au"),
        ("libopus", "webm"),
        ("libopus", "ogg"),
        ("aac", "mp4"),
    ],
)
def test_a_missing_last_byte_is_noticed(codec: str, container: str) -> None:
    data = encoded(codec, container)
    inspected(data)
    with pytest.raises(CorruptAudio):
        inspected(data[:-1])


def test_what_is_behind_the_audio_data_of_an_au_is_none_of_it() -> None:
    data = encoded("pcm_s16be", "au")
    assert inspected(data + bytes(4096)).end_byte == len(data)


def test_an_avi_may_lack_its_index_but_no_sound() -> None:
    data = encoded("pcm_s16le", "avi")
    index = data.rindex(b"idx1")
    inspected(data[: index + 4])
    with pytest.raises(CorruptAudio):
        inspected(data[: index - 1])


def test_an_mp4_with_its_index_in_front_is_checked_for_its_data() -> None:
    with pytest.raises(CorruptAudio, match="box mdat"):
        inspected(index_in_front(encoded("aac", "mp4"))[:-100])


def test_an_mp4_box_that_reaches_to_the_end_has_no_size() -> None:
    data = index_in_front(encoded("aac", "mp4"))
    at = data.index(b"mdat") - 4
    endless = data[:at] + bytes(4) + data[at + 4 : -100]
    assert inspected(endless) == Container("mov", sized=True)


def test_an_mp4_in_fragments_is_checked_for_the_last() -> None:
    data = encoded("aac", "mp4", movflags="frag_every_frame+empty_moov+default_base_moof")
    assert data.count(b"moof") > 5
    inspected(data)
    with pytest.raises(CorruptAudio):
        inspected(data[: data.rindex(b"mdat") + 10])


def test_a_live_webm_of_unknown_size_may_end_anywhere() -> None:
    data = encoded("libopus", "webm", live="1")
    assert inspected(data[: len(data) // 2]).demuxer == "matroska"


def test_an_mp3_shorter_than_its_encoder_counted_is_cut_off() -> None:
    data = encoded("libmp3lame", "mp3")
    with pytest.raises(CorruptAudio):
        inspected(data[: int(0.8 * len(data))])


def test_a_wrong_bit_in_an_ogg_page_is_noticed() -> None:
    data = bytearray(encoded("libopus", "ogg"))
    data[len(data) // 2] ^= 1
    with pytest.raises(CorruptAudio):
        inspected(bytes(data))


def test_an_ogg_recording_that_was_interrupted_between_pages_is_whole() -> None:
    data = encoded("libopus", "ogg", page_duration="100000")
    last = data.rindex(b"OggS")
    assert inspected(data[:last]).demuxer == "ogg"


def test_an_ogg_file_that_ends_within_a_packet_is_cut_off() -> None:
    assert inspected(ogg_page(bytes([255, 10]))) == Container("ogg", sized=True)
    with pytest.raises(CorruptAudio, match="packet"):
        inspected(ogg_page(bytes([10, 255])))


def test_a_tag_behind_the_marked_end_of_an_ogg_file_is_no_damage() -> None:
    assert inspected(encoded("libopus", "ogg") + b"TAG" + bytes(125)).demuxer == "ogg"


@pytest.mark.parametrize("data", [b"RIFF\4\0\0\0WAVE", b"FORM\0\0\0\4AIFF", b"caff\0\1\0\0"])
def test_a_header_without_audio_data_is_cut_off(data: bytes) -> None:
    with pytest.raises(CorruptAudio, match="before its audio data"):
        inspected(data)


def test_nothing_is_empty() -> None:
    with pytest.raises(EmptyFile):
        inspected(b"")


@pytest.mark.parametrize(
    "data",
    [
        b"RIFF\4\0\0\0WEBP",
        b"RIFX" + wav(bytes(3200))[4:],
        b"OGGS",
        b"the free world",
        b"ID3 is it",
    ],
)
def test_a_likeness_is_not_enough(data: bytes) -> None:
    with pytest.raises(UnsupportedAudio):
        inspected(data)
