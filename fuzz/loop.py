"""libFuzzer, by atheris, around a function of bytes. Its findings are left in ``fuzz/findings``."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import atheris

from fuzz import seeds
from fuzz.findings import FINDINGS, kept

BOUNDS = ("-timeout=20", "-rss_limit_mb=1536", "-max_len=32768", f"-artifact_prefix={FINDINGS}/")
# Numbers that come nearer to those they are compared with count as progress.
LEADS = ("-use_value_profile=1",)
REPORT = ("-verbosity=0", "-print_final_stats=1")


def run(target: Callable[[bytes], None], inputs: Iterator[bytes]) -> None:
    """Change ``inputs`` until ``target`` raises, or for as long as libFuzzer's arguments say."""
    FINDINGS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        corpus = seeds.write(inputs, Path(folder))
        atheris.Setup(
            [sys.argv[0], *BOUNDS, *LEADS, *REPORT, *sys.argv[1:], str(corpus)], kept(target)
        )
        atheris.Fuzz()
