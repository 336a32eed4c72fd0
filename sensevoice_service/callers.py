"""How the threads that call an engine on a CPU share its cores."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Threads:
    """Cores for each of several callers, and for one that is alone."""

    narrow: int
    wide: int

    @property
    def n_shares(self) -> int:
        return max(1, self.wide // self.narrow)


class Callers:
    """Counts who is in the engine, since threads of two that have all cores hinder each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_inside = 0

    @contextmanager
    def enter(self, *, has_followers: bool) -> Iterator[bool]:
        """Whether this caller is alone, and will be, as far as is known."""
        with self._lock:
            self._n_inside += 1
            is_alone = self._n_inside == 1 and not has_followers
        try:
            yield is_alone
        finally:
            with self._lock:
                self._n_inside -= 1
