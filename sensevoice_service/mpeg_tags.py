"""Tags in an MP3: ID3v2 [1] and APEv2 [2] tell their length, others and padding do not.

They lie ahead of the frames, behind them, and, where files were joined, between them. To a parser
of frames a picture in one is full of false frames, so a tag is passed over by its length.

[1] https://id3.org/id3v2.4.0-structure, 3.1 and 3.4
[2] https://wiki.hydrogenaud.io/index.php?title=APEv2_specification
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.packet import Packet

_KINDS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"\0\0\0\0")
_FRAME_HEADER_BYTES = 4
_LONGEST_FRAME_BYTES = 2_881  # layer 2, 160 kbit/s at 8 kHz, padded
_APE_EDGE_BYTES = 32  # its header, and its footer
_APE_IS_HEADER = 1 << 29


class Tags:
    """Those of one MP3, found where its decoder takes offence."""

    def __init__(self) -> None:
        self._end_byte = 0

    def hold(self, packet: Packet[AudioStream]) -> bool:
        """Whether a packet lies within a tag that has been found."""
        return self._end_byte > 0 and packet.pos is not None and packet.pos < self._end_byte

    def explain(self, packet: Packet[AudioStream]) -> bool:
        """Whether a packet that cannot be decoded is no damage.

        That is a tag, what a false frame at the end of one has left of the first true one, or a few
        bytes that are not the start of a frame that was cut off.
        """
        data, at_byte = bytes(packet), packet.pos or 0
        if data.startswith(_KINDS):
            if length := _told_bytes(data):
                self._end_byte = at_byte + length
            return True
        is_stray = len(data) < _FRAME_HEADER_BYTES and data[0] != 0xFF
        is_left = 0 < self._end_byte <= at_byte < self._end_byte + _LONGEST_FRAME_BYTES
        return is_stray or is_left


def id3v2_bytes(head: bytes) -> int:
    """Length of the ID3v2 tag that begins with these ten bytes; 0 if they are not a tag's."""
    if len(head) < 10 or head[:3] != b"ID3":
        return 0
    length = 0
    for byte in head[6:10]:
        length = length << 7 | byte & 0x7F
    return 10 + length + (10 if head[5] & 0x10 else 0)


def _told_bytes(data: bytes) -> int:
    """Length of a tag by its own word, 0 without one."""
    if data.startswith(b"APETAGEX") and len(data) >= _APE_EDGE_BYTES:
        length, flags = (int.from_bytes(data[at : at + 4], "little") for at in (12, 20))
        return _APE_EDGE_BYTES + (length if flags & _APE_IS_HEADER else 0)
    return id3v2_bytes(data)
