"""An upload as a file descriptor, which one process can give to another."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import BinaryIO


def descriptor_of(file: BinaryIO) -> int:
    """The file's bytes, with a position of their own. The caller closes it.

    Nobody can write to the file through it: it is read-only, or that of a copy.
    """
    try:
        file.flush()
        descriptor = file.fileno()
    except (OSError, AttributeError):  # it is in memory
        return _copied(file)
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # no /proc, and ``dup`` would share the position, which the service moves
        return _copied(file)


def _copied(file: BinaryIO) -> int:
    """A descriptor of a copy that has no name."""
    descriptor = _nameless_file()
    try:
        with open(descriptor, "wb", closefd=False) as target:
            file.seek(0)
            shutil.copyfileobj(file, target, 2**20)
        return descriptor
    except BaseException:
        os.close(descriptor)
        raise


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("upload", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
