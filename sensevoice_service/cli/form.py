"""A multipart form with one file, which goes from the disk to the connection piece by piece."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from sensevoice_service.cli.files import legible
from sensevoice_service.cli.jobs import FileFailed

PIECE_BYTES = 256 * 1024


class Form:
    """``fields`` and the rest of ``file``, as the field ``files``; can be sent once."""

    def __init__(self, file: BinaryIO, name: str, fields: Mapping[str, str]) -> None:
        edge = uuid.uuid4().hex
        parts = [_part(edge, f'name="{field}"') + value.encode() for field, value in fields.items()]
        parts.append(_part(edge, f'name="files"; filename="{_quoted(name)}"'))
        self._file = file
        self._file_bytes = os.fstat(file.fileno()).st_size
        self._head = b"\r\n".join(parts)
        self._tail = f"\r\n--{edge}--\r\n".encode()
        n_bytes = len(self._head) + self._file_bytes + len(self._tail)
        self.headers = {
            "Content-Type": f"multipart/form-data; boundary={edge}",
            "Content-Length": str(n_bytes),
        }

    def pieces(self) -> Iterator[bytes]:
        """As many bytes as were announced. Raises ``FileFailed`` where the file has no more."""
        yield self._head
        n_left = self._file_bytes
        while n_left:
            piece = self._read(min(PIECE_BYTES, n_left))
            n_left -= len(piece)
            yield piece
        yield self._tail

    def _read(self, n_bytes: int) -> bytes:
        """Errors of the disk are not to be taken for those of the connection."""
        try:
            piece = self._file.read(n_bytes)
        except OSError as error:
            raise FileFailed(error.strerror or repr(error)) from error
        if not piece:
            raise FileFailed("the file became shorter while it was sent")
        return piece


def _part(edge: str, disposition: str) -> bytes:
    return f"--{edge}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode()


def _quoted(name: str) -> str:
    """As browsers do it."""
    return legible(name).replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
