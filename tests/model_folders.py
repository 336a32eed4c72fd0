"""Model folders for the tests of where a model comes from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bench.make_model import BPE_MODEL_NAME
from sensevoice_service.published import Published, PublishedFile


def publish(model: Path) -> Published:
    """As if ``model`` were the published one."""

    def file(name: str) -> PublishedFile:
        content = (model / name).read_bytes()
        return PublishedFile(len(content), hashlib.sha256(content).hexdigest())

    return Published(file("model.pt"), file(BPE_MODEL_NAME), file("am.mvn"))


def ignore(_message: str) -> None:
    """A report that nobody reads."""
