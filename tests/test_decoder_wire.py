from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest

from sensevoice_service import decoder_wire as wire
from sensevoice_service.decoder_wire import Kind, PeerGone
from sensevoice_service.types import Block, CorruptAudio

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def received(conversation: socket.socket) -> tuple[Kind, bytearray]:
    return wire.receive_message(conversation, time.monotonic() + 10)


def test_a_block_arrives_as_it_was_sent(pair: Pair) -> None:
    ours, theirs = pair
    samples = np.linspace(-1, 1, 16_000, dtype=np.float32)
    wire.send_block(theirs, Block(samples, 48_000, 2**33), at_byte=2**40)
    kind, payload = received(ours)
    heard, at_byte = wire.block_of(payload, 48_000)
    assert kind is Kind.BLOCK
    assert at_byte == 2**40
    assert (heard.start_sample, heard.declared_samples) == (48_000, 2**33)
    assert np.array_equal(heard.samples, samples)


def test_a_refusal_is_of_the_same_class_and_message(pair: Pair) -> None:
    ours, theirs = pair
    wire.send_refusal(theirs, CorruptAudio("torn\n至"))
    _, payload = received(ours)
    error = wire.refusal_of(payload)
    assert type(error) is CorruptAudio
    assert error.message == "torn\n至"


@pytest.mark.parametrize(
    "payload", [b"", b"{}", b"[]", b'{"code": "internal_error", "message": ""}', b"\xff", b"\x80."]
)
def test_a_refusal_that_is_none_is_the_end_of_the_decoder(payload: bytes) -> None:
    with pytest.raises(PeerGone):
        wire.refusal_of(bytearray(payload))


@pytest.mark.parametrize("payload", [b"", b"1234567", b"1234567812345678abc", bytes(16)])
def test_a_block_that_is_none_is_the_end_of_the_decoder(payload: bytes) -> None:
    with pytest.raises(PeerGone):
        wire.block_of(bytearray(payload), 0)


@pytest.mark.parametrize(
    "data", [struct.pack("<BI", 9, 0), struct.pack("<BI", 0, wire.MAX_PAYLOAD_BYTES + 1), b"\0\1"]
)
def test_what_is_no_message_is_the_end_of_the_decoder(pair: Pair, data: bytes) -> None:
    ours, theirs = pair
    theirs.sendall(data)
    theirs.close()
    with pytest.raises(PeerGone):
        received(ours)


def test_silence_is_waited_for_until_the_deadline_alone(pair: Pair) -> None:
    with pytest.raises(TimeoutError):
        wire.receive_message(pair[0], time.monotonic() - 1)


def test_an_order_to_kill_does_not_wait_for_room(pair: Pair) -> None:
    ours, _ = pair
    ours.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            ours.send(b"x")
    ours.settimeout(0.01)  # as who waits for an answer does
    with pytest.raises(BlockingIOError):
        wire.send_kill(ours, 7)


def test_drops_do_not_put_the_deadline_off(pair: Pair) -> None:
    ours, theirs = pair
    theirs.sendall(struct.pack("<BI", Kind.BLOCK, wire.MAX_PAYLOAD_BYTES))

    def drip() -> None:
        with suppress(ConnectionError):
            while True:
                theirs.sendall(b"x")

    with ThreadPoolExecutor(1) as pool:
        pool.submit(drip)
        with ours, pytest.raises(TimeoutError):
            wire.receive_message(ours, time.monotonic() + 0.05)


def test_a_service_that_hangs_up_with_something_unread_is_gone(pair: Pair) -> None:
    ours, theirs = pair
    wire.send_message(theirs, Kind.END, b"")
    ours.close()
    with pytest.raises(PeerGone):
        wire.receive_job(theirs)


def test_an_idle_conversation_tells_whether_the_other_side_is_there(pair: Pair) -> None:
    ours, theirs = pair
    assert not wire.is_gone(ours)
    theirs.close()
    assert wire.is_gone(ours)
