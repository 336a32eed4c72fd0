from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest

from sensevoice_service.batch_policy import BatchLimits, pick_batch
from sensevoice_service.fair_order import FairOrder

CPU = BatchLimits(max_items=32, max_padded_frames=256, max_wait_s=0)
GPU = BatchLimits(max_items=32, max_padded_frames=8_192, max_wait_s=0)
LONG_CHUNK, CLIP = 254, 87  # frames of 15 s and of 5 s
IN_FLIGHT = 16


@dataclass(eq=False)
class Request:
    n_chunks: int
    n_frames: int
    began: int
    sent: int = 0
    served: int = 0
    ended: int | None = None


@dataclass
class Device:
    """One worker in discrete time: a batch a step, requests with so many chunks in flight."""

    limits: BatchLimits
    order: FairOrder = field(default_factory=FairOrder)
    queue: list[tuple[float, Request]] = field(default_factory=list)
    now: int = 0
    served: list[Request] = field(default_factory=list)

    def begin(self, n_chunks: int, n_frames: int) -> Request:
        request = Request(n_chunks, n_frames, self.now)
        self.send(request)
        return request

    def send(self, request: Request) -> None:
        while request.sent < min(request.n_chunks, request.served + IN_FLIGHT):
            request.sent += 1
            self.queue.append((self.order.join(request, request.n_frames), request))
        self.queue.sort(key=lambda queued: queued[0])

    def step(self) -> None:
        """Serve a batch; what it answers goes on a step later."""
        self.now += 1
        if not self.queue:
            return
        lengths = [request.n_frames for _, request in self.queue]
        picked = pick_batch(lengths, self.limits, overhead_frames=40)
        self.order.serve(self.queue[0][0])
        batch = [self.queue[i][1] for i in picked]
        self.queue = [queued for i, queued in enumerate(self.queue) if i not in picked]
        for request in batch:
            request.served += 1
            self.served.append(request)
            if request.served == request.n_chunks:
                request.ended = self.now
            self.send(request)


def waits(device: Device, n_clips: int, every: int) -> list[int]:
    """Steps from the coming of each of some clips to its answer."""
    clips = []
    for _ in range(n_clips):
        clips.append(device.begin(1, CLIP))
        for _ in range(every):
            device.step()
    return [clip.ended - clip.began for clip in clips if clip.ended is not None]


def test_of_one_request_the_chunks_come_as_they_were_sent() -> None:
    order, request = FairOrder(), object()
    assert [order.join(request, 10) for _ in range(3)] == [0, 10, 20]


def test_requests_of_one_chunk_come_in_the_order_of_their_coming() -> None:
    device = Device(CPU)
    requests = [device.begin(1, LONG_CHUNK) for _ in range(5)]
    while device.queue:
        device.step()
    assert device.served == requests


def test_a_newcomer_is_next_however_long_a_file_has_been_worked_on() -> None:
    for limits in (CPU, GPU):
        device = Device(limits)
        device.begin(720, LONG_CHUNK)  # three hours
        for _ in range(5):
            device.step()
        assert waits(device, n_clips=10, every=2) == [1] * 10


def test_long_files_take_turns() -> None:
    device = Device(CPU)
    first = device.begin(100, LONG_CHUNK)
    for _ in range(20):
        device.step()
    second = device.begin(100, LONG_CHUNK)
    for _ in range(40):
        device.step()
    assert abs(first.served - 20 - second.served) <= 1


def test_a_newcomer_waits_for_one_turn_of_each_long_file_at_most() -> None:
    device = Device(CPU)
    for _ in range(6):
        device.begin(1_000, LONG_CHUNK)
    for _ in range(60):
        device.step()
    assert max(waits(device, n_clips=20, every=9)) <= 7


def test_newcomers_without_end_do_not_keep_a_long_file_waiting_for_ever() -> None:
    device = Device(BatchLimits(max_items=1, max_padded_frames=256, max_wait_s=0))
    long = device.begin(1_000, LONG_CHUNK)
    clips = deque(device.begin(1, CLIP) for _ in range(4))
    for _ in range(600):
        device.step()
        clips.append(device.begin(1, CLIP))  # as many come as can be served: four always wait
    n_frames = sum(request.n_frames for request in device.served)
    assert long.served * LONG_CHUNK / n_frames == pytest.approx(1 / 9, rel=0.1)


def test_an_idle_time_is_no_credit() -> None:
    device = Device(CPU)
    device.begin(3, LONG_CHUNK)
    for _ in range(100):
        device.step()
    device.begin(100, LONG_CHUNK)
    device.step()
    assert waits(device, n_clips=3, every=3) == [1] * 3


def test_requests_that_are_over_are_forgotten() -> None:
    device = Device(CPU)
    for _ in range(1_000):
        device.begin(1, CLIP)
        device.step()
    assert len(device.order._ends) <= 10
