"""What comes over the connection and is no request, or never ends being one."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from itertools import repeat
from typing import TYPE_CHECKING

import pytest

from tests.hostile import (
    GOOD,
    MIB,
    PATIENT_S,
    Body,
    connect,
    form,
    get,
    post,
    raw,
    read_all,
    request_head,
)

if TYPE_CHECKING:
    from tests.hostile import Victim

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no /proc")

# The victim's HEADER_TIMEOUT is 1.5 s: whoever is let in for as long as this was not held to it.
DEFAULT_TIMEOUT_S = 10


def trickle(port: int, ended: list[int], first: bytes = b"") -> None:
    """A byte a second until the service hangs up; then tell how many there have been."""
    with connect(port) as connection:
        connection.settimeout(1.0)
        connection.sendall(first)
        if first:
            connection.recv(65536)
        for n_bytes, byte in enumerate(request_head()[: int(PATIENT_S)]):
            with suppress(TimeoutError):
                try:
                    connection.sendall(bytes([byte]))
                    if not connection.recv(65536):
                        ended.append(n_bytes)
                        return
                except ConnectionError:
                    ended.append(n_bytes)
                    return


def test_headers_at_a_byte_a_second_are_cut_off_and_liveness_stays(victim: Victim) -> None:
    ended: list[int] = []
    with victim.unharmed():
        slow = [threading.Thread(target=trickle, args=(victim.port, ended)) for _ in range(50)]
        for thread in slow:
            thread.start()
        while any(thread.is_alive() for thread in slow):
            assert get(victim.port, "/health/live")[0] == 200
            for thread in slow:
                thread.join(0.01)
    assert len(ended) == 50
    assert max(ended) < DEFAULT_TIMEOUT_S


def test_the_second_request_of_a_connection_has_the_same_deadline(victim: Victim) -> None:
    ended: list[int] = []
    with victim.unharmed():
        trickle(victim.port, ended, first=b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    assert len(ended) == 1
    assert max(ended) < DEFAULT_TIMEOUT_S


def test_a_connection_that_says_nothing_is_closed(victim: Victim) -> None:
    with victim.unharmed(), connect(victim.port) as connection:
        assert read_all(connection) == b""


def test_64_kib_of_headers_are_refused(victim: Victim) -> None:
    with victim.unharmed():
        status, answer = raw(victim.port, request_head(X_Filler="x" * 65_536))
    assert status == 400, answer


def test_headers_that_never_end_are_refused(victim: Victim) -> None:
    with victim.unharmed():
        endless = b"".join(b"X-%d: y\r\n" % number for number in range(20_000))
        status, _ = raw(victim.port, b"GET / HTTP/1.1\r\nHost: x\r\n" + endless)
    assert status == 400


@pytest.mark.parametrize(
    "data",
    [
        request_head(Content_Length="5", Transfer_Encoding="chunked") + b"0\r\n\r\n",
        request_head(Transfer_Encoding="chunked", Content_Length="0") + b"0\r\n\r\n",
        request_head(Content_Length="-1"),
        request_head(Content_Length="+5") + b"hello",
        request_head(Content_Length="5, 6") + b"hello",
        request_head(Content_Length="0x10"),
        request_head(Content_Length="9" * 25),
        request_head(Transfer_Encoding="gzip, chunked") + b"0\r\n\r\n",
        request_head(Transfer_Encoding="chunked") + b"zz\r\nhello\r\n",
        request_head(Transfer_Encoding="chunked") + b"-5\r\nhello\r\n",
        request_head(Transfer_Encoding="chunked") + b"5\r\nhelloworld\r\n",
        request_head(Transfer_Encoding="chunked") + b"f" * 30 + b"\r\n",
        b"POST /transcribe\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET / HTTP/1.1\r\nHost: x\r\nX\x00Y: z\r\n\r\n",
    ],
)
def test_a_request_that_is_not_http_gets_400_and_the_end_of_the_connection(
    victim: Victim, data: bytes
) -> None:
    with victim.unharmed():
        status, answer = raw(victim.port, data)
    assert status == 400, answer
    assert b"connection: close" in answer.lower()


def test_bad_chunks_behind_an_early_refusal_end_the_connection(victim: Victim) -> None:
    head = request_head(Transfer_Encoding="chunked", Content_Type="text/plain")
    with victim.unharmed():
        status, _ = raw(victim.port, head + b"5\r\nhello\r\nzz\r\n")
    assert status in (400, 415)


def test_a_smuggled_second_request_is_not_answered(victim: Victim) -> None:
    smuggled = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    head = request_head(Content_Length=str(5 + len(smuggled)), Transfer_Encoding="chunked")
    with victim.unharmed():
        _, answer = raw(victim.port, head + b"0\r\n\r\n" + smuggled)
    assert answer.count(b"HTTP/1.1 ") == 1


def test_a_length_over_the_limit_is_refused_before_a_byte_is_read(victim: Victim) -> None:
    with victim.unharmed(), connect(victim.port) as connection:
        connection.sendall(request_head(Content_Length=str(10**10)))
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_chunked_flood_is_cut_off_at_the_limit_on_disk_too(victim: Victim) -> None:
    limit = 32 * MIB
    most_bytes = 0
    piece = bytes(MIB)
    with victim.unharmed(), connect(victim.port) as connection:
        connection.sendall(request_head(Transfer_Encoding="chunked"))
        start = form(b"").content[: -len(b"\r\n--edge--\r\n")]
        with suppress(ConnectionError):
            for data in (start, *repeat(piece, 48)):
                connection.sendall(b"%x\r\n%b\r\n" % (len(data), data))
                most_bytes = max(most_bytes, victim.spooled_bytes())
        assert read_all(connection).startswith(b"HTTP/1.1 413 ")
    assert MIB < most_bytes <= limit


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "application/json"])
def test_a_body_of_another_kind_is_refused_unread(victim: Victim, content_type: str) -> None:
    with victim.unharmed():
        with connect(victim.port) as connection:
            connection.sendall(request_head(Content_Type=content_type, Content_Length=str(MIB)))
            assert connection.recv(65536).startswith(b"HTTP/1.1 415 ")
        status, answer = post(victim.port, Body(b'{"files": "' * 1000, content_type))
    assert (status, answer["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("n_bytes", [0, 200, 300_000, 3 * MIB])
def test_a_client_that_leaves_while_it_uploads_leaves_nothing(victim: Victim, n_bytes: int) -> None:
    body = form(GOOD[0] + bytes(4 * MIB))
    with victim.unharmed(), connect(victim.port) as connection:
        connection.sendall(request_head(Content_Length=str(len(body.content))))
        connection.sendall(body.content[:n_bytes])


@pytest.mark.parametrize("n_clients", [1, 30])
def test_clients_that_leave_when_all_is_sent_leave_nothing(victim: Victim, n_clients: int) -> None:
    """More than there are slots: some leave while they wait, some while their files are heard."""
    body = form(GOOD[0] * 20, GOOD[1])
    data = request_head(Content_Length=str(len(body.content))) + body.content
    with victim.unharmed():
        for _ in range(n_clients):
            with connect(victim.port) as connection:
                connection.sendall(data)
