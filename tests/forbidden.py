"""Files and folders that may not be looked into, not even by root: see capabilities(7)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import Structure, byref, c_int, c_uint32
from pathlib import Path

VERSION = 0x20080522
DAC_OVERRIDE, DAC_READ_SEARCH = 1 << 1, 1 << 2

_LIBC = ctypes.CDLL(None, use_errno=True)


class _Header(Structure):
    _fields_ = (("version", c_uint32), ("pid", c_int))


class _Capabilities(Structure):
    _fields_ = (("effective", c_uint32), ("permitted", c_uint32), ("inheritable", c_uint32))


@contextmanager
def forbidden(path: Path) -> Iterator[None]:
    """For the length of the block this thread has no right to what is there."""
    rights = path.stat().st_mode
    path.chmod(0)
    before, held = _capabilities(), _capabilities()
    held[0].effective &= ~(DAC_OVERRIDE | DAC_READ_SEARCH)
    _set(held)
    try:
        yield
    finally:
        _set(before)
        path.chmod(rights)


def _capabilities() -> ctypes.Array[_Capabilities]:
    found = (_Capabilities * 2)()
    _require(_LIBC.capget(byref(_Header(VERSION)), found))
    return found


def _set(capabilities: ctypes.Array[_Capabilities]) -> None:
    _require(_LIBC.capset(byref(_Header(VERSION)), capabilities))


def _require(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
