"""Frames of MPEG audio (layers 1 to 3) and of ADTS AAC, found by their headers.

Neither has a file signature. A header is 12 bits of ones and a few fields, so one alone is found
in any data; several that say where the next begins, and agree, are not.
"""

from __future__ import annotations

from dataclasses import dataclass

RUN_FRAMES = 3
ADTS_RATES = 13
_RATES_HZ = (44_100, 48_000, 32_000)
_BITRATES_KBPS = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


@dataclass(frozen=True)
class MpegFrame:
    """One frame; ``kind`` holds the header fields that every frame of a stream shares."""

    is_aac: bool
    length_bytes: int
    kind: tuple[int, ...]


def find_frames(head: bytes, file_bytes: int) -> tuple[int, MpegFrame] | None:
    """Where a run of frames starts in the first bytes of a file, and its first frame.

    A file too short for a run must consist of whole frames only. Free-format streams, whose
    headers do not give a length, are not found.
    """
    at = len(head) - len(head.lstrip(b"\0"))
    while (at := head.find(b"\xff", at)) >= 0:
        frame = parse_frame(head[at : at + 6])
        if frame and _runs(head, at, frame, file_bytes):
            return at, frame
        at += 1
    return None


def _runs(head: bytes, at: int, first: MpegFrame, file_bytes: int) -> bool:
    start, next_at = at, at + first.length_bytes
    for _ in range(RUN_FRAMES - 1):
        if next_at == file_bytes and start == 0:
            return True
        frame = parse_frame(head[next_at : next_at + 6])
        if frame is None or frame.kind != first.kind:
            return False
        next_at += frame.length_bytes
    return True


def parse_frame(header: bytes) -> MpegFrame | None:
    """Read the first 6 bytes of a frame; None where they are none."""
    if len(header) < 6 or header[0] != 0xFF:
        return None
    if header[1] & 0xF6 == 0xF0:
        return _parse_adts(header)
    return _parse_mpeg(header) if header[1] & 0xE0 == 0xE0 else None


def _parse_adts(header: bytes) -> MpegFrame | None:
    length = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    if length < 8 or header[2] >> 2 & 15 >= ADTS_RATES:
        return None
    return MpegFrame(True, length, (header[1], header[2]))


def _parse_mpeg(header: bytes) -> MpegFrame | None:
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bitrate, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or rate == 3 or bitrate in (0, 15):
        return None
    generation, shift = (1, 0) if version == 3 else (2, 1 if version == 2 else 2)
    rate_hz = _RATES_HZ[rate] >> shift
    bits_per_s = 1000 * _BITRATES_KBPS[generation, layer][bitrate - 1]
    if layer == 1:
        length = (12 * bits_per_s // rate_hz + padding) * 4
    else:
        length = (72 if (generation, layer) == (2, 3) else 144) * bits_per_s // rate_hz + padding
    return MpegFrame(False, length, (version, layer, rate))
