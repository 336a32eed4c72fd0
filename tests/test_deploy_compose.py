from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from config import Settings
from sensevoice_service import __version__
from sensevoice_service.routes.server import ANSWER_S, CANCEL_S, WEDGED_S

ROOT = Path(__file__).resolve().parents[1]
SERVICES = ("sensevoice-cpu", "sensevoice-gpu")
NOT_OURS = {"HOME"}
_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")

service = pytest.mark.parametrize("name", SERVICES)


def composition() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8")))


def services() -> dict[str, Any]:
    return dict(composition()["services"])


def with_defaults(text: str) -> str:
    """As Compose fills it in where the environment says nothing."""
    return _VARIABLE.sub(lambda match: match[2], text)


def settings(name: str) -> Settings:
    env = services()[name]["environment"]
    own: dict[str, Any] = {
        key: with_defaults(value)
        for key, value in env.items()
        if key not in NOT_OURS and value is not None
    }
    return Settings(**own)


def mounted_files() -> dict[str, Path]:
    """Files of the project by where they are in their containers."""
    binds = [
        volume.split(":")
        for one in services().values()
        for volume in one["volumes"]
        if volume.startswith("./")
    ]
    return {inside: ROOT / outside for outside, inside, mode in binds if mode == "ro"}


@service
def test_each_setting_is_one_of_the_service_with_the_image_s_or_its_own_default(name: str) -> None:
    own = settings(name).model_dump()
    meant = {"DEVICE", "LOG_FORMAT", "MAX_CONCURRENT_REQUESTS"}
    defaults = {key: field.default for key, field in Settings.model_fields.items()}
    image = re.findall(r"^\s+(?:ENV )?(\w+)=(\S+)", (ROOT / "Dockerfile").read_text("utf-8"), re.M)
    assert dict(image)["MODEL"] == own.pop("MODEL")
    assert {key for key, value in own.items() if value != defaults[key]} <= meant


def test_a_variable_sets_the_setting_of_its_own_name() -> None:
    for name in SERVICES:
        for setting, value in services()[name]["environment"].items():
            assert all(variable == setting for variable, _ in _VARIABLE.findall(value or ""))


def test_keys_that_are_not_set_are_not_passed_on_as_empty_ones() -> None:
    for name in SERVICES:
        assert services()[name]["environment"]["API_KEYS"] is None


def test_one_profile_has_a_gpu_and_the_other_does_without() -> None:
    cpu, gpu = (services()[name] for name in SERVICES)
    assert (cpu["profiles"], gpu["profiles"]) == (["cpu"], ["gpu"])
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert (settings("sensevoice-gpu").DEVICE, "deploy" in cpu) == ("cuda:0", False)
    assert settings("sensevoice-cpu").DEVICE == "cpu"


@service
def test_the_image_is_built_here_and_stopped_no_sooner_than_it_ends(name: str) -> None:
    one = services()[name]
    assert (one["build"], one["image"]) == (".", f"sensevoice:{__version__}")
    own = settings(name)
    needed_s = max(own.SHUTDOWN_TIMEOUT_SEC, own.DRAIN_SEC) + ANSWER_S + CANCEL_S + WEDGED_S
    assert int(one["stop_grace_period"].removesuffix("s")) > needed_s


@service
def test_it_may_write_into_its_volumes_alone_and_become_nobody_else(name: str) -> None:
    one = services()[name]
    assert (one["read_only"], one["cap_drop"]) == (True, ["ALL"])
    assert one["security_opt"] == ["no-new-privileges:true"]
    assert one["volumes"] == ["models:/models", "/tmp"]
    assert "user" not in one  # the image's own


def test_nothing_listens_to_other_machines() -> None:
    ports = [port for one in services().values() for port in one["ports"]]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


@service
def test_the_container_s_port_is_that_of_the_image(name: str) -> None:
    (port,) = services()[name]["ports"]
    image = (ROOT / "Dockerfile").read_text("utf-8")
    assert re.search(rf"^EXPOSE {port.rsplit(':')[-1]}$", image, re.MULTILINE)
    assert "/models" in re.findall(r"^VOLUME (\S+)", image, re.MULTILINE)
    assert "models:/models" in services()[name]["volumes"]


def test_each_file_and_volume_that_is_mounted_is_there() -> None:
    files = mounted_files()
    assert len(files) == 4
    assert [path for path in files.values() if not path.is_file()] == []
    named = {
        volume.split(":")[0]
        for one in services().values()
        for volume in one["volumes"]
        if ":" in volume and not volume.startswith("./")
    }
    assert named == set(composition()["volumes"])


def test_prometheus_scrapes_the_service_by_the_name_that_it_has() -> None:
    (scrape,) = _load("/etc/prometheus/prometheus.yml")["scrape_configs"]
    (static,) = scrape["static_configs"]
    (target,) = static["targets"]
    host, _, port = target.partition(":")
    for name in SERVICES:
        assert host in services()[name]["networks"]["default"]["aliases"]
        assert services()[name]["ports"][0].endswith(f":{port}")
    # One job name: the dashboard's variable lists it.
    example = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text("utf-8"))
    assert scrape["job_name"] == example["scrape_configs"][0]["job_name"]


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    (source,) = _load("/etc/grafana/provisioning/datasources/sensevoice.yaml")["datasources"]
    assert (source["url"], source["isDefault"]) == ("http://prometheus:9090", True)
    assert "127.0.0.1:9090:9090" in services()["prometheus"]["ports"]
    (provider,) = _load("/etc/grafana/provisioning/dashboards/sensevoice.yaml")["providers"]
    dashboards = [inside for inside in mounted_files() if inside.endswith(".json")]
    assert [str(Path(inside).parent) for inside in dashboards] == [provider["options"]["path"]]


def _load(inside: str) -> dict[str, Any]:
    return dict(yaml.safe_load(mounted_files()[inside].read_text("utf-8")))
