"""Plain WAVs: one channel of 16-bit samples at 16 kHz, as clients of speech recognition send them.

Their bytes are the samples, so that they need no decoder, nor a process to keep one in. Whatever a
header leaves in doubt, and whatever there is to refuse, is left to the decoder.
"""

from __future__ import annotations

import struct
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from sensevoice_service.types import SAMPLE_RATE_HZ, Block, CorruptAudio, Upload

if TYPE_CHECKING:
    from sensevoice_service.audio import AudioLimits
    from sensevoice_service.pipeline import Decode

# A header with more than this before its samples holds a picture, or was made to take time.
HEAD_BYTES = 4_096
SAMPLE_BYTES = 2
# A power of two, so that to multiply by it is to divide by 32,768, to the bit.
_INT16_STEP = np.float32(1 / 32_768)
_CHUNK = struct.Struct("<4sI")
_PCM = 1
# Format, channels, samples and bytes a second, bytes of all channels' samples, bits of one.
_PLAIN = struct.pack("<HHIIHH", _PCM, 1, SAMPLE_RATE_HZ, SAMPLE_RATE_HZ * SAMPLE_BYTES, 2, 16)


@dataclass(frozen=True)
class Stretch:
    """Where in its file the samples are."""

    start_byte: int
    n_samples: int


def reading_plain_wavs(decode: Decode) -> Decode:
    """``decode``, but for plain WAVs of an allowed length, which give the same samples."""

    def read_or_decode(upload: Upload, limits: AudioLimits) -> Generator[Block, None, None]:
        stretch = find_samples(upload)
        if stretch is None or stretch.n_samples > int(limits.max_audio_s * SAMPLE_RATE_HZ):
            yield from decode(upload, limits)
        else:
            yield from read_samples(upload.file, stretch, limits.block_s)

    return read_or_decode


def find_samples(upload: Upload) -> Stretch | None:
    """The samples of a plain WAV, None where the file is not one beyond doubt and to its end.

    The chunks of RIFF are those of Microsoft's "Multimedia Programming Interface and Data
    Specifications 1.0".
    """
    upload.file.seek(0)
    head = upload.file.read(min(HEAD_BYTES, upload.size_bytes))
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    fmt = b""
    at = 12
    while at + _CHUNK.size <= len(head):
        name, n_bytes = _CHUNK.unpack_from(head, at)
        at += _CHUNK.size
        if name == b"data":
            is_whole = 0 < n_bytes <= upload.size_bytes - at and n_bytes % SAMPLE_BYTES == 0
            return Stretch(at, n_bytes // SAMPLE_BYTES) if fmt == _PLAIN and is_whole else None
        if name == b"fmt ":
            if fmt or n_bytes < len(_PLAIN):
                return None
            fmt = head[at : at + len(_PLAIN)]
        at += n_bytes + n_bytes % 2
    return None


def read_samples(file: BinaryIO, stretch: Stretch, block_s: float) -> Generator[Block, None, None]:
    """Blocks of ``block_s``; the last may be shorter.

    Raises ``CorruptAudio`` where the file has been cut off since its samples were found.
    """
    block_samples = max(1, round(block_s * SAMPLE_RATE_HZ))
    for start in range(0, stretch.n_samples, block_samples):
        n_bytes = SAMPLE_BYTES * min(block_samples, stretch.n_samples - start)
        file.seek(stretch.start_byte + SAMPLE_BYTES * start)
        data = file.read(n_bytes)
        if len(data) < n_bytes:
            raise CorruptAudio("the file is cut off")
        samples = np.multiply(np.frombuffer(data, "<i2"), _INT16_STEP, dtype=np.float32)
        yield Block(samples, start, stretch.n_samples)
