"""What the service and its decoder processes say to each other, in bytes of fixed meaning.

Nothing is unpickled: a decoder that a file has taken over can send samples and words, no objects.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from sensevoice_service.types import (
    AudioTooLong,
    Block,
    CorruptAudio,
    EmptyFile,
    ServiceError,
    UnsupportedAudio,
)

MAX_PAYLOAD_BYTES = 64 * 2**20
MAX_DESCRIPTORS = 2
# What a file may be refused for; any other error is a fault of the decoder.
REFUSALS: dict[str, type[ServiceError]] = {
    error.code: error for error in (EmptyFile, UnsupportedAudio, CorruptAudio, AudioTooLong)
}

_HEAD = struct.Struct("<BI")
_JOB = struct.Struct("<dd")
_ORDER = struct.Struct("<BI")
_PID = struct.Struct("<I")
_FATE = struct.Struct("<B")
_PLACE = struct.Struct("<QQ")


class Kind(IntEnum):
    """What a decoder says: a block; the end; a refusal; its own fault."""

    BLOCK = 0
    END = 1
    REFUSAL = 2
    FAULT = 3


class Order(IntEnum):
    """What the host of the decoders is told: to fork one, or to kill one."""

    FORK = 0
    KILL = 1


class PeerGone(Exception):
    """The other side has ended or hung up."""


@dataclass(frozen=True)
class Job:
    """A file to decode: ``descriptor`` is open for reading, and is the receiver's own copy."""

    descriptor: int
    max_audio_s: float
    block_s: float


def send_job(conversation: socket.socket, job: Job) -> None:
    _send_with_descriptors(conversation, _JOB.pack(job.max_audio_s, job.block_s), job.descriptor)


def receive_job(conversation: socket.socket) -> Job:
    data, (descriptor,) = _receive_with_descriptors(conversation, _JOB.size)
    return Job(descriptor, *_JOB.unpack(data))


def send_fork(control: socket.socket, conversation: socket.socket, fate: socket.socket) -> None:
    """``fate`` is where the host will tell how the new decoder ended."""
    order = _ORDER.pack(Order.FORK, 0)
    _send_with_descriptors(control, order, conversation.fileno(), fate.fileno())


def send_kill(control: socket.socket, pid: int) -> None:
    """At once or not at all, whatever another thread waits for.

    Raises ``OSError`` and, where the socket is closed, ``ValueError``.
    """
    # On a socket with a timeout Python waits, whatever the flag says. This one has none.
    same = socket.socket(fileno=control.fileno())
    try:
        same.send(_ORDER.pack(Order.KILL, pid), socket.MSG_DONTWAIT)
    finally:
        same.detach()


def receive_order(control: socket.socket) -> tuple[Order, int, list[int]]:
    """An order, the process that it is about, and the descriptors of a new one: its conversation
    and its fate.
    """
    data, descriptors = _receive_with_descriptors(control, _ORDER.size)
    order, pid = _ORDER.unpack(data)
    return Order(order), pid, descriptors


def send_pid(control: socket.socket, pid: int) -> None:
    _send_all(control, _PID.pack(pid))


def receive_pid(control: socket.socket, timeout_s: float) -> int:
    """The process that was forked, 0 where the system gave none. Raises ``TimeoutError``."""
    return int(_PID.unpack(_receive_exactly(control, _PID.size, time.monotonic() + timeout_s))[0])


def send_fate(fate: socket.socket, signal_number: int) -> None:
    """By which signal a decoder was ended, 0 where it was by none."""
    _send_all(fate, _FATE.pack(signal_number))


def receive_fate(fate: socket.socket, timeout_s: float) -> int:
    """Raises ``TimeoutError`` and, where the host ended before it knew, ``PeerGone``."""
    return int(_FATE.unpack(_receive_exactly(fate, _FATE.size, time.monotonic() + timeout_s))[0])


def send_message(conversation: socket.socket, kind: Kind, payload: bytes) -> None:
    # In one piece, or the service would wake up for the head alone.
    _send_all(conversation, _HEAD.pack(kind, len(payload)) + payload)


def send_refusal(conversation: socket.socket, error: ServiceError) -> None:
    payload = json.dumps({"code": error.code, "message": error.message}).encode()
    send_message(conversation, Kind.REFUSAL, payload)


def receive_message(conversation: socket.socket, deadline_s: float) -> tuple[Kind, bytearray]:
    """Raises ``PeerGone`` and, at ``deadline_s`` of the monotonic clock, ``TimeoutError``."""
    kind, length = _HEAD.unpack(_receive_exactly(conversation, _HEAD.size, deadline_s))
    if kind not in iter(Kind) or length > MAX_PAYLOAD_BYTES:
        raise PeerGone
    return Kind(kind), _receive_exactly(conversation, length, deadline_s)


def send_block(conversation: socket.socket, block: Block, at_byte: int) -> None:
    """``at_byte`` is how far the file has been read."""
    place = _PLACE.pack(at_byte, block.declared_samples)
    send_message(conversation, Kind.BLOCK, place + block.samples.astype("<f4").tobytes())


def block_of(payload: bytearray, start_sample: int) -> tuple[Block, int]:
    """A block, and how far the file has been read. Raises ``PeerGone`` where they are neither, and
    where nothing is in it: such blocks could go on for ever.

    Where the block starts is known by those before it: a decoder is not asked for it.
    """
    try:
        samples = np.frombuffer(payload, "<f4", offset=_PLACE.size)
        at_byte, declared_samples = _PLACE.unpack_from(payload)
    except (ValueError, struct.error):
        raise PeerGone from None
    if not len(samples):
        raise PeerGone
    block = Block(samples.astype(np.float32, copy=False), start_sample, declared_samples)
    return block, at_byte


def refusal_of(payload: bytearray) -> ServiceError:
    """The error that a decoder sent. Raises ``PeerGone`` where it is none that it may send."""
    try:
        body = json.loads(bytes(payload))
        return REFUSALS[body["code"]](str(body["message"]))
    except (ValueError, KeyError, TypeError):
        raise PeerGone from None


def is_gone(conversation: socket.socket) -> bool:
    """Whether the other side has hung up and nothing of it is unread."""
    conversation.settimeout(0)
    try:
        return conversation.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _send_with_descriptors(channel: socket.socket, data: bytes, *descriptors: int) -> None:
    channel.settimeout(None)
    try:
        socket.send_fds(channel, [data], descriptors)
    except ConnectionError:
        raise PeerGone from None


def _receive_with_descriptors(channel: socket.socket, n_bytes: int) -> tuple[bytes, list[int]]:
    try:
        data, descriptors, _, _ = socket.recv_fds(channel, n_bytes, MAX_DESCRIPTORS)
    except ConnectionError:  # it hung up with something unread
        raise PeerGone from None
    if len(data) < n_bytes:
        raise PeerGone
    return data, descriptors


def _send_all(channel: socket.socket, data: bytes) -> None:
    channel.settimeout(None)
    try:
        channel.sendall(data)
    except ConnectionError:
        raise PeerGone from None


def _receive_exactly(channel: socket.socket, n_bytes: int, deadline_s: float) -> bytearray:
    """What is there already is taken even behind the deadline, within a millisecond."""
    data = bytearray(n_bytes)
    rest = memoryview(data)
    deadline_s = max(deadline_s, time.monotonic() + 0.001)
    while len(rest):
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        channel.settimeout(left_s)
        try:
            n_read = channel.recv_into(rest)
        except ConnectionError:
            n_read = 0
        if not n_read:
            raise PeerGone
        rest = rest[n_read:]
    return data
