"""Which part of the service a request is for, by the beginning of its path.

Beginnings, and not paths: a router's pattern may match more than the path it was made of, such as
one with a line break behind it.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

OPENAI = "/v1/"
TRANSCRIBE = "/transcribe"


def is_for(scope: MutableMapping[str, Any], *beginnings: str) -> bool:
    """Without the prefix under which the service lies, as its router sees the path."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    if prefix and path.startswith(f"{prefix}/"):
        path = path.removeprefix(prefix)
    return path.startswith(beginnings)


def is_for_work(scope: MutableMapping[str, Any]) -> bool:
    """Whether a slot is wanted."""
    return scope["method"] == "POST" and is_for(scope, TRANSCRIBE, OPENAI)
