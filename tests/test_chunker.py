from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sensevoice_service.chunker import ChunkPolicy, cut
from sensevoice_service.types import SAMPLE_RATE_HZ, Block, Chunk, DecodeOptions

Samples = NDArray[np.float32]
POLICY = ChunkPolicy(whole_s=6.0, chunk_s=4.0, overlap_s=0.8, tail_s=0.5)
OPTIONS = DecodeOptions("en", use_itn=False)


def noise(duration_s: float, level: float = 0.1, seed: int = 0) -> Samples:
    n_samples = round(duration_s * SAMPLE_RATE_HZ)
    return (level * np.random.default_rng(seed).standard_normal(n_samples)).astype(np.float32)


def even_noise(duration_s: float) -> Samples:
    """The same power everywhere."""
    samples = np.full(round(duration_s * SAMPLE_RATE_HZ), 0.1, np.float32)
    samples[::2] *= -1
    return samples


def speech(n_bursts: int, burst_s: float, pause_s: float, pause_level: float = 0.001) -> Samples:
    """Bursts of a gliding tone, each followed by a pause."""
    parts = []
    for k in range(n_bursts):
        time = np.arange(round(burst_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
        parts.append((0.3 * np.sin(2 * np.pi * (150 + 20 * k + 30 * time) * time)).astype("f4"))
        parts.append(noise(pause_s, pause_level, seed=k))
    return np.concatenate(parts)


def blocks_of(
    samples: Samples, size: int, start_sample: int = 0, declared_samples: int = 0
) -> Iterator[Block]:
    for start in range(0, len(samples), size):
        yield Block(samples[start : start + size], start_sample + start, declared_samples)


def chunks_of(
    samples: Samples,
    policy: ChunkPolicy = POLICY,
    *,
    size: int = 16_000,
    is_large: bool = False,
    declared_samples: int = 0,
) -> list[Chunk]:
    blocks = blocks_of(samples, size, declared_samples=declared_samples)
    return list(cut(blocks, OPTIONS, policy, is_large=is_large))


def assert_covers(chunks: Sequence[Chunk], samples: Samples) -> None:
    end = 0
    for index, chunk in enumerate(chunks):
        assert chunk.index == index
        assert chunk.start_sample == end - chunk.overlap_samples
        assert chunk.end_sample > end
        np.testing.assert_array_equal(
            chunk.samples, samples[chunk.start_sample : chunk.end_sample], strict=True
        )
        assert chunk.has_followers == (index < len(chunks) - 1)
        end = chunk.end_sample
    assert end == len(samples)


def test_a_stream_without_samples_yields_nothing() -> None:
    assert list(cut([], OPTIONS, POLICY)) == []
    empty = Block(np.empty(0, np.float32), 0)
    assert list(cut([empty, empty], OPTIONS, POLICY, is_large=True)) == []


@pytest.mark.parametrize("n_samples", [1, 399, 16_000, 95_999, 96_000])
def test_a_file_up_to_the_whole_length_is_one_chunk(n_samples: int) -> None:
    samples = noise(6.0)[:n_samples]
    (chunk,) = chunks_of(samples)
    np.testing.assert_array_equal(chunk.samples, samples, strict=True)
    assert (chunk.start_sample, chunk.index, chunk.overlap_samples) == (0, 0, 0)
    assert chunk.options is OPTIONS


def test_one_sample_more_makes_chunks_of_at_most_the_chunk_length() -> None:
    samples = noise(6.1)[:96_001]
    chunks = chunks_of(samples)
    assert_covers(chunks, samples)
    assert max(len(chunk.samples) for chunk in chunks) <= POLICY.chunk_samples


def test_a_large_file_is_cut_at_the_chunk_length_from_the_start() -> None:
    samples = noise(5.0)
    assert len(chunks_of(samples)) == 1
    chunks = chunks_of(samples, is_large=True)
    assert_covers(chunks, samples)
    assert len(chunks) == 2


@pytest.mark.parametrize("n_lanes", [1, 2, 7])
@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_every_sample_is_covered_within_the_limits(seed: int, is_large: bool, n_lanes: int) -> None:
    rng = np.random.default_rng(seed)
    chunk_s = rng.uniform(1, 5)
    policy = ChunkPolicy(
        whole_s=rng.uniform(0, 8),
        chunk_s=chunk_s,
        search_s=(None, 0.1, chunk_s / 4, chunk_s)[seed % 4],
        overlap_s=rng.uniform(0, 3),
        tail_s=rng.uniform(0, 1),
        n_lanes=n_lanes,
    )
    parts = [noise(rng.uniform(0, 2), rng.choice([0, 1e-5, 0.01, 0.3]), i) for i in range(20)]
    samples = np.concatenate(parts)[: rng.integers(1, 400_000)]
    chunks = chunks_of(samples, policy, is_large=is_large)
    assert_covers(chunks, samples)
    is_whole = not is_large and len(samples) <= policy.whole_samples
    limit = policy.whole_samples if is_whole else policy.chunk_samples
    for chunk in chunks:
        assert len(chunk.samples) <= limit
        assert chunk.overlap_samples <= policy.overlap_samples
    # No sample falls into three chunks, and none adds a mere sliver.
    for before, after in zip(chunks, chunks[2:], strict=False):
        assert before.end_sample <= after.start_sample
    for chunk in chunks[1:]:
        assert len(chunk.samples) - chunk.overlap_samples >= policy.tail_samples


@pytest.mark.parametrize("n_lanes", [1, 2])
@pytest.mark.parametrize("samples", [noise(13.0), speech(16, 0.6, 0.3)], ids=["noise", "speech"])
def test_cuts_do_not_depend_on_how_the_stream_is_divided(samples: Samples, n_lanes: int) -> None:
    policy = replace(POLICY, n_lanes=n_lanes)
    expected = [(c.start_sample, c.end_sample) for c in chunks_of(samples, policy)]
    assert len(expected) > 2
    for size in (1, 160, 50_000, len(samples)):
        chunks = chunks_of(samples, policy, size=size)
        assert [(c.start_sample, c.end_sample) for c in chunks] == expected


@pytest.mark.parametrize("n_lanes", [1, 2, 3])
@pytest.mark.parametrize("duration_s", [3.0, 6.0, 8.4, 9.0, 13.0, 40.0])
@pytest.mark.parametrize("wrong_by", [0, -300, 300])
def test_cuts_do_not_depend_on_a_header_that_tells_the_length(
    n_lanes: int, duration_s: float, wrong_by: int
) -> None:
    policy = replace(POLICY, n_lanes=n_lanes)
    samples = speech(50, 0.6, 0.3)[: round(duration_s * SAMPLE_RATE_HZ)]
    untold = chunks_of(samples, policy)
    told = chunks_of(samples, policy, size=4_000, declared_samples=len(samples) + wrong_by)
    assert [(c.start_sample, c.end_sample) for c in told] == [
        (c.start_sample, c.end_sample) for c in untold
    ]


@pytest.mark.parametrize("declared_samples", [1, 80_000, 2**62])
@pytest.mark.parametrize("n_samples", [1, 63_999, 64_000, 72_000, 72_001, 96_000, 400_000])
def test_a_header_that_lies_costs_no_sample(declared_samples: int, n_samples: int) -> None:
    samples = np.resize(noise(6.0), n_samples)
    chunks = chunks_of(samples, size=4_000, declared_samples=declared_samples)
    assert_covers(chunks, samples)
    assert max(len(chunk.samples) for chunk in chunks) <= POLICY.whole_samples


def test_where_the_end_is_declared_far_a_chunk_comes_without_the_sight_of_it() -> None:
    blocks = blocks_of(noise(60.0), 16_000, declared_samples=60 * SAMPLE_RATE_HZ)
    n_read = 0

    def counted() -> Iterator[Block]:
        nonlocal n_read
        for block in blocks:
            n_read += 1
            yield block

    next(cut(counted(), OPTIONS, replace(POLICY, n_lanes=2)))
    assert n_read == POLICY.chunk_s + 1


def test_a_stream_may_start_later_than_zero() -> None:
    samples = noise(9.0)
    chunks = list(cut(blocks_of(samples, 7000, start_sample=500), OPTIONS, POLICY))
    assert [c.start_sample for c in chunks] == [c.start_sample + 500 for c in chunks_of(samples)]


@pytest.mark.parametrize("pause_level", [0.0, 0.001, 0.01])
@pytest.mark.parametrize("offset", [0.0, 0.2])
def test_cuts_fall_into_pauses(pause_level: float, offset: float) -> None:
    samples = speech(20, burst_s=0.9, pause_s=0.4, pause_level=pause_level) + np.float32(offset)
    chunks = chunks_of(samples)
    assert_covers(chunks, samples)
    assert len(chunks) > 5
    for chunk in chunks[1:]:
        assert chunk.overlap_samples == 0
        into_period_s = chunk.start_sample / SAMPLE_RATE_HZ % 1.3
        assert 1.0 <= into_period_s <= 1.2


def test_the_longest_pause_of_the_window_is_cut_in_its_middle() -> None:
    samples = noise(7.0)
    for start_s, stop_s in ((2.7, 3.0), (3.2, 3.8)):
        samples[round(start_s * SAMPLE_RATE_HZ) : round(stop_s * SAMPLE_RATE_HZ)] = 0
    first = chunks_of(samples)[0]
    assert first.end_sample / SAMPLE_RATE_HZ == pytest.approx(3.5, abs=0.02)


def test_of_equal_pauses_the_later_is_cut() -> None:
    samples = noise(7.0)
    for start_s in (2.8, 3.4):
        samples[round(start_s * SAMPLE_RATE_HZ) :][: round(0.4 * SAMPLE_RATE_HZ)] = 0
    first = chunks_of(samples)[0]
    assert first.end_sample / SAMPLE_RATE_HZ == pytest.approx(3.6, abs=0.02)


def test_a_pause_long_enough_is_preferred_to_an_earlier_longer_one() -> None:
    samples = noise(12.0)
    for start_s, stop_s in ((5.2, 6.9), (8.0, 9.3)):
        samples[round(start_s * SAMPLE_RATE_HZ) : round(stop_s * SAMPLE_RATE_HZ)] = 0
    policy = ChunkPolicy(whole_s=10.0, chunk_s=10.0, search_s=5.0)
    first = chunks_of(samples, policy)[0]
    assert first.end_sample / SAMPLE_RATE_HZ == pytest.approx(8.65, abs=0.02)


def test_all_that_is_inaudible_is_one_silence() -> None:
    samples = np.concatenate([noise(3.0), noise(0.8, 1e-5), noise(4.0)])
    samples[round(3.1 * SAMPLE_RATE_HZ) : round(3.35 * SAMPLE_RATE_HZ)] = 0
    first = chunks_of(samples)[0]
    assert first.end_sample / SAMPLE_RATE_HZ == pytest.approx(3.4, abs=0.02)


def test_an_inaudible_stream_needs_no_overlap() -> None:
    chunks = chunks_of(noise(20.0, 1e-5))
    assert len(chunks) > 4
    assert not any(chunk.overlap_samples for chunk in chunks)


def test_soft_speech_beside_loud_speech_is_no_pause() -> None:
    loud, soft, pause = noise(3.0, 0.5), noise(0.7, 0.02), noise(0.3, 0.0005)
    samples = np.concatenate([loud, pause, soft, loud])
    first = chunks_of(samples)[0]
    assert 3.0 < first.end_sample / SAMPLE_RATE_HZ < 3.3


def test_without_a_pause_neighbours_overlap_around_the_quietest_point() -> None:
    samples = noise(8.0)
    samples[round(3.0 * SAMPLE_RATE_HZ) : round(3.2 * SAMPLE_RATE_HZ)] *= 0.4
    left, right = chunks_of(samples)[:2]
    assert right.overlap_samples == POLICY.overlap_samples == 12_800
    np.testing.assert_array_equal(
        right.samples[: right.overlap_samples], left.samples[-right.overlap_samples :]
    )
    middle_s = (right.start_sample + left.end_sample) / 2 / SAMPLE_RATE_HZ
    assert middle_s == pytest.approx(3.1, abs=0.02)


def test_even_noise_is_cut_near_the_limit() -> None:
    assert len(chunks_of(even_noise(8.0))[0].samples) > POLICY.chunk_samples - 200


@pytest.mark.parametrize("excess_samples", [1, 160, 4_000, 7_999])
def test_the_last_chunk_is_no_sliver(excess_samples: int) -> None:
    samples = even_noise(5.0)[: POLICY.chunk_samples + excess_samples]
    chunks = chunks_of(samples, is_large=True)
    assert_covers(chunks, samples)
    assert len(chunks) == 2
    assert len(chunks[1].samples) - chunks[1].overlap_samples >= SAMPLE_RATE_HZ // 2


def finish_s(chunks: Sequence[Chunk], n_lanes: int) -> float:
    """When the last is done, each second of audio taking one, if whoever is free takes the next."""
    done_s = [0.0] * n_lanes
    for chunk in chunks:
        first = done_s.index(min(done_s))
        done_s[first] += len(chunk.samples) / SAMPLE_RATE_HZ
    return max(done_s)


@pytest.mark.parametrize("n_bursts", range(25, 60, 3))
def test_those_side_by_side_end_at_about_the_same_time(n_bursts: int) -> None:
    """A pause every 0.85 s: within two of them, where the last of even chunks may be 5 s late."""
    samples = speech(n_bursts, burst_s=0.6, pause_s=0.25)
    chunks = chunks_of(samples, ChunkPolicy(whole_s=20.0, chunk_s=10.0, n_lanes=2))
    assert_covers(chunks, samples)
    assert finish_s(chunks, 2) - len(samples) / SAMPLE_RATE_HZ / 2 < 1.7


@pytest.mark.parametrize("n_lanes", [3, 4, 8])
def test_even_shares_end_no_later_than_long_chunks(n_lanes: int) -> None:
    policy = ChunkPolicy(whole_s=20.0, chunk_s=10.0)
    gains_s = []
    for n_bursts in range(25, 60, 4):
        samples = speech(n_bursts, burst_s=0.6, pause_s=0.25)
        chunks = chunks_of(samples, replace(policy, n_lanes=n_lanes))
        assert_covers(chunks, samples)
        gains_s.append(finish_s(chunks_of(samples, policy), n_lanes) - finish_s(chunks, n_lanes))
    assert min(gains_s) > -0.3
    assert max(gains_s) > 0


@pytest.mark.parametrize("n_bursts", [20, 25, 30, 35])
def test_a_file_a_little_longer_than_the_whole_length_is_shared_out(n_bursts: int) -> None:
    """Its end is seen before the first cut, up to twice the chunk's length."""
    samples = speech(n_bursts, burst_s=0.6, pause_s=0.25)
    chunks = chunks_of(samples, ChunkPolicy(whole_s=16.0, chunk_s=15.0, n_lanes=2))
    assert_covers(chunks, samples)
    assert finish_s(chunks, 2) - len(samples) / SAMPLE_RATE_HZ / 2 < 1.0


def test_chunks_far_from_the_end_are_as_long_for_many_as_for_one() -> None:
    samples = speech(203, burst_s=0.6, pause_s=0.25)
    for_one = chunks_of(samples)
    for_many = chunks_of(samples, replace(POLICY, n_lanes=2))
    spans = [[(c.start_sample, c.end_sample) for c in chunks] for chunks in (for_one, for_many)]
    assert spans[0][:-4] == spans[1][: len(for_one) - 4]
    assert spans[0] != spans[1]


def test_a_rest_that_leaves_no_room_for_two_is_one_chunk() -> None:
    samples = even_noise(6.0)
    policy = ChunkPolicy(whole_s=0.0, chunk_s=4.0, overlap_s=0.8, tail_s=0.5, n_lanes=2)
    assert policy.earliest_aim_samples > SAMPLE_RATE_HZ
    for duration_s in (0.5, 2.0, 4.0):
        assert len(chunks_of(samples[: round(duration_s * SAMPLE_RATE_HZ)], policy)) == 1


def test_without_a_pause_the_rest_is_cut_near_its_even_share() -> None:
    """The overlaps are heard twice, and count."""
    samples = even_noise(20.0)
    policy = ChunkPolicy(whole_s=20.0, chunk_s=12.0, overlap_s=0.8, tail_s=0.5, n_lanes=2)
    chunks = chunks_of(samples, policy, is_large=True)
    assert_covers(chunks, samples)
    assert [len(chunk.samples) / SAMPLE_RATE_HZ for chunk in chunks] == pytest.approx(
        [10.0, 10.0], abs=1.0
    )


def test_chunks_own_their_samples() -> None:
    samples = noise(20.0)
    stream = cut(blocks_of(samples, 16_000), OPTIONS, POLICY)
    first = next(stream)
    kept = first.samples.copy()
    rest = list(stream)
    np.testing.assert_array_equal(first.samples, kept)
    assert not any(np.shares_memory(first.samples, chunk.samples) for chunk in rest)


@pytest.mark.parametrize(("n_lanes", "sight_s"), [(1, POLICY.whole_s), (2, 2 * POLICY.chunk_s)])
def test_no_more_is_read_than_a_chunk_needs(n_lanes: int, sight_s: float) -> None:
    n_read = 0

    def endless() -> Iterator[Block]:
        nonlocal n_read
        while True:
            yield Block(noise(1.0, seed=n_read), n_read * SAMPLE_RATE_HZ)
            n_read += 1

    stream = cut(endless(), OPTIONS, replace(POLICY, n_lanes=n_lanes))
    held_s = sight_s + POLICY.tail_s
    for _ in range(20):
        chunk = next(stream)
        assert n_read <= chunk.end_sample / SAMPLE_RATE_HZ + held_s + 1


def test_samples_that_are_not_numbers_are_cut_all_the_same() -> None:
    samples = noise(9.0)
    samples[50_000:60_000] = np.nan
    assert_covers(chunks_of(samples), samples)


@pytest.mark.parametrize(
    "wrong",
    [
        {"chunk_s": 0.5},
        {"whole_s": -1.0},
        {"overlap_s": -0.1},
        {"search_s": 0.0},
        {"tail_s": -1.0},
        {"n_lanes": 0},
    ],
)
def test_a_policy_that_cannot_be_kept_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ChunkPolicy(**{"whole_s": 6.0, "chunk_s": 4.0, **wrong})
