from __future__ import annotations

import os
import tempfile

import pytest

from sensevoice_service.descriptors import descriptor_of


def test_without_proc_the_position_is_not_shared_either(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def without_proc(path: str, flags: int, mode: int = 0o777) -> int:
        if path.startswith("/proc/"):
            raise FileNotFoundError(path)
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "open", without_proc)
    with tempfile.TemporaryFile() as file:
        file.write(b"sounds")
        with open(descriptor_of(file), "rb") as given:
            given.seek(1)
            file.seek(3)
            assert given.read() == b"ounds"
            assert file.read() == b"nds"
