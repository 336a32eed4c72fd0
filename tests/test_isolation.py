from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from sensevoice_service import decoder_wire, isolation
from sensevoice_service.audio import AudioLimits, decode
from sensevoice_service.decoder_wire import Job
from sensevoice_service.isolation import DecoderFault, DecoderLimits, DecoderProcesses
from sensevoice_service.types import (
    SAMPLE_RATE_HZ,
    AudioTooLong,
    CorruptAudio,
    EmptyFile,
    NotReady,
    Overloaded,
    ServiceError,
    TimedOut,
    UnsupportedAudio,
    Upload,
)
from tests.audio_files import NO_LIMIT, Samples, encode, pcm16, upload, voice, wav
from tests.hostile import is_alive

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
PATIENT_S = 60.0  # only a hang takes that long
LIMITS = DecoderLimits(memory_bytes=512 * MIB, timeout_s=PATIENT_S, max_idle=3)
SHORT, LONG = wav(pcm16(voice(1.5))), wav(bytes(2 * 300 * SAMPLE_RATE_HZ))


@pytest.fixture
def decoders() -> Iterator[DecoderProcesses]:
    processes = DecoderProcesses(LIMITS)
    yield processes
    processes.stop()


def hosts() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if "sensevoice_service.decoder_host" in child.cmdline()]


def workers() -> list[psutil.Process]:
    (host,) = hosts()
    return [one for one in host.children() if is_alive(one)]


def until(condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + PATIENT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def samples_of(processes: DecoderProcesses, data: bytes) -> Samples:
    blocks = processes.decode(upload(data), NO_LIMIT)
    return np.concatenate([block.samples for block in blocks])


def refusal(processes: DecoderProcesses, data: bytes, limits: AudioLimits) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        list(processes.decode(upload(data), limits))
    return caught.value


@pytest.mark.parametrize("kind", [("pcm_s16le", "wav"), ("flac", "flac"), ("libopus", "ogg")])
def test_another_process_gives_the_blocks_that_this_one_does(
    decoders: DecoderProcesses, kind: tuple[str, str]
) -> None:
    data = encode(voice(3.3), SAMPLE_RATE_HZ, *kind)
    here, there = (list(one(upload(data), NO_LIMIT)) for one in (decode, decoders.decode))
    assert [block.start_sample for block in there] == [block.start_sample for block in here]
    for one, other in zip(here, there, strict=True):
        assert one.samples.dtype == other.samples.dtype
        assert np.array_equal(one.samples, other.samples)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EmptyFile),
        (b"these are no sounds", UnsupportedAudio),
        (wav(bytes(3200), rate_hz=0), CorruptAudio),
        (wav(bytes(320_000)), AudioTooLong),
    ],
)
def test_its_refusals_are_those_of_this_process(
    decoders: DecoderProcesses, data: bytes, error: type[ServiceError]
) -> None:
    limits = AudioLimits(max_audio_s=5)
    with pytest.raises(error) as caught:
        list(decode(upload(data), limits))
    there = refusal(decoders, data, limits)
    assert type(there) is error
    assert there.message == caught.value.message


def test_a_temporary_file_is_read_from_its_start(decoders: DecoderProcesses) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(SHORT)
        file.seek(7)
        blocks = decoders.decode(Upload(file, "speech", len(SHORT)), NO_LIMIT)
        n_samples = sum(len(block.samples) for block in blocks)
        assert n_samples == 1.5 * SAMPLE_RATE_HZ


def test_the_position_of_the_file_tells_how_far_it_has_been_read(
    decoders: DecoderProcesses,
) -> None:
    source = upload(wav(pcm16(voice(30.0))))
    places = [source.file.tell() for _ in decoders.decode(source, NO_LIMIT)]
    assert places == sorted(places)
    assert len(set(places)) > 10
    assert places[-1] == source.size_bytes


def test_descriptors_of_uploads_are_closed_again(decoders: DecoderProcesses) -> None:
    samples_of(decoders, SHORT)
    before = os.listdir("/proc/self/fd")
    samples_of(decoders, SHORT)
    with tempfile.TemporaryFile() as file:
        file.write(SHORT)
        list(decoders.decode(Upload(file, "speech", len(SHORT)), NO_LIMIT))
    assert os.listdir("/proc/self/fd") == before


def test_a_decoder_that_did_its_file_well_takes_the_next(decoders: DecoderProcesses) -> None:
    samples_of(decoders, SHORT)
    (first,) = workers()
    samples_of(decoders, SHORT)
    assert workers() == [first]


def test_a_decoder_that_met_a_bad_file_is_replaced(decoders: DecoderProcesses) -> None:
    samples_of(decoders, SHORT)
    (first,) = workers()
    refusal(decoders, wav(bytes(3200), rate_hz=0), NO_LIMIT)
    until(lambda: not first.is_running())
    samples_of(decoders, SHORT)
    (second,) = workers()
    assert second != first


def test_no_decoder_serves_for_ever(
    decoders: DecoderProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "MAX_FILES_A_DECODER", 2)
    samples_of(decoders, SHORT)
    (first,) = workers()
    samples_of(decoders, SHORT)
    until(lambda: first not in workers())


def test_as_many_decoders_as_files_and_few_that_wait(decoders: DecoderProcesses) -> None:
    files = [decoders.decode(upload(LONG), NO_LIMIT) for _ in range(6)]
    for blocks in files:
        next(blocks)
    assert len(workers()) == 6
    assert len({one.num_fds() for one in workers()}) == 1  # none has a channel of another
    for blocks in files:
        assert sum(len(block.samples) for block in blocks) == 299 * SAMPLE_RATE_HZ
    until(lambda: len(workers()) == LIMITS.max_idle)


def test_files_of_many_threads_do_not_mix(decoders: DecoderProcesses) -> None:
    levels = np.linspace(0.1, 0.8, 12)
    files = [wav(pcm16(np.full(80_000, level, np.float32))) for level in levels]
    with ThreadPoolExecutor(4) as pool:
        heard = list(pool.map(lambda data: samples_of(decoders, data), files))
    for samples, level in zip(heard, levels, strict=True):
        assert np.allclose(samples[1000:-1000], level, atol=1e-3)


def test_leaving_a_file_half_way_ends_its_decoder(decoders: DecoderProcesses) -> None:
    with closing(decoders.decode(upload(LONG), NO_LIMIT)) as blocks:
        next(blocks)
        (decoder,) = workers()
    until(lambda: not decoder.is_running())


@pytest.mark.skipif(not Path("/proc/self/fdinfo").exists(), reason="this system has no /proc")
def test_a_decoder_runs_ahead_of_its_reader_by_little(decoders: DecoderProcesses) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(LONG)
        with closing(decoders.decode(Upload(file, "speech", len(LONG)), NO_LIMIT)) as blocks:
            next(blocks)
            (decoder,) = workers()
            until(lambda: decoder.status() == psutil.STATUS_SLEEPING)
            positions = [
                int(path.read_text().split()[1])
                for path in Path(f"/proc/{decoder.pid}/fdinfo").iterdir()
            ]
    assert SAMPLE_RATE_HZ * 2 < max(positions) < MIB < len(LONG)


@pytest.mark.parametrize(
    ("end", "error", "retry_after_s"),
    [(signal.SIGSEGV, CorruptAudio, None), (signal.SIGKILL, Overloaded, 1)],
    ids=["crash", "killed by the system"],
)
def test_a_decoder_that_ends_costs_its_file_alone_which_may_be_sent_again_if_it_was_killed(
    decoders: DecoderProcesses,
    end: signal.Signals,
    error: type[ServiceError],
    retry_after_s: int | None,
) -> None:
    with closing(decoders.decode(upload(LONG), NO_LIMIT)) as other:
        next(other)
        before = workers()
        blocks = decoders.decode(upload(LONG), NO_LIMIT)
        next(blocks)
        (victim,) = (one for one in workers() if one not in before)
        victim.send_signal(end)
        with pytest.raises(error) as caught:
            list(blocks)
        assert caught.value.retry_after_s == retry_after_s
        assert sum(len(block.samples) for block in other) == 299 * SAMPLE_RATE_HZ
    assert len(samples_of(decoders, SHORT)) == len(SHORT[44:]) // 2


def test_a_decoder_whose_host_cannot_say_how_it_ended_leaves_its_file_to_be_sent_again(
    decoders: DecoderProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = decoders.decode(upload(LONG), NO_LIMIT)
    next(blocks)
    (host,), (victim,) = hosts(), workers()
    monkeypatch.setattr(isolation, "HOST_PATIENCE_S", 0.01)
    host.suspend()
    victim.send_signal(signal.SIGSEGV)
    with pytest.raises(Overloaded):
        list(blocks)
    host.resume()


def test_a_decoder_that_hangs_is_ended_and_its_file_timed_out(
    decoders: DecoderProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = decoders.decode(upload(LONG), NO_LIMIT)
    next(blocks)
    (victim,) = workers()
    victim.suspend()
    with monkeypatch.context() as haste:
        haste.setattr(decoders, "_limits", replace(LIMITS, timeout_s=0.2))
        with pytest.raises(TimedOut):
            list(blocks)
    until(lambda: not victim.is_running())
    assert len(samples_of(decoders, SHORT)) == len(SHORT[44:]) // 2


def test_a_decoder_that_idly_died_is_passed_over(decoders: DecoderProcesses) -> None:
    samples_of(decoders, SHORT)
    (victim,) = workers()
    victim.kill()
    until(lambda: not victim.is_running())
    assert len(samples_of(decoders, SHORT)) == len(SHORT[44:]) // 2


def test_a_file_that_wants_too_much_memory_is_corrupt() -> None:
    # The filter gathers a block: one of five minutes takes 19 MB, and its way out as much again.
    greedy = AudioLimits(max_audio_s=36_000, block_s=300)
    processes = DecoderProcesses(DecoderLimits(16 * MIB, PATIENT_S, max_idle=1))
    try:
        assert len(samples_of(processes, SHORT)) == len(SHORT[44:]) // 2
        before = workers()
        assert type(refusal(processes, LONG, greedy)) is CorruptAudio
        assert len(samples_of(processes, SHORT)) == len(SHORT[44:]) // 2
        assert workers() != before
    finally:
        processes.stop()


def test_an_error_in_the_decoder_is_no_fault_of_the_file(decoders: DecoderProcesses) -> None:
    with pytest.raises(DecoderFault, match="ValueError: cannot convert float NaN"):
        list(decoders.decode(upload(SHORT), AudioLimits(max_audio_s=float("nan"))))


def test_a_host_that_died_is_started_again(decoders: DecoderProcesses) -> None:
    blocks = decoders.decode(upload(LONG), NO_LIMIT)
    next(blocks)
    (host,) = hosts()
    host.kill()
    with pytest.raises(Overloaded):
        list(blocks)
    assert len(samples_of(decoders, SHORT)) == len(SHORT[44:]) // 2
    assert hosts() != [host]


def test_nobody_else_waits_for_a_host_that_hangs(decoders: DecoderProcesses) -> None:
    with (
        ThreadPoolExecutor(1) as pool,
        closing(decoders.decode(upload(LONG), NO_LIMIT)) as given_up,
    ):
        next(given_up)
        (host,) = hosts()
        host.suspend()
        waiting = pool.submit(samples_of, decoders, SHORT)
        until(decoders._talk.locked)
        given_up.close()
        assert not waiting.done()
        host.resume()
        assert len(waiting.result()) == len(SHORT[44:]) // 2
        until(lambda: len(workers()) == 1)


def test_a_stop_does_not_wait_for_the_answer_of_a_host_that_hangs(
    decoders: DecoderProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolation, "STOP_PATIENCE_S", 0.1)
    decoders.start()
    until(hosts)  # it has its name a moment after it has begun
    (host,) = hosts()
    host.suspend()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(samples_of, decoders, SHORT)
        until(decoders._talk.locked)
        decoders.stop()
        assert isinstance(waiting.exception(), NotReady)
    until(lambda: not is_alive(host))


def test_a_decoder_that_gives_more_than_it_may_is_none_any_more(
    decoders: DecoderProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_job = decoder_wire.send_job

    def ask_for_all(conversation: socket.socket, job: Job) -> None:
        send_job(conversation, replace(job, max_audio_s=36_000))

    monkeypatch.setattr(decoder_wire, "send_job", ask_for_all)
    assert type(refusal(decoders, LONG, AudioLimits(max_audio_s=10))) is CorruptAudio
    until(lambda: not workers())


def test_stopping_ends_all_processes_and_the_files_in_hand(decoders: DecoderProcesses) -> None:
    samples_of(decoders, SHORT)
    blocks = decoders.decode(upload(LONG), NO_LIMIT)
    next(blocks)
    family = [*hosts(), *workers()]
    decoders.stop()
    with pytest.raises(NotReady):
        list(blocks)
    with pytest.raises(NotReady):
        samples_of(decoders, SHORT)
    until(lambda: not any(one.is_running() for one in family))


ORPHANS = f"""
import io, os, sys
from sensevoice_service.isolation import *
from sensevoice_service.audio import AudioLimits
from sensevoice_service.types import Upload
processes = DecoderProcesses(DecoderLimits(2**29, 60, 3))
blocks = processes.decode(Upload(io.BytesIO({LONG[:44]!r} + bytes({len(LONG) - 44})), "", 1),
                          AudioLimits(36000))
next(blocks)
print("ready", flush=True)
sys.stdin.read()
"""


def test_decoders_do_not_outlive_the_service() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ORPHANS], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as service:
        assert service.stdout is not None
        assert service.stdout.readline() == b"ready\n"
        family = psutil.Process(service.pid).children(recursive=True)
        family[-1].suspend()  # as one that hangs, and hears nothing
        service.kill()
    assert len(family) == 2
    until(lambda: not any(one.is_running() for one in family))


def test_signals_to_the_group_are_not_for_decoders(decoders: DecoderProcesses) -> None:
    samples_of(decoders, SHORT)
    family = [*hosts(), *workers()]
    for one in family:
        one.send_signal(signal.SIGTERM)
        one.send_signal(signal.SIGINT)
    assert len(samples_of(decoders, SHORT)) == len(SHORT[44:]) // 2
    assert [*hosts(), *workers()] == family


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="this system has no /proc")
def test_a_decoder_has_no_secrets_and_may_do_little(
    decoders: DecoderProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEYS", "sesame")
    samples_of(decoders, SHORT)
    (host,), (decoder,) = hosts(), workers()
    assert "API_KEYS" not in host.environ()
    assert "PATH" in host.environ()
    assert host.num_threads() == 1
    limits = {kind: decoder.rlimit(kind)[1] for kind in range(16)}
    space_bytes = host.memory_info().vms + LIMITS.memory_bytes
    assert abs(limits[psutil.RLIMIT_AS] - space_bytes) < 32 * MIB
    kinds = (psutil.RLIMIT_CORE, psutil.RLIMIT_FSIZE, psutil.RLIMIT_NPROC)
    assert [limits[kind] for kind in kinds] == [0, 0, 0]
    assert decoder.num_fds() < 10


def test_no_process_left_is_a_refusal_for_now(
    decoders: DecoderProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_wire, "receive_pid", lambda *_: 0)
    with pytest.raises(Overloaded):
        samples_of(decoders, SHORT)


def test_many_threads_may_start_it(decoders: DecoderProcesses) -> None:
    threads = [threading.Thread(target=decoders.start) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hosts()) == 1
    assert len(samples_of(decoders, SHORT)) == len(SHORT[44:]) // 2


def test_an_upload_that_is_no_file_of_the_system_is_copied(decoders: DecoderProcesses) -> None:
    class Odd(io.RawIOBase):
        """Reads from memory, has no descriptor."""

        def __init__(self) -> None:
            self._data = io.BytesIO(SHORT)

        def readable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            return self._data.readinto(buffer)

        def seek(self, offset: int, whence: int = 0) -> int:
            return self._data.seek(offset, whence)

    odd = Upload(Odd(), "odd", len(SHORT))  # type: ignore[arg-type]
    blocks = decoders.decode(odd, NO_LIMIT)
    assert sum(len(block.samples) for block in blocks) == len(SHORT[44:]) // 2


@pytest.mark.skipif(os.geteuid() != 0, reason="a user can be changed by root alone")
def test_a_decoder_is_the_first_that_the_system_ends_whoever_serves() -> None:
    program = """
import ctypes, os
from sensevoice_service import decoder_host
os.setgid(65534), os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as after the start of a program by that user
decoder_host._restrict(2**29, os.getppid())
print(open("/proc/self/oom_score_adj").read())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENT_S
    )
    assert done.stdout.split() == ["1000"], done.stderr
