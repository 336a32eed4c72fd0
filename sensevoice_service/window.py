"""A stretch of an uploaded file, as far as libav is allowed to see it."""

from __future__ import annotations

from os import SEEK_CUR, SEEK_END, SEEK_SET
from typing import BinaryIO


class Window:
    """A file from ``start_byte`` to ``end_byte``, read-only, for libav and for looking ahead.

    An ``end_byte`` of 0 is the file's own end. It has no name, so that the client's words never
    reach libav, and no ``close``. A seek to outside stops at its border: damaged files ask for such
    places.
    """

    def __init__(self, file: BinaryIO, start_byte: int = 0, end_byte: int = 0) -> None:
        self._file = file
        self._start_byte = start_byte
        file.seek(0, SEEK_END)
        self.size_bytes = max(0, min(end_byte or file.tell(), file.tell()) - start_byte)
        self.seek(0)

    def read(self, n_bytes: int) -> bytes:
        return self._file.read(min(n_bytes, self.size_bytes - self.tell()))

    def tell(self) -> int:
        return self._file.tell() - self._start_byte

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        base = {SEEK_SET: 0, SEEK_CUR: self.tell(), SEEK_END: self.size_bytes}[whence]
        target = min(max(base + offset, 0), self.size_bytes)
        self._file.seek(self._start_byte + target)
        return target

    def peek(self, at_byte: int, n_bytes: int) -> bytes:
        self.seek(at_byte)
        return self.read(n_bytes)
