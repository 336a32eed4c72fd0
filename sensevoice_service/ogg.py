"""Pages of an Ogg file: whether all of them arrived as they were sent."""

from __future__ import annotations

import zlib

from sensevoice_service.types import CorruptAudio
from sensevoice_service.window import Window

HEADER_BYTES = 27
_ONES = 0xFFFF_FFFF
_REVERSED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def require_whole_pages(window: Window, max_pages: int) -> None:
    """Raises ``CorruptAudio`` unless each page has its checksum, and the last all of its packet.

    A file that ends between pages with no end-of-stream mark passes: interrupted recordings do.
    """
    at, last = 0, b""
    for _ in range(max_pages):
        page = _page(window, at)
        if page is None and last and last[5] & 4:
            break  # a tag behind the marked end
        if page is None:
            raise CorruptAudio(f"the file is damaged or cut off at byte {at}")
        at, last = at + len(page), page
        if at == window.size_bytes:
            break
    if last[26] and last[HEADER_BYTES + last[26] - 1] == 255:
        raise CorruptAudio("the file is cut off within a packet")


def _page(window: Window, at_byte: int) -> bytes | None:
    """The whole page at this place, None where it is none or its checksum is wrong.

    Ogg's CRC is zlib's polynomial with the bits the other way round, and without its inversions.
    """
    head = window.peek(at_byte, HEADER_BYTES + 255)
    if len(head) < HEADER_BYTES or not head.startswith(b"OggS"):
        return None
    lacing = head[HEADER_BYTES : HEADER_BYTES + head[26]]
    length = HEADER_BYTES + len(lacing) + sum(lacing)
    page = window.peek(at_byte, length)
    if len(page) < length or len(lacing) < head[26]:
        return None
    body = (page[:22] + bytes(4) + page[26:]).translate(_REVERSED_BITS)
    checksum = int.from_bytes(page[22:26].translate(_REVERSED_BITS), "big")
    return page if zlib.crc32(body, _ONES) ^ _ONES == checksum else None
