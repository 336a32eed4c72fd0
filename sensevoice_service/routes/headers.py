"""A request's headers, for those who ask for one or two of each request."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any


def header_of(scope: MutableMapping[str, Any], name: bytes) -> bytes:
    """The first of that name, in lower case; ``b""`` where there is none.

    A mapping of all headers would be dear where each request passes by.
    """
    return next((value for found, value in scope["headers"] if found == name), b"")
