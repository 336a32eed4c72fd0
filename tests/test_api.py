"""The application as it is run: ``python api.py`` in a process of its own."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from config import Settings, load_settings
from sensevoice_service.loading import EngineOptions, open_model
from sensevoice_service.types import LANGUAGES
from tests import server_process
from tests.audio_files import pcm16, voice, wav
from tests.models import Model, chunk_of
from tests.server_process import ADDRESS, PATIENT_S, ServerProcess, until_ready

ROOT = Path(__file__).resolve().parents[1]
MANY_CLIENTS = 100


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project without what may lie beside it: downloaded models and a ``local_config.py``."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("api.py", "config.py", "sensevoice_service"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def closed_hub() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, closed_hub: str) -> dict[str, str]:
    """No setting of the machine's own, hubs at a closed port, empty caches, a free port, a core."""
    caches = tmp_path_factory.mktemp("caches")
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in Settings.model_fields and not name.startswith(("MODELSCOPE_", "HF_"))
    }
    return {
        **inherited,
        "PORT": "0",
        "INTRA_OP_THREADS": "1",
        "DRAIN_SEC": "0",
        "MODELSCOPE_DOMAIN": closed_hub,
        "HF_ENDPOINT": closed_hub,
        "MODELSCOPE_CACHE": str(caches / "ms"),
        "HF_HOME": str(caches / "hf"),
        "no_proxy": "127.0.0.1",
    }


def running(
    project: Path, environment: Mapping[str, str], **settings: str
) -> AbstractContextManager[ServerProcess]:
    script = str(project / "api.py")
    return server_process.running(script, folder=project, environment=environment, **settings)


@pytest.fixture(scope="module")
def answers_of_start() -> list[httpx.Response]:
    return []


@pytest.fixture(scope="module")
def server(
    project: Path,
    environment: dict[str, str],
    small_model: Model,
    answers_of_start: list[httpx.Response],
) -> Iterator[httpx.Client]:
    """One server for all tests that only ask; Ctrl-C ends it."""
    with running(project, environment, MODEL=str(small_model.folder.path)) as server:
        with server.client() as client:
            answers_of_start += until_ready(client)
            yield client
        server.process.send_signal(signal.SIGINT)
        assert server.exit_status() == 0, server.log
        assert "Traceback" not in server.log
        assert server.errors == []


def files(*contents: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (f"{n}.wav", content)) for n, content in enumerate(contents, 1)]


def test_health_says_loading_with_503_and_then_healthy_with_200(
    server: httpx.Client, answers_of_start: list[httpx.Response], small_model: Model
) -> None:
    first, last = answers_of_start[0], answers_of_start[-1]
    assert (first.status_code, first.json()["status"], first.json()["model"]) == (
        503,
        "loading",
        None,
    )
    assert (last.status_code, last.json()["status"]) == (200, "healthy")
    assert last.json()["model"]["source"] == str(small_model.folder.path)
    assert last.json()["model"]["demo"] is False
    assert last.json()["precision"] == "int8"


def test_a_recording_is_answered_with_what_the_engine_hears(
    server: httpx.Client, small_model: Model
) -> None:
    data = pcm16(voice(2))
    answer = server.post("/transcribe", files=files(wav(data)), data={"lang": "ja"})
    samples = (torch.frombuffer(bytearray(data), dtype=torch.int16) / 32_768).numpy()
    engine = open_model(small_model.folder, EngineOptions(device="cpu")).engine
    (heard,) = engine([chunk_of(samples, "ja")])
    assert answer.status_code == 200
    assert answer.json()["results"] == [small_model.vocabulary.text(heard.token_ids)]
    assert answer.json()["details"][0]["duration_s"] == 2.0


def test_a_file_that_fails_leaves_the_others_their_texts(server: httpx.Client) -> None:
    good = wav(pcm16(voice(1)))
    answer = server.post("/transcribe", files=files(good, b"these are no sounds"))
    assert answer.status_code == 200
    body = answer.json()
    assert body["message"] == "1 of 2 files failed"
    assert body["results"][0]
    assert body["results"][1] == ""
    assert body["details"][0]["error"] is None
    assert body["details"][1]["error"]["code"] == "unsupported_audio"


def test_a_request_of_bad_files_alone_is_an_error(server: httpx.Client) -> None:
    answer = server.post("/transcribe", files=files(b"noise", b""))
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_audio"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_is_served(server: httpx.Client, language: str) -> None:
    answer = server.post("/transcribe", files=files(wav(pcm16(voice(1)))), data={"lang": language})
    assert answer.status_code == 200


def test_requests_at_once_each_get_their_own_answer(server: httpx.Client) -> None:
    recordings = [wav(pcm16(voice(duration_s))) for duration_s in (0.5, 1.0, 2.5, 31.0)]
    alone = [server.post("/transcribe", files=files(one)).json() for one in recordings]
    together = server.post("/transcribe", files=files(*recordings)).json()
    assert together["results"] == [answer["results"][0] for answer in alone]
    durations = [detail["duration_s"] for detail in together["details"]]
    assert durations == [0.5, 1.0, 2.5, 31.0]


def test_while_it_loads_it_takes_no_work_and_may_be_stopped(
    project: Path, environment: dict[str, str]
) -> None:
    """It waits for a hub that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        hub = f"http://127.0.0.1:{mute.getsockname()[1]}"
        settings = {"MODEL": "someone/else", "MODELSCOPE_DOMAIN": hub}
        with running(project, environment, **settings) as server:
            with server.client() as client:
                health = client.get("/health")
                answer = client.post("/transcribe", files=files(wav(pcm16(voice(1)))))
            server.process.send_signal(signal.SIGTERM)
            status = server.exit_status()
    assert (health.status_code, health.json()["status"]) == (503, "loading")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert int(answer.headers["retry-after"]) > 0
    assert (status, server.errors) == (0, []), server.log


def test_clients_that_come_while_it_is_held_up_find_room_to_wait(
    project: Path, environment: dict[str, str]
) -> None:
    with running(project, environment, MODEL="demo") as server, contextlib.ExitStack() as held:
        address = ("127.0.0.1", int(server.address.rpartition(":")[2]))
        server.process.send_signal(signal.SIGSTOP)
        try:
            clients = [  # the system itself turns away those who find none
                held.enter_context(socket.create_connection(address, timeout=PATIENT_S))
                for _ in range(MANY_CLIENTS)
            ]
        finally:
            server.process.send_signal(signal.SIGCONT)
        for client in clients:
            client.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert {client.recv(12) for client in clients} == {b"HTTP/1.1 200"}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system has no /proc")
def test_a_stop_in_the_midst_of_loading_is_an_orderly_end(
    project: Path, environment: dict[str, str], small_model: Model
) -> None:
    """A thread is inside of torch, warming up for long, which the interpreter's end would abort."""
    model = small_model.folder
    long = {"LARGE_FILE_DURATION_SEC": "120", "BATCH_SIZE": "64", "BATCH_FRAMES": "200000"}
    with running(project, environment, MODEL=str(model.path), **long) as server:
        maps = Path(f"/proc/{server.process.pid}/maps")
        pause = threading.Event()
        while model.checkpoint.name not in maps.read_text():
            assert server.process.poll() is None, server.log
            pause.wait(0.02)
        server.process.send_signal(signal.SIGTERM)
        assert server.exit_status() == 0, server.log
    assert server.errors == []
    assert server.log.splitlines()[-1].endswith(f"[{server.process.pid}]")


def test_auto_without_a_hub_serves_the_demo_and_says_so(
    project: Path, environment: dict[str, str], closed_hub: str
) -> None:
    with running(project, environment, MODEL="auto") as server:
        with server.client() as client:
            health = until_ready(client)[-1]
            answer = client.post("/transcribe", files=files(wav(pcm16(voice(1)))))
        server.process.send_signal(signal.SIGTERM)
        status = server.exit_status()
    assert health.status_code == 200, server.log
    model = health.json()["model"]
    assert (model["name"], model["demo"]) == ("demo", True)
    assert answer.json()["model"]["demo"] is True
    warnings = [line for line in server.lines if " WARNING " in line]
    assert len(warnings) == 1
    assert "BUNDLED DEMO MODEL" in warnings[0]
    assert closed_hub in warnings[0]
    assert (status, server.errors) == (0, []), server.log


def test_a_model_that_is_not_there_ends_it_with_3_and_one_message(
    project: Path, environment: dict[str, str]
) -> None:
    with running(project, environment, MODEL="/nonexistent") as server:
        assert server.exit_status() == 3
    assert len(server.errors) == 1
    assert "MODEL=/nonexistent: there is no such folder" in server.errors[0]
    assert "Traceback" not in server.log


class Payload:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_checkpoint_that_is_a_program_ends_it_with_3_and_does_not_run(
    project: Path, environment: dict[str, str], small_model: Model, tmp_path: Path
) -> None:
    folder, trace = tmp_path / "model", tmp_path / "trace"
    folder.mkdir()
    for path in small_model.folder.path.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "model.pt").unlink()
    torch.save({"payload": Payload(trace)}, folder / "model.pt")
    with running(project, environment, MODEL=str(folder)) as server:
        assert server.exit_status() == 3
    assert not trace.exists()
    assert len(server.errors) == 1
    assert "holds more than tensors and is not loaded" in server.errors[0]
    assert "Traceback" not in server.log


def test_a_wrong_setting_ends_it_with_2_before_it_serves(
    project: Path, environment: dict[str, str]
) -> None:
    with running(project, environment, QUANTIZE="int3") as server:
        assert server.exit_status() == 2
    assert "QUANTIZE" in server.log
    assert ADDRESS.search(server.log) is None
    assert "Traceback" not in server.log


def test_a_port_that_is_taken_ends_it_with_an_error(
    project: Path, environment: dict[str, str], small_model: Model
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        model = str(small_model.folder.path)
        with running(project, environment, MODEL=model, PORT=port) as server:
            assert server.exit_status() == 1
    assert "address already in use" in server.log


@pytest.mark.parametrize(
    ("settings", "device_type", "expected"),
    [
        ({}, "cpu", (32, 256, 0.02)),
        ({}, "cuda", (32, 8_192, 0.02)),
        ({"BATCH_SIZE": 4, "BATCH_FRAMES": 700, "BATCH_WAIT_MS": 5}, "cuda", (4, 700, 0.005)),
    ],
)
def test_the_settings_bound_a_batch(
    settings: dict[str, Any], device_type: str, expected: tuple[int, int, float]
) -> None:
    from api import batch_limits

    limits = batch_limits(load_settings(**settings), device_type)
    assert (limits.max_items, limits.max_padded_frames, limits.max_wait_s) == expected


def test_the_settings_say_how_files_are_cut() -> None:
    from api import pipeline_policy

    settings = load_settings(
        MAX_AUDIO_SEC=100,
        LARGE_FILE_SIZE_MB=1.5,
        LARGE_FILE_DURATION_SEC=25,
        LARGE_FILE_CHUNK_SIZE_SEC=12,
        CHUNKS_IN_FLIGHT=3,
    )
    policy = pipeline_policy(settings, n_workers=3)
    assert policy.audio.max_audio_s == 100
    assert (policy.chunks.whole_s, policy.chunks.chunk_s) == (25, 12)
    assert policy.chunks.n_lanes == 3
    assert policy.large_file_bytes == 1_572_864
    assert policy.max_chunks_in_flight == 3


@pytest.mark.parametrize(
    ("soft", "hard", "wanted"),
    [
        (1_024, 1_048_576, 65_536),
        (1_024, 4_096, 4_096),
        (1_024, resource.RLIM_INFINITY, 65_536),
        (100_000, 1_048_576, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None),
        (4_096, 4_096, None),
    ],
)
def test_as_many_descriptors_as_may_be_are_asked_for(
    soft: int, hard: int, wanted: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    from api import allow_descriptors

    allow_descriptors()
    assert asked == ([] if wanted is None else [(wanted, hard)])
