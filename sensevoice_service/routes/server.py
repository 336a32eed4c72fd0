"""The server's end: signals, a drain, one deadline for the work in hand, and nothing that holds it.

A first SIGTERM makes the service ``stopping``, so that probes and new work are answered 503; for
the drain it listens on, since whoever sends it work takes a while to notice. A SIGINT, someone's
Ctrl-C, does without the drain. What was let in may finish until the deadline, which counts from
the signal, and is answered 503 then. A second signal ends the process on the spot.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

import uvicorn
from uvicorn.server import HANDLED_SIGNALS

from sensevoice_service.admission import Admission
from sensevoice_service.routes.connection import CLOSE
from sensevoice_service.status import ModelInfo

ANSWER_S = 3.0  # for the answers of those who did not finish to reach their clients
CANCEL_S = 1.0  # for what is cut off to notice
WEDGED_S = 10.0  # later than all of the above only where the event loop itself hangs
SIGNALLED = 128  # plus the signal: the exit status of a second one

_log = logging.getLogger("sensevoice_service.server")


class Stoppable(Protocol):
    @property
    def model(self) -> ModelInfo | None: ...

    def begin_stop(self) -> None:
        """Called in a signal handler."""
        ...


@dataclass(frozen=True)
class Grace:
    """Seconds from the signal: ``drain_s`` of listening on, ``work_s`` for what was let in."""

    drain_s: float
    work_s: float


class Server(uvicorn.Server):
    """Serves until a signal or ``should_exit``."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Stoppable,
        admission: Admission,
        grace: Grace,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(config)
        self._service = service
        self._admission = admission
        self._grace = grace
        self._clock = clock
        self._is_signalled = False
        self._stop_s: float | None = None
        self._listen_until_s = math.inf
        self._deadline: asyncio.TimerHandle | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Without the clean-up of ``asyncio.run``, which waits for tasks whose threads hang.

        The process is to end soon after.
        """
        with self._signals_handled():
            factory = self.config.get_loop_factory() or asyncio.new_event_loop
            factory().run_until_complete(self.serve(sockets))

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Nothing: uvicorn's own would raise the signal again, to be the exit status."""
        yield

    @contextmanager
    def _signals_handled(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in HANDLED_SIGNALS}
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._is_signalled:
            os._exit(SIGNALLED + sig)
        self._is_signalled = True
        if self._stop_s is None:  # or else it stops already, since the service cannot go on
            self._begin_stop(drain_s=0.0 if sig == signal.SIGINT else self._grace.drain_s)

    def _begin_stop(self, drain_s: float) -> None:
        self._stop_s = self._clock()
        # Where there has been no model yet, nobody has been told to send work.
        has_served = self._service.model is not None
        self._listen_until_s = self._stop_s + (drain_s if has_served else 0.0)
        self._service.begin_stop()
        longest_s = max(drain_s, self._grace.work_s) + ANSWER_S + CANCEL_S + WEDGED_S
        if sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(longest_s, exit=True, file=sys.__stderr__)

    async def on_tick(self, counter: int) -> bool:
        is_over = await super().on_tick(counter)
        if self._stop_s is None:
            return is_over
        if self._deadline is None:
            self._set_deadline()
        # A client that keeps its connection would not find out where to go instead.
        if CLOSE not in self.server_state.default_headers:
            self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]
        return is_over or self._clock() >= self._listen_until_s

    def _set_deadline(self) -> None:
        stats = self._admission.stats()
        _log.info(
            "stopping: %d requests are in hand and have %g s; a second signal ends it at once",
            stats.active + stats.waiting,
            self._grace.work_s,
        )
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._work_left_s(), self._admission.close)

    def _work_left_s(self) -> float:
        assert self._stop_s is not None
        return max(0.0, self._stop_s + self._grace.work_s - self._clock())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._stop_s is None:  # without a signal: the service cannot go on
            self._begin_stop(drain_s=0.0)
        if self._deadline is None:
            self._set_deadline()
        answered_s = self._work_left_s() + ANSWER_S
        cut = asyncio.get_running_loop().call_later(answered_s, self._cut_connections)
        self.config.timeout_graceful_shutdown = math.ceil(answered_s + CANCEL_S)
        await super().shutdown(sockets)
        cut.cancel()

    def _cut_connections(self) -> None:
        """Of clients that still send, or do not take their answers."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()
