"""How many requests one client may make in a time, known in constant memory."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

MAX_CLIENTS = 10_000
_PERIOD_S = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}


@dataclass(frozen=True)
class Rate:
    n_requests: int
    period_s: int

    @classmethod
    def of(cls, setting: str) -> Rate | None:
        """From a setting such as ``60/minute``; nothing from an empty one."""
        if not setting:
            return None
        count, _, period = setting.partition("/")
        return cls(int(count), _PERIOD_S[period])


class Quota:
    """The generic cell rate algorithm (GCRA): one point in time is kept of each client.

    A client may use up the whole of its rate at once; then it gets a request back each
    ``period_s / n_requests``. A refused request costs nothing. Of more than ``max_clients`` those
    that have not been here for the longest are forgotten, and so start anew.
    """

    def __init__(
        self,
        rate: Rate,
        clock: Callable[[], float] = time.monotonic,
        max_clients: int = MAX_CLIENTS,
    ) -> None:
        self._step_s = rate.period_s / rate.n_requests
        # A grace, or the last request of a burst would hang on a rounding.
        self._burst_s = rate.period_s - 0.999 * self._step_s
        self._clock = clock
        self._max_clients = max_clients
        self._restored_at_s: OrderedDict[Hashable, float] = OrderedDict()

    def take(self, client: Hashable) -> int | None:
        """Count a request. Nothing where it is within the rate, else seconds until one may be."""
        now_s = self._clock()
        restored_at_s = max(now_s, self._restored_at_s.get(client, now_s))
        wait_s = restored_at_s - now_s - self._burst_s
        if wait_s > 0:
            return math.ceil(wait_s)
        self._restored_at_s[client] = restored_at_s + self._step_s
        self._restored_at_s.move_to_end(client)
        while len(self._restored_at_s) > self._max_clients:
            self._restored_at_s.popitem(last=False)
        return None

    def __len__(self) -> int:
        """Clients that are kept in mind."""
        return len(self._restored_at_s)
