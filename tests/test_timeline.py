from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
import pytest

from sensevoice_service.audio import AudioLimits, decode
from sensevoice_service.timeline import Gap, on_the_clock
from sensevoice_service.types import SAMPLE_RATE_HZ, AudioTooLong
from tests.audio_files import Samples, decoded, encode, upload, voice

RATE_HZ, FRAME_SAMPLES = 8_000, 800  # a tenth of a second
KINDS = [("matroska", "flac"), ("webm", "libopus"), ("mp4", "aac"), ("mov", "aac")]


def frames(*starts_s: float | None) -> Iterator[av.AudioFrame]:
    for start_s in starts_s:
        frame = av.AudioFrame(format="s16", layout="mono", samples=FRAME_SAMPLES)
        frame.sample_rate = RATE_HZ
        frame.time_base = Fraction(1, RATE_HZ)
        frame.pts = None if start_s is None else round(start_s * RATE_HZ)
        yield frame


def gaps(found: Iterable[av.AudioFrame | Gap]) -> list[float]:
    """In tenths of a second, 0 for each frame."""
    return [round(10 * one.duration_s, 3) if isinstance(one, Gap) else 0 for one in found]


def test_frames_that_follow_each_other_have_no_gap() -> None:
    assert gaps(on_the_clock(frames(0, 0.1, 0.2), 0.0)) == [0, 0, 0]


def test_a_gap_comes_ahead_of_the_frame_behind_it() -> None:
    assert gaps(on_the_clock(frames(0, 0.4, 0.5, 0.9), 0.0)) == [0, 3, 0, 0, 3, 0]


def test_a_track_may_begin_later_than_its_file() -> None:
    assert gaps(on_the_clock(frames(5, 5.1), 2.0)) == [30, 0, 0]


def test_small_steps_and_frames_without_a_time_are_no_gap() -> None:
    assert gaps(on_the_clock(frames(-0.05, 0.1, None, 0.39), 0.0)) == [0, 0, 0, 0]


def test_small_steps_add_up_to_a_gap() -> None:
    assert gaps(on_the_clock(frames(0, 0.16, 0.32), 0.0)) == [0, 0, 1.2, 0]


def test_what_overlaps_is_kept_and_makes_the_next_gap_shorter() -> None:
    assert gaps(on_the_clock(frames(0, 0, 0.5), 0.0)) == [0, 0, 3, 0]


def remuxed(data: bytes, container: str, shifts_s: dict[float, float]) -> bytes:
    """From each of the times on, packets of audio come so much later."""
    target = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(target, "w", format=container) as output:
        streams = {s.index: output.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "audio":
                time_s = float(packet.pts * packet.time_base)
                shift_s = max((shift for at, shift in shifts_s.items() if time_s >= at), default=0)
                packet.pts += round(shift_s / packet.time_base)
                packet.dts = packet.pts
            packet.stream = streams[packet.stream.index]
            output.mux(packet)
    return target.getvalue()


def loud_s(samples: Samples) -> list[tuple[float, float]]:
    """The stretches that are not silent, to a tenth of a second."""
    tenths = np.abs(samples[: len(samples) // 1_600 * 1_600]).reshape(-1, 1_600).max(axis=1) > 0.05
    edges = np.flatnonzero(np.diff(tenths, prepend=False, append=False)) / 10
    return [(float(a), float(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize(("container", "codec"), KINDS)
def test_a_gap_in_a_recording_is_silence(container: str, codec: str) -> None:
    whole = encode(voice(4, 48_000), 48_000, codec, container)
    heard = decoded(remuxed(whole, container, {2.0: 3.0}))
    (first, second) = loud_s(heard)
    assert first == pytest.approx((0, 2), abs=0.11)
    assert second == pytest.approx((5, 7), abs=0.21)
    assert len(heard) / SAMPLE_RATE_HZ == pytest.approx(7, abs=0.1)


@pytest.mark.parametrize(("container", "codec"), [KINDS[0], KINDS[2], KINDS[3]])
def test_audio_that_begins_behind_its_picture_keeps_its_place(container: str, codec: str) -> None:
    film = encode(voice(2, 48_000), 48_000, codec, container, video_s=6)
    (stretch,) = loud_s(decoded(remuxed(film, container, {-1.0: 3.0})))
    assert stretch == pytest.approx((3, 5), abs=0.21)


def test_part_of_a_live_stream_begins_at_once() -> None:
    whole = encode(voice(2, 48_000), 48_000, "libopus", "webm")
    heard = decoded(remuxed(whole, "webm", {-1.0: 5_000.0}))
    assert len(heard) / SAMPLE_RATE_HZ == pytest.approx(2, abs=0.1)


def test_an_absurd_gap_makes_a_file_too_long() -> None:
    whole = encode(voice(2, 48_000), 48_000, "libopus", "webm")
    data = remuxed(whole, "webm", {1.0: 1e6})
    with pytest.raises(AudioTooLong):
        list(decode(upload(data), AudioLimits(max_audio_s=100)))
