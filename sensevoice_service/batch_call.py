"""One batch on its way through a worker: calls, halves where a call fails, and an outcome a job."""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, replace

from sensevoice_service.types import (
    Chunk,
    DeviceOutOfMemory,
    Hypothesis,
    InferenceFailed,
    NotReady,
)

Worker = Callable[[Sequence[Chunk]], Sequence[Hypothesis]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Completion:
    """A hypothesis and what it took.

    ``infer_s`` is an even share of its batch's time, which runs from the end of ``queue_s`` to the
    end of the batch, and so includes the failed tries of one that was split.
    """

    hypothesis: Hypothesis
    queue_s: float
    infer_s: float


@dataclass(frozen=True, eq=False)
class Job:
    """A chunk in the queue or in a batch, its turn, and the future that its caller holds."""

    chunk: Chunk
    n_frames: int
    submitted_s: float
    turn: float
    future: Future[Completion]

    def followed(self) -> Job:
        return replace(self, chunk=replace(self.chunk, has_followers=True))


@dataclass(frozen=True, eq=False)
class Batch:
    jobs: Sequence[Job]
    started_s: float


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a worker and what came of it: a hypothesis for each job, or an error."""

    jobs: Sequence[Job]
    hypotheses: Sequence[Hypothesis] = ()
    error: BaseException | None = None

    @property
    def retried(self) -> bool:
        """Whether the jobs were tried again in halves, so that this is not their outcome."""
        return isinstance(self.error, Exception) and len(self.jobs) > 1

    @property
    def did_not_fit(self) -> bool:
        """Whether it failed for want of memory: the device's, or the host's for the features."""
        return isinstance(self.error, DeviceOutOfMemory | MemoryError)

    @property
    def frames(self) -> int:
        return sum(job.n_frames for job in self.jobs)

    @property
    def longest_frames(self) -> int:
        return max(job.n_frames for job in self.jobs)

    @property
    def padded_frames(self) -> int:
        return _padded_frames(self.jobs)


def run_batch(worker: Worker, jobs: Sequence[Job]) -> list[Call]:
    """Call a worker until every job has a hypothesis or an error of its own; never raises for it.

    Jobs that have been given up meanwhile are left out, and several are not tried at a size that
    did not fit a moment ago.
    """
    calls: list[Call] = []
    parts = [jobs]
    too_large_frames = math.inf
    while parts:
        part = [job for job in parts.pop() if not job.future.done()]
        if not part:
            continue
        if len(part) == 1 or _padded_frames(part) < too_large_frames:
            call = _call(worker, part)
            calls.append(call)
            if not call.retried:
                continue
            if call.did_not_fit:
                too_large_frames = call.padded_frames
            _log.warning("a batch of %d failed, trying its halves: %r", len(part), call.error)
        middle = len(part) // 2
        parts += [part[middle:], part[:middle]]
    return calls


def _padded_frames(jobs: Sequence[Job]) -> int:
    return len(jobs) * max(job.n_frames for job in jobs)


def _call(worker: Worker, jobs: Sequence[Job]) -> Call:
    try:
        hypotheses = worker([job.chunk for job in jobs])
        if len(hypotheses) != len(jobs):
            raise ValueError(f"{len(hypotheses)} hypotheses for {len(jobs)} chunks")
    except BaseException as error:  # whatever it is, the callers must hear of it
        _forget_locals(error)
        return Call(jobs, error=error)
    return Call(jobs, hypotheses)


def _forget_locals(error: BaseException) -> None:
    """Free what the frames of a failed call hold on the device: the next try needs that memory."""
    errors: list[BaseException | None] = [error]
    seen: set[int] = set()
    while errors:
        if (found := errors.pop()) is not None and id(found) not in seen:
            seen.add(id(found))
            traceback.clear_frames(found.__traceback__)
            errors += [found.__cause__, found.__context__]


def deliver(call: Call, batch: Batch, ended_s: float) -> None:
    """Give the jobs of a call their outcome: a ``Completion`` or ``InferenceFailed``."""
    if call.error is not None:
        _log.error("no hypothesis for %d chunks", len(call.jobs), exc_info=call.error)
        for job in call.jobs:
            failure = InferenceFailed(
                "the audio chunk does not fit the device's memory"
                if call.did_not_fit
                else "the model failed on this audio"
            )
            failure.__cause__ = call.error
            settle(job, failure)
        return
    infer_s = (ended_s - batch.started_s) / len(batch.jobs)
    for job, hypothesis in zip(call.jobs, call.hypotheses, strict=True):
        settle(job, Completion(hypothesis, batch.started_s - job.submitted_s, infer_s))


def settle(job: Job, outcome: Completion | Exception) -> None:
    """Resolve a future, unless it has been resolved."""
    with suppress(InvalidStateError):
        if isinstance(outcome, Exception):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)


def refuse(jobs: Sequence[Job]) -> None:
    """Fail jobs that were taken off the queue and will not run."""
    for job in jobs:
        if job.future.set_running_or_notify_cancel():
            settle(job, NotReady("the service is stopping"))
