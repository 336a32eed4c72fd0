"""Clients that send a request after the other, and what became of each."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import httpx

from tests.audio_files import wav
from tests.fixed_time import pid_of

PATIENT_S = 60.0


def silence(duration_s: float) -> bytes:
    return wav(bytes(2 * round(duration_s * 16_000)))


@dataclass(frozen=True)
class Outcome:
    """``status`` is 0 where there was no answer, ``pid`` that of the copy where it said so."""

    began_s: float
    ended_s: float
    status: int
    pid: int


@dataclass
class Load:
    """``with`` it, so many clients ask until the end of the block."""

    url: str
    n_clients: int
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(self.n_clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENT_S)

    def wait_for(self, n_more: int, timeout_s: float = PATIENT_S, pid: int | None = None) -> None:
        """Until so many more have ended well, in that process where one is given."""
        with self._changed:
            start = len(self.outcomes)

            def has_come() -> bool:
                new = [o for o in self.outcomes[start:] if o.status == 200]
                return sum(pid is None or o.pid == pid for o in new) >= n_more

            assert self._changed.wait_for(has_come, timeout_s)

    def pids(self) -> set[int]:
        with self._changed:
            return {outcome.pid for outcome in self.outcomes if outcome.pid}

    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status != 200]

    def _ask(self) -> None:
        with httpx.Client(base_url=self.url, timeout=PATIENT_S, trust_env=False) as client:
            while not self._stop.is_set():
                outcome = _one(client)
                with self._changed:
                    self.outcomes.append(outcome)
                    self._changed.notify_all()


def _one(client: httpx.Client) -> Outcome:
    began_s, status, pid = time.monotonic(), 0, 0
    try:
        answer = client.post("/transcribe", files={"files": ("a.wav", silence(0.5))})
        status = answer.status_code
        if status == 200:
            pid = pid_of(answer.json()["model"]["name"])
    except httpx.TransportError:
        pass
    return Outcome(began_s, time.monotonic(), status, pid)


def per_second(outcomes: list[Outcome]) -> float:
    """Answers a second, from the first to the last."""
    ends_s = sorted(outcome.ended_s for outcome in outcomes)
    return (len(ends_s) - 1) / (ends_s[-1] - ends_s[0])
