"""Downloads as a whole, from a hub on the loopback that speaks both hubs' protocols."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.make_model import make_model
from sensevoice_service.hub import Hub
from sensevoice_service.model_store import download, resolve_model
from sensevoice_service.published import PUBLISHED_IDS, Published
from sensevoice_service.types import ModelError
from tests.fake_hub import FakeHub
from tests.model_folders import ignore, publish

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder, small=True)
    (folder / "model.py").write_text("raise SystemExit('remote code was run')")
    return folder


@pytest.fixture
def published(model: Path) -> Published:
    return publish(model)


@pytest.fixture
def fake_hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub, empty caches, and a working directory without a model."""
    files = tmp_path / "on-the-hub"
    shutil.copytree(model, files)
    with FakeHub(files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        monkeypatch.setenv("MODELSCOPE_DOMAIN", server.address)
        monkeypatch.delenv("MODELSCOPE_ENDPOINT", raising=False)
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
        monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "ms-home"))
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
        (tmp_path / "cwd").mkdir()
        monkeypatch.chdir(tmp_path / "cwd")
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def root(model: Path, tmp_path: Path) -> Path:
    """A project root with a bundled demo."""
    shutil.copytree(model, tmp_path / "project" / "sensevoice_service" / "demo_model")
    return tmp_path / "project"


hubs = pytest.mark.parametrize("hub", ["ms", "hf"])


@hubs
def test_auto_downloads_and_verifies_then_finds_it_in_the_cache(
    hub: Hub, fake_hub: FakeHub, root: Path, published: Published
) -> None:
    def resolve() -> Any:
        return resolve_model("auto", hub, root=root, report=reports.append, published=published)

    reports: list[str] = []
    first = resolve()
    assert (first.name, first.source, first.is_demo) == ("SenseVoiceSmall", "download", False)
    assert first.checkpoint.read_bytes() == (fake_hub.files / "model.pt").read_bytes()
    assert any("verifying" in report for report in reports)

    reports.clear()
    fake_hub.sent.clear()
    second = resolve()
    assert (second.source, second.path) == ("cache", first.path)
    assert fake_hub.sent == reports == []


@hubs
def test_only_the_files_of_the_model_are_fetched(
    hub: Hub, fake_hub: FakeHub, published: Published
) -> None:
    folder = download(hub, report=ignore, published=published)
    assert "model.py" not in fake_hub.sent
    assert not (folder.path / "model.py").exists()


@hubs
def test_a_download_goes_into_the_folder_that_it_is_given(
    hub: Hub, fake_hub: FakeHub, published: Published, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    first = download(hub, to=there, report=ignore, published=published)
    assert first.path == there
    fake_hub.sent.clear()
    second = download(hub, to=there, report=ignore, published=published)
    assert second.path == there
    assert fake_hub.sent == []


@hubs
@pytest.mark.parametrize("of", ["ms", "hf"])
def test_either_id_of_the_published_model_is_downloaded_into_a_folder(
    hub: Hub, of: Hub, fake_hub: FakeHub, published: Published, tmp_path: Path
) -> None:
    model_id, there = PUBLISHED_IDS[of], tmp_path / "there"
    folder = download(hub, model_id=model_id, to=there, report=ignore, published=published)
    assert (folder.path, folder.name) == (there, "SenseVoiceSmall")


@hubs
@pytest.mark.parametrize(
    ("half", "reason"), [("stall", "stalled"), ("cut", "")], ids=["silent", "cut off"]
)
def test_auto_falls_back_to_the_demo_when_a_download_fails_midway(
    hub: Hub, half: str, reason: str, fake_hub: FakeHub, root: Path, published: Published
) -> None:
    fake_hub.half = half
    reports: list[str] = []
    folder = resolve_model(
        "auto", hub, root=root, report=reports.append, published=published, stall_s=2.0
    )
    assert folder.is_demo
    assert "DEMO" in reports[-1]
    assert reason in reports[-1]


@hubs
def test_a_stalled_download_can_be_taken_up_again(
    hub: Hub, fake_hub: FakeHub, published: Published, tmp_path: Path
) -> None:
    fake_hub.half = "stall"
    with pytest.raises(ModelError, match="stalled"):
        download(hub, report=ignore, published=published, stall_s=5.0)
    fake_hub.half = ""
    folder = download(hub, report=ignore, published=published)
    assert folder.source == "download"
    assert hub == "hf" or any(start > 0 for start in fake_hub.resumed_at)
    assert list(tmp_path.rglob("*.incomplete")) == []


@hubs
def test_a_damaged_copy_in_the_cache_is_fetched_anew(
    hub: Hub, fake_hub: FakeHub, published: Published
) -> None:
    first = download(hub, report=ignore, published=published)
    content = bytearray(first.checkpoint.read_bytes())
    content[1000] ^= 0xFF
    first.checkpoint.resolve().write_bytes(content)

    reports: list[str] = []
    second = download(hub, report=reports.append, published=published)
    assert second.source == "download"
    assert any("passing over" in report and "sha256" in report for report in reports)
    assert second.checkpoint.read_bytes() == (fake_hub.files / "model.pt").read_bytes()


@hubs
def test_a_model_that_is_not_the_published_one_is_refused(hub: Hub, fake_hub: FakeHub) -> None:
    with pytest.raises(ModelError, match=r"model\.pt .*expected 936291369 bytes.*found \d+ bytes"):
        download(hub, report=ignore)


@hubs
def test_a_model_that_the_hub_does_not_have_is_an_error(
    hub: Hub, fake_hub: FakeHub, root: Path
) -> None:
    with pytest.raises(ModelError, match=r"someone/no-such-model: no whole copy .* none from"):
        resolve_model("someone/no-such-model", hub, root=root, report=ignore)


@hubs
def test_a_repository_without_the_parts_of_a_model_is_an_error_that_lists_them(
    hub: Hub, fake_hub: FakeHub, root: Path
) -> None:
    (fake_hub.files / "am.mvn").unlink()
    with pytest.raises(
        ModelError, match=r"someone/else came from [^:]*: (.|\n)*am\.mvn is missing"
    ):
        resolve_model("someone/else", hub, root=root, report=ignore)


def test_stopping_ends_a_download(fake_hub: FakeHub, root: Path, published: Published) -> None:
    fake_hub.half = "stall"
    stop = threading.Event()
    stop.set()
    with pytest.raises(ModelError, match="stopped"):
        resolve_model("auto", "ms", root=root, report=ignore, published=published, stop=stop)


@hubs
def test_the_command_exits_with_3_where_the_download_is_not_the_published_model(
    hub: Hub, fake_hub: FakeHub
) -> None:
    command = [sys.executable, "-m", "sensevoice_service", "download", "--hub", hub]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 3
    assert result.stdout == ""
    assert "model.pt" in result.stderr
    assert "Traceback" not in result.stderr


@hubs
def test_the_command_prints_where_the_model_lies(
    hub: Hub, fake_hub: FakeHub, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    command = [sys.executable, "-m", "sensevoice_service", "download"]
    options = ["--hub", hub, "--model", "someone/else", "--to", str(there)]
    result = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{there}\n"
