"""Several files at once, each in a thread; one that fails does not stop the others."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sensevoice_service.cli.bodies import Heard
from sensevoice_service.cli.files import Task
from sensevoice_service.types import ServiceError

Hear = Callable[[Path], Heard]

_log = logging.getLogger(__name__)


class FileFailed(Exception):
    """A file has no transcript, for a reason that its user can understand."""


@dataclass(frozen=True)
class Outcome:
    """``result`` is what was heard, or the reason why nothing was."""

    task: Task
    result: Heard | str


def run_jobs(
    tasks: Sequence[Task], hear: Hear, n_jobs: int, tick_s: float = 0.5
) -> Iterator[Outcome | None]:
    """Outcomes as they come, and None whenever none has come for ``tick_s``.

    Closing the iterator lets the threads end after their file; they are daemons, so that a
    process need not wait for them.
    """
    ahead: queue.SimpleQueue[Task] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    for task in tasks:
        ahead.put(task)
    for number in range(min(n_jobs, len(tasks))):
        threading.Thread(
            target=_work, args=(ahead, outcomes, hear), name=f"file-{number}", daemon=True
        ).start()
    n_left = len(tasks)
    try:
        while n_left:
            try:
                outcome = outcomes.get(timeout=tick_s)
            except queue.Empty:
                yield None
                continue
            n_left -= 1
            yield outcome
    finally:
        while _next(ahead) is not None:
            pass


def _work(ahead: queue.SimpleQueue[Task], outcomes: queue.SimpleQueue[Outcome], hear: Hear) -> None:
    while (task := _next(ahead)) is not None:
        outcomes.put(Outcome(task, _attempt(hear, task.audio.path)))


def _next(tasks: queue.SimpleQueue[Task]) -> Task | None:
    try:
        return tasks.get_nowait()
    except queue.Empty:
        return None


def _attempt(hear: Hear, path: Path) -> Heard | str:
    try:
        return hear(path)
    except (ServiceError, FileFailed) as error:
        return str(error)
    except OSError as error:
        return error.strerror or repr(error)
    except Exception as error:
        _log.exception("%s: an unexpected error", path)
        return f"an unexpected error: {error!r}"
