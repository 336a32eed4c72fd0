"""``python -m fuzz.audio [-max_total_time=60 …]``: whatever the bytes, blocks or a refusal.

libFuzzer, by atheris, changes small files of each kind; how far they get through our own readers of
containers leads it. libav is not instrumented. What is read without libav has to be what it reads.
"""

from __future__ import annotations

import io

import atheris

with atheris.instrument_imports(
    include=[f"sensevoice_service.{name}" for name in ("containers", "mpeg", "ogg", "plain_wav")]
):
    from sensevoice_service.audio import AudioLimits, decode
    from sensevoice_service.plain_wav import find_samples, reading_plain_wavs

import numpy as np
from numpy.typing import NDArray

from fuzz import seeds
from fuzz.loop import run
from sensevoice_service.decoder_wire import REFUSALS
from sensevoice_service.pipeline import Decode
from sensevoice_service.types import Upload

LIMITS = AudioLimits(max_audio_s=30.0)


def decode_one(data: bytes) -> None:
    samples = samples_of(data, decode)
    if find_samples(upload_of(data)):
        np.testing.assert_array_equal(samples_of(data, reading_plain_wavs(decode)), samples)


def samples_of(data: bytes, decode: Decode) -> NDArray[np.float32]:
    """None of them where the file is refused."""
    found, n_samples = [np.empty(0, np.float32)], 0
    try:
        for block in decode(upload_of(data), LIMITS):
            assert block.start_sample == n_samples
            assert np.isfinite(block.samples).all()
            assert np.abs(block.samples).max(initial=0.0) <= 1.0
            found.append(block.samples)
            n_samples += len(block.samples)
    except tuple(REFUSALS.values()):
        return found[0]
    assert n_samples
    return np.concatenate(found)


def upload_of(data: bytes) -> Upload:
    return Upload(io.BytesIO(data), "", len(data))


def main() -> None:
    run(decode_one, seeds.audio())


if __name__ == "__main__":
    main()
