from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sensevoice_service import hub
from sensevoice_service.hub import Hub, HubError, cached_snapshots, endpoint, why_unreachable


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "MODELSCOPE_ENDPOINT",
        "MODELSCOPE_DOMAIN",
        "MODELSCOPE_PREFER_AI_SITE",
        "HF_ENDPOINT",
        "HF_HUB_OFFLINE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def port() -> Iterator[int]:
    """A port whose connections are accepted by the system and answered by nobody."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("hub", "environment", "address"),
    [
        ("hf", {}, "https://huggingface.co"),
        ("hf", {"HF_ENDPOINT": "https://mirror.example/"}, "https://mirror.example"),
        ("ms", {}, "https://modelscope.cn"),
        ("ms", {"MODELSCOPE_PREFER_AI_SITE": "true"}, "https://www.modelscope.ai"),
        ("ms", {"MODELSCOPE_DOMAIN": "hub.example"}, "https://hub.example"),
        ("ms", {"MODELSCOPE_DOMAIN": "http://127.0.0.1:1/"}, "http://127.0.0.1:1"),
        (
            "ms",
            {"MODELSCOPE_ENDPOINT": "https://a.example", "MODELSCOPE_DOMAIN": "b.example"},
            "https://a.example",
        ),
    ],
)
def test_the_address_is_that_of_the_hubs_own_library(
    hub: Hub, environment: dict[str, str], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert endpoint(hub) == address


def test_a_closed_port_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    assert f"{address}: " in (why_unreachable("hf", 5.0) or "")


def test_a_hub_that_accepts_and_never_answers_is_given_up(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_DOMAIN", f"http://127.0.0.1:{port}")
    assert why_unreachable("ms", 0.2)


def test_a_name_that_is_never_resolved_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: over.wait() and [])
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    try:
        assert why_unreachable("hf", 0.1) == "http://hub.example: no answer within 0.1 s"
    finally:
        over.set()


def test_an_address_that_is_none_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "nonsense")
    assert "nonsense" in (why_unreachable("hf", 5.0) or "")


@pytest.mark.parametrize(
    ("status", "reachable"), [(200, True), (404, True), (501, True), (502, False), (503, False)]
)
def test_any_answer_but_a_gateways_excuse_is_a_sign_of_life(
    status: int, reachable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        reason = why_unreachable("hf", 10.0)
        thread.join()
    assert (reason is None) == reachable


@pytest.mark.parametrize("hub", ["ms", "hf"])
def test_offline_means_that_nobody_is_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: pytest.fail("asked"))
    assert why_unreachable(hub, 5.0) == "HF_HUB_OFFLINE is set"


@pytest.mark.parametrize(
    "layout",
    [
        "models/iic--SenseVoice.Small/snapshots/master",
        "models/iic/SenseVoice___Small",
        "models/iic/SenseVoice.Small",
        "hub/models/iic/SenseVoice___Small",
        "hub/iic/SenseVoice.Small",
        "iic/SenseVoice.Small",
    ],
)
def test_every_layout_of_modelscopes_cache_is_looked_at(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    (tmp_path / layout).mkdir(parents=True)
    assert list(cached_snapshots("ms", "iic/SenseVoice.Small")) == [tmp_path / layout]


def test_a_cache_that_cannot_be_read_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_CACHE", "/" + "long" * 100)  # root may read all but this
    assert list(cached_snapshots("ms", "a/b")) == []


def test_modelscopes_default_revision_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    snapshots = tmp_path / "models" / "a--b" / "snapshots"
    for revision in ("v1", "master", "dev"):
        (snapshots / revision).mkdir(parents=True)
    names = [path.name for path in cached_snapshots("ms", "a/b")]
    assert names == ["master", "dev", "v1"]


def test_modelscopes_cache_is_in_the_home_unless_said_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODELSCOPE_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / ".cache" / "modelscope" / "models" / "a--b" / "snapshots" / "master"
    folder.mkdir(parents=True)
    assert list(cached_snapshots("ms", "a/b")) == [folder]


def test_hugging_faces_cache_gives_the_main_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--a--b"
    (repository / "snapshots" / "c0ffee").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    assert list(cached_snapshots("hf", "a/b")) == [repository / "snapshots" / "c0ffee"]


@pytest.mark.parametrize("hub", ["ms", "hf"])
@pytest.mark.parametrize("repo_id", ["a/b", "a/.."])
def test_an_empty_cache_has_nothing(
    hub: Hub, repo_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert list(cached_snapshots(hub, repo_id)) == []


def test_of_two_downloads_of_one_model_the_second_waits_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds for processes as for threads: each opens the file anew."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stop, order = threading.Event(), list[str]()

    def second() -> None:
        with hub._one_at_a_time("a model", threading.Event()):
            order.append("second")

    waiting = threading.Thread(target=second)
    with hub._one_at_a_time("a model", stop):
        waiting.start()
        with hub._one_at_a_time("another", stop):
            order.append("another")
        stop.set()
        with pytest.raises(HubError, match="stopped"), hub._one_at_a_time("a model", stop):
            order.append("stopped")
        order.append("first")
    waiting.join(10)
    assert not waiting.is_alive()
    assert order == ["another", "first", "second"]


def test_without_a_place_for_its_lock_a_download_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with hub._one_at_a_time("a model", threading.Event()):
        pass
    assert not (tmp_path / "none").exists()
