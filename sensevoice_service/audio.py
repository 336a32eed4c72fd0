"""Upload → blocks: decode any audio to mono float32 at 16 kHz, a second at a time.

libav demuxes and decodes, soxr resamples; the waveform is never whole in memory. Where the
container has timestamps of its own (MP4, MOV, Matroska, WebM), a track that begins later than its
file and a gap are silence, so that times are those of a player; an overlap removes nothing. What
libav trims by default is trimmed (the delay of MP3, Opus and AAC encoders where the file tells it);
AAC may keep up to one frame of the encoder's padding at its end.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

import av
from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.codec.codec import UnknownCodecError
from av.container import InputContainer
from av.stream import Discard

from sensevoice_service.containers import Container, inspect
from sensevoice_service.mixer import mono_16k
from sensevoice_service.mpeg_tags import Tags
from sensevoice_service.timeline import TIMED_DEMUXERS, Gap, on_the_clock
from sensevoice_service.types import (
    DECLARED_SLACK_S,
    SAMPLE_RATE_HZ,
    AudioTooLong,
    Block,
    CorruptAudio,
    EmptyFile,
    UnsupportedAudio,
    Upload,
)
from sensevoice_service.window import Window

# A packet is decoded whole; the largest that recorders write are a second of raw PCM.
MAX_PACKET_BYTES = 16 * 1024 * 1024
# Decoders that may run: no video, no pictures, and none of the few hundred rare ones.
DECODERS = (
    *("aac", "ac3", "eac3", "alac", "flac", "opus", "vorbis"),
    *("g722", "g726", "g726le", "gsm", "gsm_ms"),
    *("mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float"),
    *("amrnb", "amrwb", "libopencore_amrnb", "libopencore_amrwb"),
    *("adpcm_ima_qt", "adpcm_ima_wav", "adpcm_ms", "pcm_alaw", "pcm_mulaw", "pcm_s8", "pcm_u8"),
    *(f"pcm_{kind}be" for kind in ("s16", "s24", "s32", "f32", "f64")),
    *(f"pcm_{kind}le" for kind in ("s16", "s24", "s32", "f32", "f64")),
)
# Headers of PCM say all; by default libav reads seconds of samples in search of DTS among them, and
# half of the time that a short file takes is the search of 32 KiB.
PROBE_BYTES = {"wav": 4_096, "aiff": 4_096, "caf": 4_096, "au": 4_096}
# Frames of narrow-band AMR by their kind: eight modes of speech, silence, and nothing sent.
AMR_NB_FRAME_BYTES = {**dict(enumerate((13, 14, 16, 18, 20, 21, 27, 32, 6))), 15: 1}


@dataclass(frozen=True)
class AudioLimits:
    """The longest audio of one file, and the approximate length of a block."""

    max_audio_s: float
    block_s: float = 1.0


def decode(upload: Upload, limits: AudioLimits) -> Generator[Block, None, None]:
    """Decode a file into contiguous blocks of about ``limits.block_s``; the last may be shorter.

    Nothing is read before the first block is asked for. ``upload.file`` is read from its start and
    left open; closing the generator frees the decoder.

    Raises ``EmptyFile`` (no bytes or no samples), ``UnsupportedAudio`` (not audio that we decode),
    ``CorruptAudio`` (damaged, cut off, or holding NaN; blocks may have been given before) and
    ``AudioTooLong``: at once where the header counts the samples, otherwise when the limit is met.
    """
    container = inspect(upload.file)
    max_samples = int(limits.max_audio_s * SAMPLE_RATE_HZ)
    n_samples = 0
    with _open(upload, container) as media:
        stream = _audio_stream(media)
        declared_s = _declared_s(container, media, stream)
        _refuse_longer(declared_s, limits)
        declared_samples = round(declared_s * SAMPLE_RATE_HZ)
        frames = _timed_frames(media, stream, container)
        for samples in mono_16k(frames, limits.block_s):
            if n_samples + len(samples) > max_samples:
                raise AudioTooLong(f"the audio is longer than {limits.max_audio_s:g} s")
            yield Block(samples, n_samples, declared_samples)
            n_samples += len(samples)
    if not n_samples:
        raise EmptyFile("the file holds no audio samples")


def _open(upload: Upload, container: Container) -> InputContainer:
    """The demuxer with every way out of the file closed. PyAV keeps libav's own log silent.

    Only the demuxer of ``container`` runs, no protocol is allowed, and a demuxer that asks for
    another file is refused in Python. Broken text in tags is no reason to fail.
    """
    try:
        return av.open(
            Window(upload.file, container.start_byte, container.end_byte),
            mode="r",
            format=container.demuxer,
            options={
                "protocol_whitelist": "",
                "format_whitelist": container.demuxer,
                "codec_whitelist": ",".join(DECODERS),
                "probesize": str(PROBE_BYTES.get(container.demuxer, 5_000_000)),
                **({"max_size": str(container.packet_bytes)} if container.packet_bytes else {}),
            },
            metadata_errors="ignore",
            io_open=_refuse_file,
        )
    except MemoryError:  # FFmpeg's own is a kind of it, and no fault of the header
        raise
    except av.FFmpegError as error:
        raise CorruptAudio("the header of the file is damaged or cut off") from error


def _refuse_file(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise UnsupportedAudio("the file refers to other files")


def _audio_stream(media: InputContainer) -> AudioStream:
    """The first audio track. Raises ``UnsupportedAudio`` where its codec is none of ours."""
    if not media.streams.audio:
        raise UnsupportedAudio("the file has no audio track")
    stream = media.streams.audio[0]
    codec = stream.codec_context
    if codec is None or codec.name not in DECODERS:
        raise UnsupportedAudio("the audio track is in a codec that this service does not decode")
    _forget_channel_order(codec)
    for other in media.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    return stream


def _forget_channel_order(codec: AudioCodecContext) -> None:
    """Keep the number of channels only, before any frame copies the layout.

    PyAV frees the table of a custom channel order once for each object that shows the layout, and
    aborts the process when an Apple file brings one. A layout without an order has no table, the
    mean over all channels needs none, and no decoder of ``DECODERS`` makes one up.
    """
    if n_channels := codec.layout.nb_channels:
        codec.layout = f"{n_channels}C"


def _decoder(stream: AudioStream) -> AudioCodecContext:
    """Single-threaded: requests are decoded side by side.

    FFmpeg's own AMR decoders do not know the silence that phones send few frames of. opencore's do,
    but have one channel only, and a build of libav may lack them.
    """
    decoder = stream.codec_context
    if decoder.name in ("amrnb", "amrwb") and decoder.layout.nb_channels == 1:
        with suppress(UnknownCodecError):
            decoder = av.Codec(f"libopencore_{decoder.name}", "r").create("audio")
    decoder.thread_count = 1
    decoder.options = {"codec_whitelist": ",".join(DECODERS)}
    # Only FLAC's decoder needs to be told that a wrong checksum is an error.
    if decoder.name == "flac":
        decoder.options |= {"err_detect": "crccheck+explode"}
    return decoder


def _declared_s(container: Container, media: InputContainer, stream: AudioStream) -> float:
    """The length by the word of a header that counted its samples, 0 where none did.

    A duration that libav guesses from a bit rate is not believed, nor that of a file whose other
    tracks may be the longer ones.
    """
    if not container.sized:
        return 0.0
    declared_s = 0.0
    rate_hz = stream.codec_context.sample_rate
    if container.n_samples and rate_hz:
        declared_s = container.n_samples / rate_hz
    elif stream.duration and stream.time_base:
        declared_s = float(stream.duration * stream.time_base)
    elif media.duration and len(media.streams) == 1:
        declared_s = media.duration / av.time_base
    return max(0.0, declared_s)


def _refuse_longer(declared_s: float, limits: AudioLimits) -> None:
    if declared_s > limits.max_audio_s + DECLARED_SLACK_S:
        raise AudioTooLong(
            f"the audio is {declared_s:.0f} s long, more than {limits.max_audio_s:g} s"
        )


def _timed_frames(
    media: InputContainer, stream: AudioStream, container: Container
) -> Iterator[AudioFrame | Gap]:
    """The clock starts with the first track: part of a live stream has none at 0."""
    frames = _frames(media, stream, container)
    if container.demuxer not in TIMED_DEMUXERS or media.start_time is None:
        return frames
    return on_the_clock(frames, start_s=media.start_time / av.time_base)


def _frames(
    media: InputContainer, stream: AudioStream, container: Container
) -> Iterator[AudioFrame]:
    """Frames as the decoder gives them. Raises ``CorruptAudio`` on damage and on a missing end."""
    n_samples = 0
    decoder, tags = _decoder(stream), Tags()
    try:
        for packet in media.demux(stream):
            if not packet.size or tags.hold(packet):
                continue  # an empty packet would end the decoder's work
            if packet.size > MAX_PACKET_BYTES:
                raise CorruptAudio("the file holds a packet of an absurd size")
            if decoder.name == "libopencore_amrnb" and not _is_amr_nb(bytes(packet)):
                raise CorruptAudio("the audio data is damaged")
            try:
                frames = decoder.decode(packet)
            except av.InvalidDataError:
                if container.demuxer == "mp3" and tags.explain(packet):
                    continue
                raise
            for frame in frames:
                n_samples += frame.samples
                yield frame
        yield from decoder.decode(None)
    except MemoryError:
        raise
    except av.FFmpegError as error:
        raise CorruptAudio("the audio data is damaged or cut off") from error
    if n_samples < container.n_samples:
        raise CorruptAudio(
            f"the file is damaged or cut off: {n_samples} of {container.n_samples} samples are left"
        )


def _is_amr_nb(packet: bytes) -> bool:
    """Whether all frames are of a kind there is: for others opencore gives old samples again."""
    at = 0
    while at < len(packet):
        n_bytes = AMR_NB_FRAME_BYTES.get(packet[at] >> 3 & 15)
        if n_bytes is None:
            return False
        at += n_bytes
    return True
