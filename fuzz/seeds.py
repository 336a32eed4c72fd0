"""Small good inputs for the fuzzers to change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.audio_files import caf, encode, pcm16, voice, wav
from tests.hostile import form, part
from tests.hostile_audio import avi_with_playlist, flac_bomb, opus_bomb

KINDS = (
    *(("pcm_s16le", "wav"), ("adpcm_ms", "wav"), ("pcm_s16be", "aiff"), ("pcm_s16be", "au")),
    *(("flac", "flac"), ("flac", "ogg"), ("libopus", "ogg"), ("libopus", "webm")),
    *(("libmp3lame", "mp3"), ("aac", "adts"), ("aac", "mp4"), ("alac", "mov"), ("aac", "avi")),
)


def audio() -> Iterator[bytes]:
    sound = voice(0.05, 48_000)
    for codec, container in KINDS:
        yield encode(sound, 48_000, codec, container, n_channels=2)
    for options in ({}, {"dtx": "1"}):
        yield encode(voice(0.2, 8_000), 8_000, "libopencore_amrnb", "amr", codec_options=options)
    yield wav(pcm16(voice(0.1)))
    yield caf(voice(0.1), (1, 2))
    yield flac_bomb(3)
    yield opus_bomb(13.0, packet_bytes=20)
    yield avi_with_playlist(b"#EXTM3U\nfile:///etc/passwd\n")


def forms() -> Iterator[bytes]:
    """Bodies whose boundary is ``edge``."""
    yield form(b"hello", lang="en", keys="a").content
    yield form(b"hello", b"\r\n--edg", b"").content
    yield part(b"x", 'name="files"; filename="a"; filename*=UTF-8\'\'b') + b"--edge--\r\n"
    yield part(b"x", 'name="files"', b"Content-Type: text/plain") + b"--edge--\r\n"
    yield form(b"x").content + b"epilogue"


def write(seeds: Iterator[bytes], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds):
        (folder / f"seed-{number}").write_bytes(data)
    return folder
