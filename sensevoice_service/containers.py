"""What an uploaded file is by its own first bytes, and whether all of it arrived.

The demuxer is chosen here and libav is told its name, so libav never guesses: a playlist, a
script or a description of streams matches no signature and reaches no demuxer. libav also reads
many cut-off files without a word; the sizes that containers declare are compared with the bytes
that are there, and each Ogg page with its checksum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, Literal

from sensevoice_service.mpeg import MpegFrame, find_frames
from sensevoice_service.mpeg_tags import id3v2_bytes
from sensevoice_service.ogg import require_whole_pages
from sensevoice_service.types import CorruptAudio, EmptyFile, UnsupportedAudio
from sensevoice_service.window import Window

# Writers that cannot seek back leave a size of 0, of all ones, or of about 2 GiB in the header.
PLACEHOLDER_BYTES = 0x7F00_0000
ID3V1_BYTES = 128
# More than a day of Ogg pages of 20 ms: what has more pieces is made to waste time.
MAX_PIECES = 5_000_000
MAX_ID3_TAGS = 8
# Of mono at 16 kHz libav makes packets of 2 KiB, and each goes its way through Python by itself.
# With larger ones than these the search of the header takes longer, for it decodes one.
SLOW_PCM_BYTES_PER_S, SLOW_PCM_PACKET_BYTES = 96_000, 16 * 1024
MPEG_SEARCH_BYTES = 64 * 1024
# Archives and documents may hold a whole MP3 a few bytes after their own header.
NOT_AUDIO = (b"PK", b"%PDF", b"Rar!", b"7z")


@dataclass(frozen=True)
class Container:
    """How to read a file: libav's ``demuxer``, and the byte where it starts after any ID3v2 tag.

    ``end_byte`` is where the audio is known to end, 0 where that is for the demuxer to find out.
    ``sized`` says that the duration in the header was counted and not guessed. ``n_samples`` is
    how many samples a channel the header promises, 0 where it promises nothing that can be checked.
    ``packet_bytes`` is how much of a WAV to decode at once, 0 where that is for the demuxer to say.
    """

    demuxer: str
    start_byte: int = 0
    sized: bool = False
    n_samples: int = 0
    end_byte: int = 0
    packet_bytes: int = 0


def inspect(file: BinaryIO) -> Container:
    """Recognise the container and compare its declared sizes with the file.

    Raises ``EmptyFile``, ``UnsupportedAudio`` (no signature of ours) or ``CorruptAudio`` (cut off).
    """
    window = Window(file)
    if not window.size_bytes:
        raise EmptyFile("the file is empty")
    start_byte = _id3_tags_bytes(window)
    if start_byte:
        window = Window(file, start_byte)
        if not window.size_bytes:
            raise CorruptAudio("the file ends within its ID3 tag")
    demuxer = _demuxer(window.peek(0, 12))
    container = _CHECKS[demuxer](window) if demuxer else _check_mpeg(window)
    return replace(
        container,
        start_byte=start_byte + container.start_byte,
        end_byte=container.end_byte and start_byte + container.end_byte,
    )


def _id3_tags_bytes(window: Window) -> int:
    """Length of the ID3v2 tags at the start: libav need not unpack pictures and comments."""
    at = 0
    for _ in range(MAX_ID3_TAGS):
        length = id3v2_bytes(window.peek(at, 10))
        if not length:
            break
        at += length
    return at


def _demuxer(head: bytes) -> str | None:
    kind = head[8:12]
    # Not RIFX, whose samples libav reads in the wrong order of bytes.
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and kind == b"WAVE":
        return "wav"
    if head[:4] == b"RIFF" and kind in (b"AVI ", b"AVIX"):
        return "avi"
    if head[:4] == b"FORM" and kind in (b"AIFF", b"AIFC"):
        return "aiff"
    # A first byte of text would be a box of half a gigabyte.
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip") and head[0] < 0x20:
        return "mov"
    signatures = {
        b"fLaC": "flac",
        b"OggS": "ogg",
        b"caff": "caf",
        b".snd": "au",
        b"#!AMR": "amr",
        b"\x1a\x45\xdf\xa3": "matroska",
    }
    return next((name for magic, name in signatures.items() if head.startswith(magic)), None)


def _cut_off(what: str, declared_bytes: int, there_bytes: int) -> CorruptAudio:
    return CorruptAudio(
        f"the file is cut off: {what} should be {declared_bytes} bytes long and is {there_bytes}"
    )


def _chunks(
    window: Window, at_byte: int, order: Literal["little", "big"], size_bytes: int = 4
) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and declared length of the chunks of an IFF-like file."""
    for _ in range(MAX_PIECES):
        head = window.peek(at_byte, 4 + size_bytes)
        if len(head) < 4 + size_bytes:
            break
        length = int.from_bytes(head[4:], order)
        at_byte += 4 + size_bytes
        yield head[:4], at_byte, length
        at_byte += length + (length & 1 if size_bytes == 4 else 0)


def _require(window: Window, what: str, at_byte: int, length: int) -> bool:
    """Whether a declared length is a true one. Raises ``CorruptAudio`` if less is there."""
    if length == 0 or length >= PLACEHOLDER_BYTES > window.size_bytes:
        return False
    if at_byte + length > window.size_bytes:
        raise _cut_off(what, length, window.size_bytes - at_byte)
    return True


def _check_wav(window: Window) -> Container:
    riff_bytes = 8 + int.from_bytes(window.peek(4, 4), "little")
    long_data_bytes = packet_bytes = 0
    for name, at, length in _chunks(window, 12, "little"):
        if name == b"ds64":
            long_data_bytes = int.from_bytes(window.peek(at + 8, 8), "little")
        if name == b"fmt ":
            packet_bytes = SLOW_PCM_PACKET_BYTES if _is_slow_pcm(window.peek(at, 12)) else 0
        if name == b"data":
            if length == 0 and riff_bytes == window.size_bytes:
                raise EmptyFile("the file holds no audio samples")
            if length == 0xFFFF_FFFF and long_data_bytes:
                length = long_data_bytes
            sized = _require(window, "the audio data", at, length)
            # Behind its data libav looks for more, and takes a minute for 100 MB of zeros.
            end_byte = at + length if sized else 0
            return Container("wav", sized=sized, end_byte=end_byte, packet_bytes=packet_bytes)
    raise CorruptAudio("the file ends before its audio data")


def _is_slow_pcm(fmt: bytes) -> bool:
    """Whether a ``fmt `` chunk tells of plain samples, few a second."""
    tag, bytes_per_s = (int.from_bytes(part, "little") for part in (fmt[:2], fmt[8:12]))
    return tag == 1 and 0 < bytes_per_s <= SLOW_PCM_BYTES_PER_S


def _check_avi(window: Window) -> Container:
    for name, at, length in _chunks(window, 12, "little"):
        if name == b"LIST":
            _require(window, "a list of chunks", at, length)
    return Container("avi", sized=True)


def _check_aiff(window: Window) -> Container:
    for name, at, length in _chunks(window, 12, "big"):
        if name == b"SSND":
            return Container("aiff", sized=_require(window, "the audio data", at, length))
    raise CorruptAudio("the file ends before its audio data")


def _check_caf(window: Window) -> Container:
    for name, at, length in _chunks(window, 8, "big", size_bytes=8):
        if name == b"data":
            return Container("caf", sized=_require(window, "the audio data", at, length))
    raise CorruptAudio("the file ends before its audio data")


def _check_au(window: Window) -> Container:
    at, length = (int.from_bytes(window.peek(byte, 4), "big") for byte in (4, 8))
    sized = _require(window, "the audio data", at, length)
    return Container("au", sized=sized, end_byte=at + length if sized else 0)


def _check_flac(window: Window) -> Container:
    stream_info = window.peek(8, 34)
    n_samples = int.from_bytes(stream_info[13:18], "big") & 0xF_FFFF_FFFF
    return Container("flac", sized=n_samples > 0, n_samples=n_samples)


def _check_mov(window: Window) -> Container:
    at = 0
    for _ in range(MAX_PIECES):
        head = window.peek(at, 16)
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8 or not name.isalnum():
            break
        if name in (b"moov", b"moof", b"mdat") and at + length > window.size_bytes:
            raise _cut_off(f"the box {name.decode()}", length, window.size_bytes - at)
        at += length
    return Container("mov", sized=True)


def _check_matroska(window: Window) -> Container:
    """The one size that tells is the segment's; a live recording leaves it unknown, all ones."""
    length, n_bytes = _ebml_size(window.peek(4, 8))
    at = 4 + n_bytes + (length or 0)
    if window.peek(at, 4) == b"\x18\x53\x80\x67":
        length, n_bytes = _ebml_size(window.peek(at + 4, 8))
        at += 4 + n_bytes
        if length is not None and at + length > window.size_bytes:
            raise _cut_off("the segment", length, window.size_bytes - at)
    return Container("matroska", sized=True)


def _ebml_size(head: bytes) -> tuple[int | None, int]:
    """An EBML length, None where all its bits are ones, and the bytes that it takes itself."""
    n_bytes = 9 - head[0].bit_length() if head and head[0] else 8
    mask = (1 << 7 * n_bytes) - 1
    value = int.from_bytes(head[:n_bytes], "big") & mask
    return (None if value == mask else value), n_bytes


def _check_ogg(window: Window) -> Container:
    require_whole_pages(window, MAX_PIECES)
    return Container("ogg", sized=True)


def _check_amr(window: Window) -> Container:
    return Container("amr")


def _check_mpeg(window: Window) -> Container:
    """MPEG audio and ADTS AAC have no signature: a run of frames that fit together is one."""
    head = window.peek(0, MPEG_SEARCH_BYTES)
    found = None if head.startswith(NOT_AUDIO) else find_frames(head, window.size_bytes)
    if found is None:
        raise UnsupportedAudio("the file is not in an audio format that this service decodes")
    at, frame = found
    if frame.is_aac:
        return Container("aac", start_byte=at)
    return Container("mp3", start_byte=at, sized=_xing_counts(window, at, frame))


def _xing_counts(window: Window, at_byte: int, frame: MpegFrame) -> bool:
    """Whether the first frame is an encoder's note of the length, and the length is there.

    Since then a tag that some encoders count or a broken last frame may have been stripped.
    """
    note = window.peek(at_byte, min(frame.length_bytes, 64))
    at = max(note.find(b"Xing"), note.find(b"Info"))
    if at < 0:
        return False
    flags, _, n_bytes = (int.from_bytes(note[at + i : at + i + 4], "big") for i in (4, 8, 12))
    there = window.size_bytes - at_byte
    if flags & 3 == 3 and n_bytes > there + ID3V1_BYTES + frame.length_bytes:
        raise _cut_off("the audio data", n_bytes, there)
    return flags & 1 == 1


_CHECKS: dict[str, Callable[[Window], Container]] = {
    "wav": _check_wav,
    "avi": _check_avi,
    "aiff": _check_aiff,
    "caf": _check_caf,
    "au": _check_au,
    "flac": _check_flac,
    "mov": _check_mov,
    "matroska": _check_matroska,
    "ogg": _check_ogg,
    "amr": _check_amr,
}
