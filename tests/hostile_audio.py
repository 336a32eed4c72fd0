"""Files made to harm a decoder: more audio than they look like, and ways out of themselves."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

_REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def ogg(packets_a_page: Iterable[list[bytes]], granules: Iterable[int]) -> bytes:
    """Pages with right checksums; each has some whole packets and says the time that it is told."""
    pages = []
    for number, (packets, granule) in enumerate(zip(packets_a_page, granules, strict=False)):
        lacing = b"".join(b"\xff" * (len(p) // 255) + bytes([len(p) % 255]) for p in packets)
        head = struct.pack("<BBqIII", 0, 2 if number == 0 else 0, granule, 7, number, 0)
        page = b"OggS" + head + bytes([len(lacing)]) + lacing + b"".join(packets)
        checksum = zlib.crc32(page.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
        checksum_bytes = checksum.to_bytes(4, "big").translate(_REVERSED)
        pages.append(page[:22] + checksum_bytes + page[26:])
    return b"".join(pages)


def opus_bomb(duration_s: float, *, packet_bytes: int, told_s: float | None = None) -> bytes:
    """Mono Opus of 60 ms a packet; its times say ``told_s``, where that is not the truth."""
    head = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 0, 48_000, 0, 0)
    tags = b"OpusTags" + struct.pack("<I", 0) + struct.pack("<I", 0)
    a_page = min(200, 60_000 // packet_bytes, 255 // (packet_bytes // 255 + 1))
    n_pages = int(duration_s / 0.06 / a_page)
    speech = bytes([3 << 3]) + bytes((7 * k + 3) % 251 for k in range(packet_bytes - 1))
    end = 48_000 * (duration_s if told_s is None else told_s)
    granules = (int(end * (page + 1) / n_pages) for page in range(n_pages))
    return ogg([[head], [tags], *([speech] * a_page for _ in range(n_pages))], [0, 0, *granules])


def flac_bomb(n_frames: int, *, rate_hz: int = 655_350, n_channels: int = 8) -> bytes:
    """Frames of 65,535 samples of silence in 43 bytes; nothing counts the samples."""
    packed = rate_hz << 44 | (n_channels - 1) << 41 | 15 << 36
    info = struct.pack(">HH", 65_535, 65_535) + bytes(6) + packed.to_bytes(8, "big") + bytes(16)
    frames = (_flac_frame(number, n_channels) for number in range(n_frames))
    return b"fLaC\x80\0\0\x22" + info + b"".join(frames)


def _flac_frame(number: int, n_channels: int) -> bytes:
    """Rate and sample size are those of the file's head: 16 bits."""
    head = bytes([0xFF, 0xF8, 0x70, (n_channels - 1) << 4 | 0b1000]) + _utf8(number)
    head += (65_534).to_bytes(2, "big")
    head += bytes([_crc(head, 0x07, 8)])
    frame = head + b"\0\0\0" * n_channels  # constant subframes, each the value 0
    return frame + _crc(frame, 0x8005, 16).to_bytes(2, "big")


def _utf8(number: int) -> bytes:
    return chr(number).encode() if number < 0xD800 else chr(number + 0x2000).encode()


def _crc(data: bytes, polynomial: int, n_bits: int) -> int:
    value, top, mask = 0, 1 << (n_bits - 1), (1 << n_bits) - 1
    for byte in data:
        value ^= byte << (n_bits - 8)
        for _ in range(8):
            value = (value << 1 ^ polynomial if value & top else value << 1) & mask
    return value


def avi_with_playlist(playlist: bytes) -> bytes:
    """A text stream whose one packet claims to be a file of subtitles, and is a playlist."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    name = "a".encode("utf-16-le") + b"\0\0"
    gab2 = b"GAB2\0" + struct.pack("<HI", 2, len(name)) + name
    gab2 += struct.pack("<HI", 4, len(playlist)) + playlist
    main = struct.pack("<14I", 40_000, 0, 0, 0x10, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0)
    stream = b"txts" + bytes(4) + struct.pack("<10I", 0, 0, 0, 1, 1, 0, 1, 0, 0, 0) + bytes(8)
    strl = chunk(b"LIST", b"strl" + chunk(b"strh", stream) + chunk(b"strf", b""))
    hdrl = chunk(b"LIST", b"hdrl" + chunk(b"avih", main) + strl)
    movi = chunk(b"LIST", b"movi" + chunk(b"00tx", gab2))
    return chunk(b"RIFF", b"AVI " + hdrl + movi)
