"""Decodes uploads in processes of their own, with bounded memory and time.

A host process, free of the model and of secrets, forks a decoder for each file that is in hand at
the same time; one that did its file well takes the next. A file that breaks its decoder, hangs it
or fills its memory does that to no other; one that took it over unseen would have the next as well.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sensevoice_service import decoder_wire as wire
from sensevoice_service.decoder_wire import Job, Kind, PeerGone
from sensevoice_service.descriptors import descriptor_of
from sensevoice_service.types import (
    SAMPLE_RATE_HZ,
    Block,
    CorruptAudio,
    NotReady,
    Overloaded,
    TimedOut,
    Upload,
)

if TYPE_CHECKING:
    from sensevoice_service.audio import AudioLimits

_log = logging.getLogger(__name__)

# Ends what leaks: libav's decoders have had leaks before.
MAX_FILES_A_DECODER = 1_000
HOST_PATIENCE_S = 60.0
STOP_PATIENCE_S = 2.0
# A decoder needs none of the rest, keys among it.
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "PYTHONHOME", "VIRTUAL_ENV")


class DecoderFault(Exception):
    """An error in the decoder that is not the file's; the message is its traceback."""


@dataclass(frozen=True)
class DecoderLimits:
    """What one decoder may take, and how many may wait, idle, for the next file.

    ``memory_bytes`` is beyond what decoders share. ``timeout_s`` is the longest wait for a block,
    and how far decoding may fall behind real time over the file.
    """

    memory_bytes: int
    timeout_s: float
    max_idle: int


class DecoderProcesses:
    """``decode`` is as ``audio.decode``, in another process. Any thread may call any method.

    It needs no start: the host process runs from the first file, or from ``start``, to ``stop``.
    """

    def __init__(self, limits: DecoderLimits) -> None:
        self._limits = limits
        self._talk = threading.Lock()  # with the host, which may take long to answer
        self._lock = threading.Lock()  # guards all that follows, never for long
        self._host: _Host | None = None
        self._idle: list[_Decoder] = []
        self._is_stopped = False

    def start(self) -> None:
        """Start the host without waiting for it."""
        with self._talk:
            self._running_host()

    def stop(self) -> None:
        """End the host and all decoders; a file in hand ends with ``NotReady``. For good."""
        with self._lock:
            self._is_stopped = True
            idle, self._idle = self._idle, []
            host, self._host = self._host, None
        for decoder in idle:
            decoder.close()
        if host is not None:
            host.hang_up()  # who waits for its answer gives up
            with self._talk:
                host.end()

    def decode(self, upload: Upload, limits: AudioLimits) -> Generator[Block, None, None]:
        """Raises what ``audio.decode`` does, and ``TimedOut``, ``Overloaded`` and ``NotReady``.

        A decoder that dies makes the file ``CorruptAudio``, one that the system kills is
        ``Overloaded``. The position of ``upload.file`` follows that of the decoder.
        """
        decoder = self._take()
        is_good = False
        try:
            yield from self._blocks(decoder, upload, limits)
            is_good = True
        finally:
            self._give(decoder, is_good)

    def _blocks(
        self, decoder: _Decoder, upload: Upload, limits: AudioLimits
    ) -> Generator[Block, None, None]:
        n_samples = 0
        most_samples = (limits.max_audio_s + limits.block_s) * SAMPLE_RATE_HZ
        waited_s = 0.0
        try:
            decoder.begin(upload.file, limits)
            while True:
                began_s = time.monotonic()
                lead_s = n_samples / SAMPLE_RATE_HZ - waited_s
                deadline_s = began_s + self._limits.timeout_s + min(0.0, lead_s)
                found = decoder.block(n_samples, deadline_s)
                if found is None:
                    return
                waited_s += time.monotonic() - began_s
                block, at_byte = found
                if n_samples + len(block.samples) > most_samples:
                    raise PeerGone  # it is no decoder any more: that would have refused the file
                upload.file.seek(min(at_byte, upload.size_bytes))  # as if it had been read here
                yield block
                n_samples += len(block.samples)
        except TimeoutError:
            _log.warning("a decoder was ended: it took longer than it may")
            raise TimedOut("decoding the file takes too long") from None
        except PeerGone:
            raise self._why_gone(decoder) from None

    def _why_gone(self, decoder: _Decoder) -> Exception:
        with self._lock:
            if self._is_stopped:
                return NotReady("the service is stopping")
        if decoder.was_killed():
            _log.warning("a decoder was killed: the system may lack memory")
            return Overloaded("the decoder was ended; try again", retry_after_s=1)
        _log.warning("a decoder died of a file")
        return CorruptAudio("the file cannot be decoded: it makes the decoder fail")

    def _take(self) -> _Decoder:
        while (decoder := self._idle_one()) is not None:
            # One whose host has just ended is about to end too.
            if decoder.host.is_running() and not wire.is_gone(decoder.conversation):
                return decoder
            decoder.close()
        with self._talk:
            for _ in range(2):
                host = self._running_host()
                try:
                    return host.fork()
                except (PeerGone, TimeoutError):
                    _log.warning("the host of the decoders is gone: another is started")
                    host.end()
        raise DecoderFault("the host of the decoders does not answer")

    def _idle_one(self) -> _Decoder | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _running_host(self) -> _Host:
        with self._lock:
            if self._is_stopped:
                raise NotReady("the service is stopping")
            if self._host is None or not self._host.is_running():
                if self._host is not None:
                    self._host.end()
                self._host = _Host(self._limits.memory_bytes)
            return self._host

    def _give(self, decoder: _Decoder, is_good: bool) -> None:
        """Keep a decoder for the next file, or end it. One that met a bad file is not kept."""
        with self._lock:
            has_room = not self._is_stopped and len(self._idle) < self._limits.max_idle
            if is_good and has_room and decoder.n_files < MAX_FILES_A_DECODER:
                self._idle.append(decoder)
                return
        decoder.close()
        if not is_good:
            decoder.host.kill(decoder.pid)


class _Host:
    """The process that forks decoders. One thread at a time may ``fork`` or ``end``."""

    def __init__(self, memory_bytes: int) -> None:
        self._control, theirs = socket.socketpair()
        command = [sys.executable, "-m", "sensevoice_service.decoder_host"]
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(memory_bytes)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_host_environment(),
                pass_fds=(theirs.fileno(),),
            )

    def is_running(self) -> bool:
        return self._process.poll() is None

    def fork(self) -> _Decoder:
        """Raises ``PeerGone``, ``TimeoutError`` and, for want of a process, ``Overloaded``."""
        with ExitStack() as ours:
            conversation, theirs = socket.socketpair()
            ours.enter_context(conversation)
            with theirs:
                fate, fate_end = socket.socketpair()
                ours.enter_context(fate)
                with fate_end:
                    wire.send_fork(self._control, theirs, fate_end)
            pid = wire.receive_pid(self._control, HOST_PATIENCE_S)
            if not pid:
                raise Overloaded("the system has no process left for decoding", retry_after_s=1)
            ours.pop_all()
        return _Decoder(self, pid, conversation, fate)

    def kill(self, pid: int) -> None:
        """Its own parent does it, so that the number cannot have gone to another process.

        Any thread may ask for it, and does not wait.
        """
        with suppress(OSError, ValueError):
            wire.send_kill(self._control, pid)

    def hang_up(self) -> None:
        """It ends, and who waits for its answer hears of that. Any thread may do it."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        self._control.close()
        try:
            self._process.wait(STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _host_environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    package_parent = str(Path(__file__).resolve().parents[1])
    # numpy's linear algebra would start threads, which do not live through a fork.
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**kept, **threads, "PYTHONPATH": package_parent, "PYTHONDONTWRITEBYTECODE": "1"}


class _Decoder:
    """A decoder process as seen from the service; it has one file at a time."""

    def __init__(
        self, host: _Host, pid: int, conversation: socket.socket, fate: socket.socket
    ) -> None:
        self.host = host
        self.pid = pid
        self.conversation = conversation
        self._fate = fate
        self.n_files = 0

    def begin(self, file: BinaryIO, limits: AudioLimits) -> None:
        descriptor = descriptor_of(file)
        try:
            wire.send_job(self.conversation, Job(descriptor, limits.max_audio_s, limits.block_s))
        finally:
            os.close(descriptor)
        self.n_files += 1

    def block(self, start_sample: int, deadline_s: float) -> tuple[Block, int] | None:
        """The next, and how far the file has been read; None at the end. Raises what it says."""
        kind, payload = wire.receive_message(self.conversation, deadline_s)
        if kind is Kind.END:
            return None
        if kind is Kind.REFUSAL:
            raise wire.refusal_of(payload)
        if kind is Kind.FAULT:
            raise DecoderFault(payload.decode("utf-8", "replace"))
        return wire.block_of(payload, start_sample)

    def was_killed(self) -> bool:
        """Whether it ended for no fault of its file: the service kills none with a file in hand.

        Where its host has ended as well, or hangs, nobody knows of a fault.
        """
        if not wire.is_gone(self.conversation):
            return False
        # Its host hears of an end that comes just as it goes to sleep with the next order only.
        self.host.kill(self.pid)
        try:
            return wire.receive_fate(self._fate, HOST_PATIENCE_S) == signal.SIGKILL
        except (PeerGone, TimeoutError):
            return True

    def close(self) -> None:
        """A decoder that can still hear it ends."""
        self.conversation.close()
        self._fate.close()
