"""Audio files made for the tests, of many kinds and with chosen faults."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from sensevoice_service.audio import AudioLimits, decode
from sensevoice_service.types import SAMPLE_RATE_HZ, Upload

Samples = NDArray[np.float32]
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
NO_LIMIT = AudioLimits(max_audio_s=36_000.0)


def voice(duration_s: float, rate_hz: int = SAMPLE_RATE_HZ) -> Samples:
    """Seven partials that swell and fade: like nothing else when shifted or resampled wrongly."""
    t = np.arange(round(duration_s * rate_hz)) / rate_hz
    partials_hz = (180, 320, 650, 1100, 1700, 2300, 2900)
    tones = sum(np.sin(2 * np.pi * f * t + f) for f in partials_hz)
    return (0.07 * tones * (1 + np.sin(2 * np.pi * 3.1 * t + 0.3))).astype(np.float32)


def encode(
    samples: Samples,
    rate_hz: int,
    codec: str,
    container: str,
    *,
    n_channels: int = 1,
    video_s: float = 0.0,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
    bit_rate: int = 0,
) -> bytes:
    """The same samples in every channel, with a moving picture of ``video_s`` beside them.

    ``options`` are the container's.
    """
    told = {"strict": "experimental", **(codec_options or {})}
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=options or {}) as output:
        output.metadata.update(tags or {})
        # Every stream has to be there before the first packet is.
        packets = []
        if len(samples):
            packets.append(_audio(output, samples, rate_hz, codec, n_channels, bit_rate, told))
        if video_s:
            packets.append(_video(output, video_s))
        for packet in itertools.chain.from_iterable(packets):
            output.mux(packet)
    return file.getvalue()


def _audio(
    output: Any,
    samples: Samples,
    rate_hz: int,
    codec: str,
    n_channels: int,
    bit_rate: int,
    options: dict[str, str],
) -> Iterator[av.Packet[Any]]:
    layout = LAYOUTS[n_channels]
    stream = output.add_stream(codec, rate=rate_hz, layout=layout)
    stream.codec_context.options = options
    if bit_rate:
        stream.bit_rate = bit_rate
    packed = np.repeat(samples, n_channels).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
    frame.sample_rate = rate_hz
    frame.pts, frame.time_base = 0, Fraction(1, rate_hz)
    return (packet for part in (frame, None) for packet in stream.encode(part))


def _video(output: Any, duration_s: float) -> Iterator[av.Packet[Any]]:
    stream = output.add_stream("mpeg4", rate=10)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    pictures = [
        np.full((48, 64, 3), index % 256, np.uint8) for index in range(int(10 * duration_s))
    ]
    frames = [av.VideoFrame.from_ndarray(pixels, format="rgb24") for pixels in pictures]
    return (packet for part in (*frames, None) for packet in stream.encode(part))


def wav(
    data: bytes,
    *,
    rate_hz: int = SAMPLE_RATE_HZ,
    n_channels: int = 1,
    n_bits: int = 16,
    kind: int = 1,
    data_bytes: int | None = None,
    riff_bytes: int | None = None,
    before_data: bytes = b"",
) -> bytes:
    """A WAV file whose header may say what is not so."""
    frame_bytes = n_channels * n_bits // 8
    byte_rate = min(rate_hz * frame_bytes, 0xFFFF_FFFF)
    fmt = struct.pack("<HHIIHH", kind, n_channels, rate_hz, byte_rate, frame_bytes, n_bits)
    size = struct.pack("<I", len(data) if data_bytes is None else data_bytes)
    body = b"WAVEfmt \x10\0\0\0" + fmt + before_data + b"data" + size + data
    return b"RIFF" + struct.pack("<I", len(body) if riff_bytes is None else riff_bytes) + body


def pcm16(samples: Samples) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


def caf(samples: Samples, labels: tuple[int, ...]) -> bytes:
    """A 16-bit CAF file that names the place of each of its channels."""
    n_channels = len(labels)
    desc = struct.pack(">d4sIIIII", SAMPLE_RATE_HZ, b"lpcm", 2, 2 * n_channels, 1, n_channels, 16)
    places = b"".join(struct.pack(">IIfff", label, 0, 0, 0, 0) for label in labels)
    chan = struct.pack(">III", 0, 0, n_channels) + places
    data = bytes(4) + pcm16(np.repeat(samples, n_channels))
    chunks = ((b"desc", desc), (b"chan", chan), (b"data", data))
    return b"caff\0\1\0\0" + b"".join(n + struct.pack(">q", len(b)) + b for n, b in chunks)


def upload(data: bytes) -> Upload:
    return Upload(io.BytesIO(data), "speech", len(data))


def decoded(data: bytes, limits: AudioLimits = NO_LIMIT) -> Samples:
    return np.concatenate([block.samples for block in decode(upload(data), limits)])
