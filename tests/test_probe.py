from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from config import Settings, load_settings
from sensevoice_service.memory import MemoryReading
from sensevoice_service.probe import is_well
from sensevoice_service.status import Status
from tests.http_service import house, serving

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("status", "is_expected"), [("ready", True), ("loading", False), ("failed", False)]
)
def test_a_service_is_well_when_it_is_ready(status: Status, is_expected: bool) -> None:
    place = house()
    place.state.status = status
    with serving(place.app()) as port:
        assert is_well(load_settings(PORT=port)) is is_expected


def test_an_overloaded_service_is_well() -> None:
    place = house()
    place.memory = MemoryReading(used_bytes=95, total_bytes=100, process_rss_bytes=5)
    with serving(place.app()) as port:
        assert is_well(load_settings(PORT=port))


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_it_asks_where_the_service_listens(host: str) -> None:
    with serving(house().app()) as port:
        assert is_well(load_settings(HOST=host, PORT=port))


def test_where_nobody_listens_nobody_is_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert not is_well(load_settings(PORT=port))


def probe(**settings: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: v for name, v in os.environ.items() if name not in Settings.model_fields}
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "sensevoice_service.probe"],
        cwd=ROOT,
        env={**inherited, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_exit_status_tells_and_nothing_heavy_is_loaded_for_it() -> None:
    place = house()
    with serving(place.app()) as port:
        well = probe(PORT=str(port))
        place.state.status = "failed"
        ill = probe(PORT=str(port))
    assert (well.returncode, ill.returncode) == (0, 1)
    imported = {line.rpartition("|")[2].strip() for line in well.stderr.splitlines()}
    assert "pydantic_settings" in imported
    assert not imported & {"torch", "numpy", "fastapi", "starlette", "uvicorn"}


def test_wrong_settings_are_told() -> None:
    wrong = probe(PORT="many")
    assert wrong.returncode == 2
    assert "PORT" in wrong.stderr


def test_the_image_s_health_check_is_this_probe() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    assert '    CMD ["python", "-m", "sensevoice_service.probe"]' in lines
