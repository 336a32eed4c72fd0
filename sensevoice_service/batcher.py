"""Cross-request batching: the chunks of all requests share one queue and its inference threads.

``fair_order`` decides whose turn it is, ``batch_policy`` what goes into a batch and when,
``frame_budget`` how much the device has room for, ``batch_call`` runs it.
"""

from __future__ import annotations

import bisect
import logging
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from sensevoice_service.batch_call import (
    Batch,
    Call,
    Completion,
    Job,
    Worker,
    deliver,
    refuse,
    run_batch,
    settle,
)
from sensevoice_service.batch_policy import BatchLimits, Pace, is_full, pick_batch
from sensevoice_service.fair_order import FairOrder
from sensevoice_service.frame_budget import FrameBudget
from sensevoice_service.types import Chunk, NotReady

__all__ = ["BatchLimits", "BatchStats", "Batcher", "Completion", "Worker"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchStats:
    """A snapshot. Totals count since the start; a batch that was split counts once a call.

    ``padding_ratio`` is the share of the padded frames that is padding. ``consecutive_failures``
    counts the batches since the last one that gave any answer. ``out_of_memory`` counts the calls
    that did not fit the device; they are failures only where a chunk alone does not fit.
    ``max_padded_frames`` is the limit in force. ``longest_running_s`` tells of a device that hangs:
    how long the oldest batch without an answer has been running. ``queue_mean_s`` and
    ``queue_max_s`` are over the last 256 chunks.
    """

    batches: int = 0
    items: int = 0
    frames: int = 0
    padded_frames: int = 0
    mean_batch_size: float = 0.0
    padding_ratio: float = 0.0
    infer_s: float = 0.0
    failed_batches: int = 0
    failed_items: int = 0
    consecutive_failures: int = 0
    out_of_memory: int = 0
    max_padded_frames: int = 0
    queued: int = 0
    running: int = 0
    longest_running_s: float = 0.0
    queue_mean_s: float = 0.0
    queue_max_s: float = 0.0
    overhead_frames: float = 0.0


class Batcher:
    """One queue, one daemon thread a worker. Every future that it gave out gets an outcome.

    A worker that fails on several chunks is called again with each half, so that only the guilty
    chunk gets ``InferenceFailed`` (the worker's error as its cause). ``DeviceOutOfMemory``
    makes the batches after it smaller, too. ``clock`` counts seconds.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        limits: BatchLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workers = tuple(workers)
        self._limits = limits
        self._clock = clock
        self._changed = threading.Condition()  # guards all that follows
        self._queue: list[Job] = []  # by their turns
        self._order = FairOrder()
        self._running: dict[int, Batch] = {}  # by thread
        self._threads: list[threading.Thread] = []
        self._alive = 0
        self._stopping = False
        self._on_loss: Callable[[], None] = lambda: None
        self._totals = BatchStats()
        self._queue_waits_s: deque[float] = deque(maxlen=256)
        self._pace = Pace()
        self._budget = FrameBudget(limits.max_padded_frames, clock)

    @property
    def healthy(self) -> bool:
        """Whether every thread is there: true from ``start`` to ``stop`` unless one has died."""
        with self._changed:
            return 0 < self._alive == len(self._workers)

    def start(self, on_loss: Callable[[], None] = lambda: None) -> None:
        """Start the threads, once: raises ``RuntimeError`` the second time or after ``stop``.

        ``on_loss`` is called by a thread that ends without having been stopped, as it does where
        there is no memory for its own book-keeping.
        """
        with self._changed:
            self._on_loss = on_loss
            if self._threads or self._stopping:
                raise RuntimeError("a batcher starts once")
            self._alive = len(self._workers)
            self._threads = [
                threading.Thread(target=self._serve, args=(w,), name=f"inference-{i}", daemon=True)
                for i, w in enumerate(self._workers)
            ]
            for thread in self._threads:
                thread.start()

    def submit(self, chunk: Chunk) -> Future[Completion]:
        """Queue a chunk, from any thread. Raises ``NotReady`` once stopped or without a thread.

        Chunks that share an ``options`` object are one request's: requests take turns. The future
        fails with ``InferenceFailed`` or, if stopped meanwhile, ``NotReady``. Cancelling it while
        it is queued keeps the chunk from the device. Before ``start`` chunks just queue.
        """
        with self._changed:
            if self._stopping:
                raise NotReady("the service is stopping")
            now_s, n_frames = self._clock(), chunk.n_frames
            job = Job(chunk, n_frames, now_s, self._order.join(chunk.options, n_frames), Future())
            bisect.insort(self._queue, job, key=lambda queued: queued.turn)
            self._pace.arrived(now_s)
            self._changed.notify()
        return job.future

    def stop(self, *, drain: bool = True, timeout_s: float = 30.0) -> None:
        """Take no more chunks, wait up to ``timeout_s`` for those at hand, fail the rest.

        Without ``drain`` only the running batches may finish. A thread that is still inside its
        worker afterwards is left behind, and what it brings is dropped. May be called again.
        """
        with self._changed:
            self._stopping = True
            refused = [] if drain else self._empty_queue()
            self._changed.notify_all()
        refuse(refused)
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        with self._changed:
            refused = self._empty_queue()
            cut_off = [job for batch in self._running.values() for job in batch.jobs]
        refuse(refused)
        for job in cut_off:
            settle(job, NotReady("the service is stopping"))

    def backlog_s(self) -> float:
        """How long the threads need for what is queued, by their pace so far."""
        with self._changed:
            totals, n_frames = self._totals, sum(job.n_frames for job in self._queue)
        return n_frames * totals.infer_s / max(1, totals.frames) / len(self._workers)

    def stats(self) -> BatchStats:
        with self._changed:
            now_s = self._clock()
            totals, waits_s = self._totals, self._queue_waits_s
            running = [
                (sum(not job.future.done() for job in batch.jobs), now_s - batch.started_s)
                for batch in self._running.values()
            ]
            return replace(
                totals,
                mean_batch_size=totals.items / max(1, totals.batches),
                padding_ratio=1 - totals.frames / totals.padded_frames if totals.batches else 0.0,
                max_padded_frames=self._budget.limit_frames,
                queued=sum(not job.future.cancelled() for job in self._queue),
                running=sum(n_jobs for n_jobs, _ in running),
                longest_running_s=max((age_s for n_jobs, age_s in running if n_jobs), default=0.0),
                queue_mean_s=statistics.fmean(waits_s) if waits_s else 0.0,
                queue_max_s=max(waits_s, default=0.0),
                overhead_frames=self._pace.overhead_frames,
            )

    def _serve(self, worker: Worker) -> None:
        try:
            while self._serve_batch(worker):
                pass
        except BaseException:
            _log.exception("an inference thread died")
        finally:
            self._leave()

    def _serve_batch(self, worker: Worker) -> bool:
        """A function of its own, so that an idle thread holds on to no chunk."""
        batch = self._take()
        if batch is None:
            return False
        calls = run_batch(worker, batch.jobs)
        ended_s = self._clock()
        self._note(batch, calls, ended_s)
        for call in calls:
            if not call.retried:
                deliver(call, batch, ended_s)
        return True

    def _take(self) -> Batch | None:
        """Wait for the next batch; None when there will be no more."""
        with self._changed:
            self._running.pop(threading.get_ident(), None)
            while True:
                self._drop_cancelled()
                if self._queue:
                    picked, hold_s = self._choose()
                    if hold_s > 0:
                        self._changed.wait(hold_s)
                    elif batch := self._claim(picked):
                        return batch
                elif self._stopping:
                    return None
                else:
                    self._changed.wait()

    def _choose(self) -> tuple[list[int], float]:
        """The best batch of the queue as it is, and how long to hold it back for company."""
        lengths = [job.n_frames for job in self._queue]
        limits = replace(self._limits, max_padded_frames=self._budget.limit_frames)
        picked = pick_batch(lengths, limits, self._pace.overhead_frames)
        if self._stopping or is_full([lengths[i] for i in picked], limits):
            return picked, 0.0
        return picked, self._pace.hold_s(self._clock(), len(lengths), limits.max_wait_s)

    def _claim(self, picked: Sequence[int]) -> Batch | None:
        """Take jobs off the queue; None if all were cancelled just now."""
        now_s = self._clock()
        taken, jobs = set(picked), [self._queue[i] for i in picked]
        self._order.serve(jobs[0].turn)
        self._queue = [job for i, job in enumerate(self._queue) if i not in taken]
        if self._queue:
            self._changed.notify()  # this thread may have used up the wake-up meant for the rest
        jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        if self._queue:
            jobs = [job.followed() for job in jobs]
        if jobs:
            self._running[threading.get_ident()] = Batch(jobs, now_s)
        return self._running.get(threading.get_ident())

    def _drop_cancelled(self) -> None:
        jobs = self._empty_queue()
        for job in jobs:
            if job.future.cancelled():
                job.future.set_running_or_notify_cancel()
            else:
                self._queue.append(job)

    def _empty_queue(self) -> list[Job]:
        jobs, self._queue = self._queue, []
        return jobs

    def _note(self, batch: Batch, calls: Sequence[Call], ended_s: float) -> None:
        """Count a batch, before its callers hear of it: they may ask, or come back, at once."""
        good = [call for call in calls if call.error is None]
        without_room = [call for call in calls if call.did_not_fit]
        n_failed = len(calls) - len(good) - sum(call.retried for call in without_room)
        n_good = sum(len(call.jobs) for call in good)
        infer_s = ended_s - batch.started_s
        with self._changed:
            old = self._totals
            self._totals = replace(
                old,
                batches=old.batches + len(good),
                items=old.items + n_good,
                frames=old.frames + sum(call.frames for call in good),
                padded_frames=old.padded_frames + sum(call.padded_frames for call in good),
                infer_s=old.infer_s + infer_s,
                failed_batches=old.failed_batches + n_failed,
                failed_items=old.failed_items + len(batch.jobs) - n_good,
                consecutive_failures=0 if good else old.consecutive_failures + bool(n_failed),
                out_of_memory=old.out_of_memory + len(without_room),
            )
            self._queue_waits_s.extend(batch.started_s - job.submitted_s for job in batch.jobs)
            self._pace.ended(ended_s, infer_s, n_good, len(self._queue))
            if len(calls) == len(good) == 1:
                self._pace.called(good[0].padded_frames, infer_s)
            self._budget_calls(calls)

    def _budget_calls(self, calls: Sequence[Call]) -> None:
        before_frames = self._budget.limit_frames
        for call in calls:
            if call.did_not_fit:
                self._budget.failed(len(call.jobs), call.longest_frames)
            elif call.error is None:
                self._budget.fitted(len(call.jobs), call.longest_frames)
        if self._budget.limit_frames != before_frames:
            _log.info("a batch may now have %d padded frames", self._budget.limit_frames)

    def _leave(self) -> None:
        """The end of a thread. Should it be the last, nobody would serve the queue."""
        refused: list[Job] = []
        with self._changed:
            is_lost = not self._stopping
            self._alive -= 1
            batch = self._running.pop(threading.get_ident(), None)
            if self._alive == 0:
                self._stopping = True
                refused = self._empty_queue()
        refuse(refused)
        for job in batch.jobs if batch else ():
            settle(job, NotReady("the inference thread has ended"))
        if is_lost:
            self._on_loss()
