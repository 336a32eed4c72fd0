from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(
    *arguments: str, cwd: Path = ROOT, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sensevoice_service", *arguments],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def no_hub(tmp_path: Path) -> dict[str, str]:
    """Hubs at a closed port, and empty caches."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}"
    return {
        "MODELSCOPE_ENDPOINT": closed,
        "HF_ENDPOINT": closed,
        "no_proxy": "127.0.0.1",
        "MODELSCOPE_CACHE": str(tmp_path / "ms"),
        "HF_HUB_CACHE": str(tmp_path / "hf"),
    }


@pytest.mark.parametrize("hub", ["ms", "hf"])
def test_download_without_a_hub_exits_with_3_and_one_clear_message(
    hub: str, no_hub: dict[str, str]
) -> None:
    result = run("download", "--hub", hub, environment=no_hub)
    assert result.returncode == 3
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "cannot be reached" in result.stderr
    assert no_hub["HF_ENDPOINT"] in result.stderr


def test_download_takes_the_hub_of_the_settings_unless_told(no_hub: dict[str, str]) -> None:
    environment = {"HUB": "hf", **no_hub}
    assert "none from Hugging Face" in run("download", environment=environment).stderr
    told = run("download", "--hub", "ms", environment=environment)
    assert "none from ModelScope" in told.stderr


def test_wrong_settings_exit_with_2(no_hub: dict[str, str]) -> None:
    result = run("download", environment={"HUB": "elsewhere", **no_hub})
    assert result.returncode == 2
    assert "HUB" in result.stderr
    assert "Traceback" not in result.stderr


def test_download_of_what_is_no_hub_id_exits_with_3() -> None:
    result = run("download", "--hub", "ms", "--model", "nonsense")
    assert result.returncode == 3
    assert "nonsense is no hub id" in result.stderr


@pytest.mark.parametrize(
    "arguments", [(), ("nonsense",), ("download", "--hub", "x")], ids=["none", "unknown", "wrong"]
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert "usage: python -m sensevoice_service" in result.stderr


def test_help_names_the_commands() -> None:
    result = run("--help")
    assert result.returncode == 0
    assert "download" in result.stdout
    assert "serve" in result.stdout


def test_serve_hands_over_to_the_api_and_keeps_its_status(tmp_path: Path) -> None:
    (tmp_path / "api.py").write_text("def main():\n    print('serving')\n    return 3\n")
    result = run("serve", cwd=tmp_path, environment={"PYTHONPATH": str(ROOT)})
    assert (result.returncode, result.stdout) == (3, "serving\n")


def test_the_command_line_starts_without_torch_or_the_web_framework() -> None:
    code = "import sys, sensevoice_service.__main__; print({'torch', 'fastapi'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "set()\n", result.stderr
