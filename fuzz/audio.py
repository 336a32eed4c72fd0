"""``python -m fuzz.audio [-max_total_time=60 …]``: whatever the bytes, blocks or a refusal.

libFuzzer, by atheris, changes small files of each kind; how far they get through our own readers of
containers leads it. libav is not instrumented. Its findings are left in ``fuzz/findings``.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["sensevoice_service.containers", "sensevoice_service.mpeg", "sensevoice_service.ogg"]
):
    from sensevoice_service.audio import AudioLimits, decode

import numpy as np

from fuzz import seeds
from fuzz.findings import FINDINGS, kept
from sensevoice_service.decoder_wire import REFUSALS
from sensevoice_service.types import Upload

LIMITS = AudioLimits(max_audio_s=30.0)
BOUNDS = ("-timeout=20", "-rss_limit_mb=1536", "-max_len=32768", f"-artifact_prefix={FINDINGS}/")
# Numbers that come nearer to those they are compared with count as progress.
LEADS = ("-use_value_profile=1",)
REPORT = ("-verbosity=0", "-print_final_stats=1")


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
    FINDINGS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        corpus = seeds.write(seeds.audio(), Path(folder))
        atheris.Setup(
            [sys.argv[0], *BOUNDS, *LEADS, *REPORT, *sys.argv[1:], str(corpus)], kept(decode_one)
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
