"""Files that are no audio, lie about themselves, or point elsewhere; and odd good ones."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.audio_files import encode, pcm16, voice, wav
from tests.hostile import GOOD, MIB, form, is_alive, post, until
from tests.hostile_audio import avi_with_playlist, flac_bomb, opus_bomb

if TYPE_CHECKING:
    from tests.hostile import Victim

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no /proc")

SPEECH = voice(1.0)
NOISE = np.random.default_rng(5)
CANARY = "canary4711"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def code_of(body: dict[str, object]) -> object:
    error = body["error"]
    assert isinstance(error, dict)
    return error["code"]


@pytest.mark.parametrize(
    "data",
    [
        NOISE.bytes(100_000),
        b"%PDF-1.7\n" + NOISE.bytes(50_000),
        b"PK\x03\x04\x14\0\0\0\x08\0" + NOISE.bytes(50_000),
        b"\x7fELF" + NOISE.bytes(50_000),
        b"MZ" + bytes(1000),
        b"<html><script>alert(1)</script></html>",
        b"\0" * MIB,
        b"\xff" * MIB,
    ],
    ids=["noise", "pdf", "zip", "elf", "exe", "html", "zeros", "ones"],
)
def test_what_is_no_audio_is_refused_whatever_its_name_says(victim: Victim, data: bytes) -> None:
    status, body = victim.hears(data)
    assert (status, code_of(body)) == (415, "unsupported_audio")


def test_a_header_that_claims_4_gb_is_refused(victim: Victim) -> None:
    """One that a writer who cannot seek back may leave is believed to mean the end of the file."""
    assert victim.hears(wav(pcm16(SPEECH), data_bytes=0xFFFF_FFFF))[0] == 200
    status, body = victim.hears(wav(pcm16(SPEECH), data_bytes=0x7000_0000))
    assert (status, code_of(body)) == (422, "corrupt_audio")


def test_wherever_a_file_is_cut_the_answer_is_its_audio_or_422(victim: Victim) -> None:
    files = [
        wav(pcm16(SPEECH)),
        encode(SPEECH, 16_000, "flac", "flac"),
        encode(SPEECH, 16_000, "libmp3lame", "mp3"),
        encode(SPEECH, 16_000, "libopus", "ogg"),
        encode(SPEECH, 16_000, "aac", "mp4"),
    ]
    places = NOISE.integers(1, 2**31, 50)
    with victim.unharmed():
        for number, place in enumerate(places):
            data = files[number % len(files)]
            data = data[: 100 + place % (len(data) - 101)]
            status, body = post(victim.port, form(data))
            # Of an MP3, which has no signature, too little may be left to know it by.
            expected = (200, 422, 415) if number % len(files) == 2 else (200, 422)
            assert status in expected, (number, len(data), body)


@pytest.mark.parametrize(
    "bomb",
    [
        opus_bomb(8.7 * 3600, packet_bytes=48),
        opus_bomb(8.7 * 3600, packet_bytes=48, told_s=5.0),
        flac_bomb(1_200),
        wav(bytes(61 * 32_000)),
    ],
    ids=["opus of 8.7 h", "opus that lies", "flac at 655350 Hz", "wav"],
)
def test_more_audio_than_allowed_is_refused_within_bounded_memory(
    victim: Victim, bomb: bytes
) -> None:
    assert len(bomb) < 26 * MIB
    before = victim.rss_bytes()
    peak = [before]
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.02):
            peak.append(victim.rss_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        status, body = victim.hears(bomb)
    finally:
        is_over.set()
        watcher.join()
    assert (status, code_of(body)) == (413, "audio_too_long")
    # Two uploads spill to disk over 1 MiB; two decoders of at most 256 MiB came and went.
    assert max(peak) - before < 400 * MIB


FLOATS = np.full(16_000, 0.1, "<f4")


def floats_with(value: float) -> bytes:
    floats = FLOATS.copy()
    floats[8_000] = value
    return wav(floats.tobytes(), n_bits=32, kind=3)


@pytest.mark.parametrize(
    "data",
    [
        wav(pcm16(SPEECH), rate_hz=0),
        wav(bytes(255 * 2 * 1600), n_channels=255),
        floats_with(float("nan")),
        floats_with(float("inf")),
        floats_with(float("-inf")),
    ],
    ids=["rate 0", "255 channels", "nan", "inf", "-inf"],
)
def test_audio_that_cannot_be_is_corrupt_and_reaches_no_batch(victim: Victim, data: bytes) -> None:
    before = victim.chunks_heard()
    status, body = post(victim.port, form(data))
    assert (status, code_of(body)) == (422, "corrupt_audio")
    assert victim.chunks_heard() == before
    assert victim.hears(data)[0] == 422
    assert victim.chunks_heard() > before


REFERENCES = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile '{}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns={}\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n",
    "mpd": '<?xml version="1.0"?><MPD><BaseURL>{}</BaseURL></MPD>',
    "pls": "[playlist]\nFile1={}\n",
    "xspf": "<playlist><trackList><track><location>{}</location></track></trackList></playlist>",
    "bare": "{}",
}


@pytest.mark.parametrize("kind", [*REFERENCES, "avi"])
@pytest.mark.parametrize("scheme", ["http", "file", "data"])
def test_a_file_that_points_elsewhere_is_refused_and_nothing_is_opened(
    victim: Victim, listener: socket.socket, tmp_path: Path, kind: str, scheme: str
) -> None:
    canary = tmp_path / f"{CANARY}.wav"
    canary.write_bytes(GOOD[0])
    targets = {
        "http": f"http://127.0.0.1:{listener.getsockname()[1]}/a.wav",
        "file": f"file://{canary}",
        "data": "data:audio/wav;base64,UklGRg==",
    }
    text = REFERENCES.get(kind, REFERENCES["m3u8"]).format(targets[scheme]).encode()
    data = avi_with_playlist(text) if kind == "avi" else text
    status, body = victim.hears(data, name=str(canary))
    assert (status, code_of(body)) == (415, "unsupported_audio")
    assert victim.texts[0] not in str(body)
    assert not select.select([listener], [], [], 0)[0]


def pcm24(samples: np.ndarray[tuple[int], np.dtype[np.float32]]) -> bytes:
    whole = (samples * (2**23 - 1)).astype("<i4")
    return whole.view("u1").reshape(-1, 4)[:, :3].tobytes()


SQUARE = np.where(np.arange(16_000) // 40 % 2, 1.0, -1.0).astype(np.float32)


@pytest.mark.parametrize(
    "data",
    [
        wav(bytes(32_000)),
        wav(bytes(2)),
        wav(pcm16(voice(0.01))),
        wav(np.full(16_000, 20_000, "<i2").tobytes()),
        wav(pcm16(SQUARE)),
        wav(pcm16(voice(1.0, 192_000)), rate_hz=192_000),
        wav((128 + 100 * SPEECH).astype("u1").tobytes(), n_bits=8),
        wav(pcm24(SPEECH), n_bits=24),
        wav(SPEECH.astype("<f8").tobytes(), n_bits=64, kind=3),
        wav(bytes(32_000)) + bytes(8 * MIB),
    ],
    ids="silence one-sample 10ms dc square 192kHz 8bit 24bit float64 padded".split(),
)
def test_odd_but_good_audio_is_heard(victim: Victim, data: bytes) -> None:
    status, body = victim.hears(data)
    assert status == 200, body


def test_a_hostile_file_sent_many_times_at_once_wears_nothing_out(victim: Victim) -> None:
    bad = wav(pcm16(SPEECH), rate_hz=0)
    answers: list[int] = []
    with victim.unharmed():
        threads = [
            threading.Thread(
                target=lambda: answers.append(post(victim.port, form(bad, bad, bad, bad))[0])
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [422] * 4


def test_idle_decoders_that_died_are_replaced(victim: Victim) -> None:
    """Those that wait for a file are killed: the next request has others."""
    with victim.unharmed():
        idle = [one for one in victim.decoders() if one.ppid() != victim.process.pid]
        for decoder in idle:
            decoder.kill()
        until(lambda: not set(idle) & set(victim.decoders()))
        status, body = post(victim.port, form(*GOOD))
        assert (status, body["results"]) == (200, victim.texts)


def test_the_host_of_the_decoders_is_replaced(victim: Victim) -> None:
    with victim.unharmed():
        (host,) = victim.process.children()
        host.kill()
        until(lambda: not is_alive(host))
        status, body = post(victim.port, form(*GOOD))
        assert (status, body["results"]) == (200, victim.texts)


def test_a_wav_whose_chunks_go_nowhere_ends_in_time(victim: Victim) -> None:
    """Millions of empty chunks ahead of the audio."""
    junk = b"junk\0\0\0\0" * 300_000
    data = wav(pcm16(SPEECH), before_data=junk)
    status, _ = victim.hears(data)
    assert status in (200, 422)
    tail = wav(pcm16(SPEECH)) + junk + b"data" + struct.pack("<I", 4) + bytes(4)
    assert victim.hears(tail)[0] == 200
