"""``python -m fuzz.audio [-max_total_time=60 …]``: whatever the bytes, blocks or a refusal.

libFuzzer, by atheris, changes small files of each kind; how far they get through our own readers of
containers leads it. libav is not instrumented.
"""

from __future__ import annotations

import io

import atheris

with atheris.instrument_imports(
    include=["sensevoice_service.containers", "sensevoice_service.mpeg", "sensevoice_service.ogg"]
):
    from sensevoice_service.audio import AudioLimits, decode

import numpy as np

from fuzz import seeds
from fuzz.loop import run
from sensevoice_service.decoder_wire import REFUSALS
from sensevoice_service.types import Upload

LIMITS = AudioLimits(max_audio_s=30.0)


def decode_one(data: bytes) -> None:
    n_samples = 0
    try:
        for block in decode(Upload(io.BytesIO(data), "", len(data)), LIMITS):
            assert block.start_sample == n_samples
            assert np.isfinite(block.samples).all()
            assert np.abs(block.samples).max(initial=0.0) <= 1.0
            n_samples += len(block.samples)
    except tuple(REFUSALS.values()):
        return
    assert n_samples


def main() -> None:
    run(decode_one, seeds.audio())


if __name__ == "__main__":
    main()
