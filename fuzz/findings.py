"""Where the inputs lie that broke something."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha1
from pathlib import Path

FINDINGS = Path(__file__).with_name("findings")


def kept(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """``target``, whose input is written down before its error ends the process.

    libFuzzer does so too, but not where its timer happens to strike meanwhile.
    """

    def attempt(data: bytes) -> None:
        try:
            target(data)
        except BaseException:
            name = f"error-{sha1(data, usedforsecurity=False).hexdigest()}"
            (FINDINGS / name).write_bytes(data)
            raise

    return attempt
