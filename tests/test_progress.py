from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from sensevoice_service.progress import Gauge, Teller
from sensevoice_service.types import SAMPLE_RATE_HZ, Block, Progress, Upload

BYTES_PER_S = 1_000


class File:
    """A file of ``duration_s`` behind a header, and a decoder that reads ahead of its blocks."""

    def __init__(self, duration_s: int, *, header_bytes: int = 0, ahead_s: int = 0) -> None:
        self.duration_s, self.header_bytes, self.ahead_s = duration_s, header_bytes, ahead_s
        self.size_bytes = header_bytes + duration_s * BYTES_PER_S
        self.upload = Upload(io.BytesIO(bytes(self.size_bytes)), "", self.size_bytes)

    def blocks(self) -> Iterator[Block]:
        for k in range(self.duration_s):
            position = self.header_bytes + (k + 1 + self.ahead_s) * BYTES_PER_S
            self.upload.file.seek(min(self.size_bytes, position))
            yield Block(np.zeros(SAMPLE_RATE_HZ, np.float32), k * SAMPLE_RATE_HZ)


def guesses_s(file: File) -> list[float]:
    """After each block, and at the end."""
    gauge = Gauge(file.upload)
    found = [gauge.n_samples for _ in gauge.watch(file.blocks())]
    return [n_samples / SAMPLE_RATE_HZ for n_samples in (*found, gauge.n_samples)]


@pytest.mark.parametrize("header_bytes", [0, 300_000], ids=["no header", "long header"])
def test_the_length_is_known_from_the_second_block_on(header_bytes: int) -> None:
    guesses = guesses_s(File(40, header_bytes=header_bytes))
    assert guesses[1:] == pytest.approx([40.0] * 40)


def test_what_is_read_ahead_is_short_until_the_end() -> None:
    guesses = guesses_s(File(100, ahead_s=10))
    assert guesses[1:90] == pytest.approx([90.0] * 89)
    assert guesses[-1] == 100


@pytest.mark.parametrize("ahead_s", [0, 50])
def test_a_file_whose_position_tells_nothing_has_as_much_to_come(ahead_s: int) -> None:
    class Silent(io.BytesIO):
        def tell(self) -> int:
            if not ahead_s:
                raise OSError("no position")
            return len(self.getvalue())

    file = File(20)
    file.upload = Upload(Silent(bytes(file.size_bytes)), "", file.size_bytes)
    assert guesses_s(file) == [*range(2, 42, 2), 20]


def test_a_file_of_wrong_size_is_no_shorter_than_what_is_decoded() -> None:
    file = File(20)
    file.upload = Upload(file.upload.file, "", 5 * BYTES_PER_S)
    assert all(guess >= k for k, guess in enumerate(guesses_s(file)[:-1], start=1))


def test_nothing_decoded_is_no_length() -> None:
    assert Gauge(File(20).upload).n_samples == 0


def test_fractions_never_fall_though_the_file_turns_out_to_be_longer() -> None:
    """The first fifth of the file has half of its bytes."""
    file = Upload(io.BytesIO(bytes(80_000)), "", 80_000)
    told: list[Progress] = []
    gauge = Gauge(file)
    teller = Teller(told.append, gauge)

    def blocks() -> Iterator[Block]:
        for k in range(50):
            file.file.seek((k + 1) * 4_000 if k < 10 else 40_000 + (k - 9) * 1_000)
            yield Block(np.zeros(SAMPLE_RATE_HZ, np.float32), k * SAMPLE_RATE_HZ)

    guesses = list[float]()
    for block in gauge.watch(blocks()):
        guesses.append(gauge.n_samples)
        teller.gained("", min(block.start_sample, 9 * SAMPLE_RATE_HZ))
    fractions = [progress.fraction for progress in told]
    assert guesses[40] > 2 * guesses[9]
    assert all(before <= after for before, after in pairwise(fractions))
    assert fractions[-1] == fractions[9] == pytest.approx(9 / 20)


def test_the_conclusion_tells_the_rest() -> None:
    told: list[Progress] = []
    teller = Teller(told.append, Gauge(File(20).upload))
    teller.gained("one", 0)
    teller.gained(" two", 0)
    teller.concluded("one two three")
    assert told == [Progress(0.0, "one"), Progress(0.0, " two"), Progress(1.0, " three")]
