"""What goes wrong within: no disk, no memory, an engine or a decoder that fails; and bad models."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Generator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from sensevoice_service import memory
from sensevoice_service.audio import AudioLimits
from sensevoice_service.memory import read_memory
from sensevoice_service.routes.client import Client
from sensevoice_service.types import Block, Upload
from tests import server_process
from tests.audio_files import pcm16, voice, wav
from tests.echo import words
from tests.faulty_service import CLIP, LONG, Echoing, Engine, footprint, opened, posting, unharmed
from tests.hostile import (
    MIB,
    PATIENT_S,
    connect,
    form,
    get,
    is_alive,
    post,
    read_all,
    request_head,
    until,
)
from tests.http_service import house, serving

ROOT = Path(__file__).resolve().parents[1]


def test_a_body_that_stalls_gets_408_and_leaves_no_slot_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Client.__init__, "__defaults__", (0.3, time.monotonic))
    place = house(UPLOAD_MEMORY_MB=0)
    body = form(b"hello")
    with (
        serving(place.app()) as port,
        unharmed(place, port, body),
        connect(port) as connection,
    ):
        connection.sendall(request_head(Content_Length="1000000") + body.content[:-10])
        until(lambda: footprint(place).spools)
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_for_the_upload_is_507_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = house(UPLOAD_MEMORY_MB=0)
    write = tempfile.SpooledTemporaryFile.write

    def fill(spool: Any, data: Any) -> int:
        if len(data) > 1000:
            raise OSError(number, os.strerror(number))
        return write(spool, data)

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", fill)
    with serving(place.app()) as port, unharmed(place, port, form(b"hello")):
        status, body = post(port, form(b"hello", bytes(2 * MIB)))
        assert (status, body["error"]["code"]) == (507, "storage_full")


def test_a_broken_disk_is_the_service_s_own_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(spool: Any, data: Any) -> int:
        raise OSError(errno.EIO, "input or output")

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", broken)
    with serving(house().app()) as port:
        assert post(port, form(b"hello"))[0] == 500


def test_when_memory_is_short_new_work_is_refused_and_work_in_hand_finishes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "PROCESS_CGROUPS", Path("/nonexistent"))
    used = SimpleNamespace(total=100 * MIB, available=60 * MIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: used)
    service = Echoing(Engine())
    answers: list[Any] = []
    with service.serving() as port:
        # A house has its own figures; here they are those of the system, of no control group.
        reading = partial(read_memory, process_cgroups=Path("/nonexistent"))
        service.place.admission._memory_percent = lambda: reading().percent
        with service.unharmed(port):
            working = posting(port, form(CLIP), answers)
            assert service.engine.entered.wait(PATIENT_S)
            used.available = MIB
            with connect(port) as connection:
                body = form(CLIP).content
                connection.sendall(request_head(Content_Length=str(len(body))) + body)
                refusal = read_all(connection).lower()
            assert get(port, "/health/ready")[0] == 503
            assert get(port, "/health/live")[0] == 200
            service.engine.gate.set()
            working.join(PATIENT_S)
            used.available = 60 * MIB
    assert refusal.startswith(b"http/1.1 503 ")
    assert b"retry-after: " in refusal
    assert [status for status, _ in answers] == [200]


def test_a_chunk_that_the_model_fails_on_costs_its_own_request_alone() -> None:
    """All three wait while the engine is at another, and so go into one batch."""
    loud = wav(pcm16(voice(1.0) * 0 + 0.9))
    engine = Engine(fails_on=0.8, gate=opened())
    service = Echoing(engine)
    answers: dict[str, Any] = {}
    with service.serving() as port, service.unharmed(port):
        engine.gate.clear()
        files = {"first": CLIP, "good": CLIP, "bad": loud, "fine": CLIP}
        threads = []
        for name, data in files.items():
            thread = threading.Thread(
                target=lambda name=name, data=data: answers.update({name: post(port, form(data))})
            )
            thread.start()
            threads.append(thread)
            if name == "first":
                assert engine.entered.wait(PATIENT_S)
        until(lambda: service.batcher.stats().queued == 3)
        engine.gate.set()
        for thread in threads:
            thread.join(PATIENT_S)
        assert get(port, "/health/ready")[0] == 200
        assert not service.gave_up.is_set()
    assert {name: status for name, (status, _) in answers.items()} == {
        "first": 200,
        "good": 200,
        "bad": 500,
        "fine": 200,
    }
    assert answers["bad"][1]["error"]["code"] == "inference_failed"
    assert answers["good"][1]["results"] == answers["fine"][1]["results"] == [words(1)]


def test_a_file_that_the_model_fails_on_again_and_again_does_not_end_the_service() -> None:
    loud = wav(pcm16(voice(1.0) * 0 + 0.9))
    service = Echoing(Engine(fails_on=0.8, gate=opened()))
    with service.serving() as port, service.unharmed(port):
        for _ in range(5):
            assert post(port, form(loud))[0] == 500
            assert get(port, "/health/ready")[0] == 200
        assert not service.gave_up.is_set()


def test_an_engine_that_fails_on_silence_too_makes_the_service_give_up() -> None:
    service = Echoing(Engine(fails_always=True, gate=opened()))
    with service.serving() as port:
        for _ in range(2):
            assert post(port, form(CLIP))[0] == 500
            assert get(port, "/health/ready")[0] == 200
        assert post(port, form(CLIP))[0] == 500
        assert service.gave_up.wait(PATIENT_S)
        assert get(port, "/health/ready")[0] == 503
        assert "3 times in a row" in get(port, "/health")[1]["reason"]
        assert post(port, form(CLIP))[0] == 503


BROKEN = """
import api, sys
from config import load_settings
from tests.faulty_service import Echoing, Engine, opened
service = Echoing(Engine(fails_always=True, gate=opened()))
api.end_process(api.serve(load_settings(), lambda settings, pool, stop: service._load(stop)))
"""


def test_a_process_whose_engine_is_broken_ends_for_its_supervisor_to_see() -> None:
    environment = {**os.environ, "PORT": "0", "DRAIN_SEC": "0"}
    with server_process.running("-c", BROKEN, folder=ROOT, environment=environment) as server:
        until(lambda: server_process.ADDRESS.search(server.log) or server.process.poll())
        port = int(server.address.rpartition(":")[2])
        until(lambda: get(port, "/health/ready")[0] == 200)
        assert [post(port, form(CLIP))[0] for _ in range(3)] == [500] * 3
        assert server.process.wait(PATIENT_S) == 3
    assert any("3 times in a row" in line for line in server.errors)


def test_what_waits_for_the_engine_never_runs_once_its_client_has_left() -> None:
    service = Echoing(Engine())
    with service.serving() as port:
        with service.unharmed(port):
            body = form(LONG).content
            with connect(port) as connection:
                connection.sendall(request_head(Content_Length=str(len(body))) + body)
                assert service.engine.entered.wait(PATIENT_S)
                until(lambda: service.batcher.stats().queued == 1)
            until(lambda: service.place.admission.stats().active == 0)
            until(lambda: service.batcher.stats().queued == 0)
        heard = list(service.engine.heard)
    assert heard == [0, 0, 0]  # the chunk that ran already, and the good files afterwards


def busy_decoders(service: Echoing) -> list[psutil.Process]:
    hosts = psutil.Process().children()
    (host,) = (one for one in hosts if "sensevoice_service.decoder_host" in one.cmdline())
    idle = {decoder.pid for decoder in service.decoders._idle}
    return [one for one in host.children() if one.pid not in idle]


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (signal.SIGSEGV, 422, "corrupt_audio"),
        (signal.SIGKILL, 503, "overloaded"),
        (signal.SIGSTOP, 504, "timed_out"),
    ],
    ids=["crash", "killed by the system", "hang"],
)
def test_a_decoder_that_fails_costs_its_own_file_alone(
    fault: signal.Signals, status: int, code: str
) -> None:
    """The long file waits for the engine, most of it not decoded; its decoder is hurt then."""
    service = Echoing(Engine(), isolated=True)
    answers: list[Any] = []
    with service.serving() as port, service.unharmed(port):
        working = posting(port, form(CLIP, LONG, CLIP), answers)
        assert service.engine.entered.wait(PATIENT_S)
        until(lambda: service.batcher.stats().queued >= 3)
        until(lambda: len(busy_decoders(service)) == 1)  # those of the clips have done theirs
        (victim,) = busy_decoders(service)
        victim.send_signal(fault)
        service.engine.gate.set()
        working.join(PATIENT_S)
        until(lambda: not is_alive(victim))
    ((answered, body),) = answers
    assert answered == 200
    assert body["results"] == [words(1), "", words(1)]
    error = body["details"][1]["error"]
    assert (error["status"], error["code"]) == (status, code)


def test_a_decoder_s_own_fault_is_a_500_without_its_traceback() -> None:
    def broken(_upload: Upload, _limits: AudioLimits, /) -> Generator[Block, None, None]:
        raise ZeroDivisionError("secret of the house")
        yield

    service = Echoing(Engine(gate=opened()))
    service.decoders.decode = broken  # type: ignore[assignment, method-assign]
    service.isolated = True
    with service.serving() as port:
        status, body = post(port, form(CLIP))
    assert status == 500
    assert "secret" not in json.dumps(body)


DEMO = ROOT / "sensevoice_service" / "demo_model"


def wrong_files(trace: Path) -> dict[str, bytes]:
    weights = (DEMO / "model.pt").read_bytes()
    return {
        "model.pt": weights[: len(weights) // 2],
        "am.mvn": b"PK\x03\x04 of another kind",
        "config.yaml": f"!!python/object/apply:os.mkdir [{json.dumps(str(trace))}]\n".encode(),
        "demo.bpe.model": b"\x00" * 1000,
    }


@pytest.mark.parametrize("name", wrong_files(Path()))
def test_a_model_folder_with_a_wrong_file_ends_it_with_3_and_one_message(
    tmp_path: Path, name: str
) -> None:
    folder, trace = tmp_path / "model", tmp_path / "trace"
    shutil.copytree(DEMO, folder)
    (folder / name).write_bytes(wrong_files(trace)[name])
    environment = {**os.environ, "PORT": "0", "MODEL": str(folder)}
    with server_process.running("api.py", folder=ROOT, environment=environment) as server:
        assert server.exit_status() == 3
    assert len(server.errors) == 1
    assert "Traceback" not in server.log
    assert not trace.exists()
