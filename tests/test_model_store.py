from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.make_model import BPE_MODEL_NAME, make_model
from sensevoice_service.hub import Hub
from sensevoice_service.model_store import ModelFolder, download, resolve_model
from sensevoice_service.published import Published
from sensevoice_service.types import ModelError
from tests.forbidden import forbidden
from tests.model_folders import ignore, publish

hubs = pytest.mark.parametrize("hub", ["ms", "hf"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder, small=True)
    return folder


@pytest.fixture
def published(model: Path) -> Published:
    return publish(model)


@pytest.fixture
def root(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a bundled demo, empty caches, an empty working directory, and closed hubs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", closed)
    monkeypatch.setenv("HF_ENDPOINT", closed)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    shutil.copytree(model, tmp_path / "project" / "sensevoice_service" / "demo_model")
    return tmp_path / "project"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.fixture
def black_hole(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub that accepts every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", address)
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield address


def put_in_cache(model: Path, hub: Hub, caches: Path) -> Path:
    if hub == "ms":
        snapshot = caches / "ms" / "models" / "iic--SenseVoiceSmall" / "snapshots" / "master"
    else:
        repository = caches / "hf" / "models--FunAudioLLM--SenseVoiceSmall"
        snapshot = repository / "snapshots" / "c0ffee"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("c0ffee")
    return Path(shutil.copytree(model, snapshot))


# --- auto


@pytest.mark.parametrize("place", ["project", "cwd"])
def test_auto_takes_the_local_folder_first(
    place: str, root: Path, model: Path, published: Published, tmp_path: Path, no_network: None
) -> None:
    put_in_cache(model, "ms", tmp_path)
    local = Path(shutil.copytree(model, tmp_path / place / "iic" / "SenseVoiceSmall"))
    folder = resolve_model("auto", "ms", root=root, report=ignore, published=published)
    assert folder == ModelFolder(
        path=local,
        name="SenseVoiceSmall",
        source="local",
        is_demo=False,
        config_yaml=local / "config.yaml",
        checkpoint=local / "model.pt",
        cmvn=local / "am.mvn",
        bpe_model=local / BPE_MODEL_NAME,
    )


@hubs
def test_auto_takes_a_cached_copy_without_any_network(
    hub: Hub, root: Path, model: Path, published: Published, tmp_path: Path, no_network: None
) -> None:
    snapshot = put_in_cache(model, hub, tmp_path)
    folder = resolve_model("auto", hub, root=root, report=ignore, published=published)
    assert (folder.path, folder.source, folder.name) == (snapshot, "cache", "SenseVoiceSmall")


@hubs
def test_auto_takes_the_copy_of_the_chosen_hub_and_else_of_the_other(
    hub: Hub, root: Path, model: Path, published: Published, tmp_path: Path, no_network: None
) -> None:
    snapshots = {
        "ms": put_in_cache(model, "ms", tmp_path),
        "hf": put_in_cache(model, "hf", tmp_path),
    }
    folder = resolve_model("auto", hub, root=root, report=ignore, published=published)
    assert folder.path == snapshots[hub]

    shutil.rmtree(snapshots.pop(hub))
    folder = resolve_model("auto", hub, root=root, report=ignore, published=published)
    assert [folder.path] == list(snapshots.values())


@hubs
def test_auto_falls_back_to_the_demo_loudly_where_the_hub_is_unreachable(
    hub: Hub, root: Path
) -> None:
    reports: list[str] = []
    folder = resolve_model("auto", hub, root=root, report=reports.append)
    assert (folder.name, folder.source, folder.is_demo) == ("demo", "bundled", True)
    assert folder.path == root / "sensevoice_service" / "demo_model"
    assert len(reports) == 1
    assert "DEMO MODEL" in reports[0]
    assert "http://127.0.0.1:" in reports[0]


@hubs
def test_auto_falls_back_to_the_demo_where_the_hub_never_answers(
    hub: Hub, root: Path, black_hole: str
) -> None:
    reports: list[str] = []
    folder = resolve_model("auto", hub, root=root, report=reports.append, hub_timeout_s=0.2)
    assert folder.is_demo
    assert black_hole in reports[0]


@hubs
def test_auto_offline_goes_to_the_demo_without_any_network(
    hub: Hub, root: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    reports: list[str] = []
    assert resolve_model("auto", hub, root=root, report=reports.append).is_demo
    assert "HF_HUB_OFFLINE is set" in reports[0]


def test_auto_passes_over_a_damaged_cached_copy_and_says_so(
    root: Path, model: Path, published: Published, tmp_path: Path
) -> None:
    snapshot = put_in_cache(model, "ms", tmp_path)
    (snapshot / "am.mvn").write_text("something else")
    reports: list[str] = []
    folder = resolve_model("auto", "ms", root=root, report=reports.append, published=published)
    assert folder.is_demo
    assert "am.mvn" in reports[0]


def test_auto_ignores_an_unfinished_cached_copy(
    root: Path, model: Path, published: Published, tmp_path: Path
) -> None:
    snapshot = put_in_cache(model, "ms", tmp_path)
    (snapshot / "model.pt").unlink()
    assert resolve_model("auto", "ms", root=root, report=ignore, published=published).is_demo


def test_auto_does_not_hide_a_broken_local_folder(root: Path, model: Path) -> None:
    local = Path(shutil.copytree(model, root / "iic" / "SenseVoiceSmall"))
    (local / "model.pt").unlink()
    with pytest.raises(ModelError, match=r"model\.pt is missing"):
        resolve_model("auto", "ms", root=root, report=ignore)


def test_auto_takes_an_empty_local_folder_for_none(root: Path) -> None:
    (root / "iic" / "SenseVoiceSmall").mkdir(parents=True)
    assert resolve_model("auto", "ms", root=root, report=ignore).is_demo


def test_auto_without_a_demo_tells_why_there_is_no_model(root: Path) -> None:
    shutil.rmtree(root / "sensevoice_service")
    with pytest.raises(ModelError, match=r"cannot be reached(.|\n)*demo cannot stand in"):
        resolve_model("auto", "ms", root=root, report=ignore)


# --- demo, a folder, a hub id


def test_demo_means_the_bundled_model(root: Path, model: Path, no_network: None) -> None:
    shutil.copytree(model, root / "iic" / "SenseVoiceSmall")
    assert resolve_model("demo", "ms", root=root, report=ignore).is_demo


def test_a_folder_means_just_that(
    root: Path, model: Path, tmp_path: Path, no_network: None
) -> None:
    mine = Path(shutil.copytree(model, tmp_path / "cwd" / "mine"))
    for setting in ("mine", "./mine", str(mine), f"{mine}/"):
        folder = resolve_model(setting, "ms", root=root, report=ignore)
        assert (folder.path, folder.name, folder.source) == (mine, "mine", "local")


def test_a_folder_in_the_home_is_found(
    root: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    shutil.copytree(model, tmp_path / "home" / "mine")
    assert resolve_model("~/mine", "ms", root=root, report=ignore).name == "mine"


@pytest.mark.parametrize("setting", ["./mine", "/no/such/folder", "mine", "a/b/c", "~/mine"])
def test_a_folder_that_is_not_there_never_falls_back(
    setting: str, root: Path, no_network: None
) -> None:
    with pytest.raises(ModelError, match="no such folder") as error:
        resolve_model(setting, "ms", root=root, report=ignore)
    for way in ("python -m sensevoice_service download", "MODEL=demo", "MODEL=auto", "MODEL=<a f"):
        assert way in str(error.value)


def test_a_folder_that_may_not_be_looked_into_is_a_model_that_cannot_be_had(
    root: Path, model: Path, tmp_path: Path, no_network: None
) -> None:
    path = Path(shutil.copytree(model, tmp_path / "secret" / "model"))
    for folder in (path, path.parent):
        with forbidden(folder), pytest.raises(ModelError, match="model"):
            resolve_model(str(path), "ms", root=root, report=ignore)


@pytest.mark.parametrize("hub", ["ms", "hf"])
def test_auto_passes_over_a_cache_that_may_not_be_looked_into(
    hub: Hub, root: Path, model: Path, published: Published, tmp_path: Path
) -> None:
    snapshot = put_in_cache(model, hub, tmp_path)
    with forbidden(snapshot):
        folder = resolve_model("auto", hub, root=root, report=ignore, published=published)
    assert folder.is_demo


def test_a_broken_folder_never_falls_back(root: Path, model: Path, no_network: None) -> None:
    mine = Path(shutil.copytree(model, root / "mine"))
    (mine / "am.mvn").unlink()
    content = (mine / "model.pt").read_bytes()
    (mine / "model.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError) as error:
        resolve_model(str(mine), "ms", root=root, report=ignore)
    assert "am.mvn is missing" in str(error.value)
    assert "model.pt (" in str(error.value)


def test_a_file_is_no_folder(root: Path, model: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        resolve_model(str(model / "model.pt"), "ms", root=root, report=ignore)


@hubs
def test_a_hub_id_never_falls_back(hub: Hub, root: Path) -> None:
    with pytest.raises(ModelError, match="cannot be reached") as error:
        resolve_model("iic/SenseVoiceSmall", hub, root=root, report=ignore)
    assert "MODEL=demo" in str(error.value)


@pytest.mark.parametrize("setting", ["iic/SenseVoiceSmall", "FunAudioLLM/SenseVoiceSmall"])
@hubs
def test_either_id_of_the_published_model_finds_it_in_either_cache(
    hub: Hub,
    setting: str,
    root: Path,
    model: Path,
    published: Published,
    tmp_path: Path,
    no_network: None,
) -> None:
    snapshot = put_in_cache(model, "hf", tmp_path)
    folder = resolve_model(setting, hub, root=root, report=ignore, published=published)
    assert folder.path == snapshot


def test_a_folder_named_as_the_published_model_must_be_it(root: Path, model: Path) -> None:
    shutil.copytree(model, root / "iic" / "SenseVoiceSmall")
    with pytest.raises(ModelError, match=r"model\.pt .*is not the published one"):
        resolve_model("auto", "ms", root=root, report=ignore)


# --- download


@pytest.mark.parametrize("model_id", ["SenseVoiceSmall", "../x", "a/b/c", "a/"])
def test_only_a_hub_id_can_be_downloaded(model_id: str, no_network: None) -> None:
    with pytest.raises(ModelError, match="is no hub id"):
        download("ms", model_id=model_id, report=ignore)


@hubs
def test_a_cached_model_is_not_downloaded_again(
    hub: Hub, root: Path, model: Path, published: Published, tmp_path: Path, no_network: None
) -> None:
    snapshot = put_in_cache(model, hub, tmp_path)
    assert download(hub, report=ignore, published=published).path == snapshot
