"""The process that forks the decoders, and what runs in each of them.

``python -m sensevoice_service.decoder_host DESCRIPTOR MEMORY_BYTES`` imports what decoding needs,
once, and then forks a decoder whenever it is told to: in a millisecond or two, with most of its
memory shared. It knows no model, no web framework and none of the service's secrets, has one
thread, and touches no uploaded byte itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import os
import resource
import signal
import socket
import struct
import sys
import traceback
from typing import NoReturn

from sensevoice_service.audio import AudioLimits, decode
from sensevoice_service.decoder_wire import (
    Job,
    Kind,
    Order,
    PeerGone,
    receive_job,
    receive_order,
    send_block,
    send_fate,
    send_message,
    send_pid,
    send_refusal,
)
from sensevoice_service.types import CorruptAudio, ServiceError, Upload

MAX_OPEN_FILES = 32
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_LIKELY_VICTIM = b"1000"  # should the system run out of memory, a decoder goes before the service


def main(descriptor: int, memory_bytes: int) -> None:
    """Serve until the service hangs up. Signals to the group are meant for the service alone."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    _load_lazy_parts()
    gc.collect()
    gc.freeze()  # the collector would write to pages that the decoders share
    with socket.socket(fileno=descriptor) as control, contextlib.suppress(PeerGone):
        _Host(control, memory_bytes).serve()


def _load_lazy_parts() -> None:
    """A little silence: what libav and numpy set up on first use is then shared, too."""
    silence = bytes(3_200)
    fmt = struct.pack("<HHIIHH", 1, 1, 44_100, 88_200, 2, 16)
    body = b"WAVEfmt \x10\0\0\0" + fmt + b"data" + struct.pack("<I", len(silence)) + silence
    wav = b"RIFF" + struct.pack("<I", len(body)) + body
    for _ in decode(Upload(io.BytesIO(wav), "", len(wav)), AudioLimits(max_audio_s=1)):
        pass


class _Host:
    def __init__(self, control: socket.socket, memory_bytes: int) -> None:
        self._control = control
        self._memory_bytes = memory_bytes
        self._alive: dict[int, socket.socket] = {}  # where to tell the fate of each
        signal.signal(signal.SIGCHLD, lambda *_: self._reap())

    def serve(self) -> NoReturn:
        while True:
            order, pid, descriptors = receive_order(self._control)
            if order is Order.FORK:
                conversation, fate = (socket.socket(fileno=one) for one in descriptors)
                with conversation:
                    pid = self._fork(conversation, fate)
                send_pid(self._control, pid)
            elif pid in self._alive:
                with contextlib.suppress(ProcessLookupError):  # it may end just now
                    os.kill(pid, signal.SIGKILL)

    def _fork(self, conversation: socket.socket, fate: socket.socket) -> int:
        """The new decoder, 0 where the system gives none."""
        # Should it end at once, it must not be reaped before it is known.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        host = os.getpid()
        try:
            pid = os.fork()
            if pid == 0:
                self._run_decoder(conversation, fate, host)
            self._alive[pid] = fate
            return pid
        except OSError:
            fate.close()
            return 0
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})

    def _run_decoder(self, conversation: socket.socket, fate: socket.socket, host: int) -> NoReturn:
        """In the decoder; nothing may leave this function, for the host's loop is around it."""
        try:
            for channel in (self._control, fate, *self._alive.values()):
                channel.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _restrict(self._memory_bytes, host)
            _serve_files(conversation)
        except PeerGone:
            pass
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._tell_fate(*ended)

    def _tell_fate(self, pid: int, status: int) -> None:
        with self._alive.pop(pid) as fate, contextlib.suppress(PeerGone):
            send_fate(fate, os.WTERMSIG(status))


def _restrict(memory_bytes: int, host: int) -> None:
    """Bound what a decoder may take, and give up what it will not need.

    It ends with its host, writes no file and no core dump, starts no process, and gains no rights.
    """
    # Ahead of the rest: what may not be dumped has its files in /proc owned by root.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
        file.write(_LIKELY_VICTIM)
    with contextlib.suppress(OSError, AttributeError):  # Linux alone has it
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if os.getppid() != host:
        os._exit(0)
    _limit(resource.RLIMIT_AS, _address_space_bytes() + memory_bytes)
    _limit(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        _limit(kind, 0)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _address_space_bytes() -> int:
    """What is mapped already: mostly libraries, which are shared and take no memory of its own."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _serve_files(conversation: socket.socket) -> NoReturn:
    while True:
        _serve_file(conversation, receive_job(conversation))


def _serve_file(conversation: socket.socket, job: Job) -> None:
    """Send the file's blocks; the socket's buffer, a few blocks, is how far it runs ahead."""
    with open(job.descriptor, "rb") as file:
        upload = Upload(file, "", os.fstat(job.descriptor).st_size)
        try:
            for block in decode(upload, AudioLimits(job.max_audio_s, job.block_s)):
                send_block(conversation, block, file.tell())
            send_message(conversation, Kind.END, b"")
        except PeerGone:
            raise
        except ServiceError as error:
            send_refusal(conversation, error)
        except MemoryError:
            message = "the file needs more memory to decode than it may have"
            send_refusal(conversation, CorruptAudio(message))
        except Exception:
            send_message(conversation, Kind.FAULT, traceback.format_exc()[-8_000:].encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
