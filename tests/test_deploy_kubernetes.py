from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from config import Settings
from sensevoice_service import __version__
from sensevoice_service.cli.command import main as command
from sensevoice_service.routes.server import ANSWER_S, CANCEL_S, WEDGED_S
from tests.http_service import house
from tests.keda import SCALED_OBJECT
from tests.kustomize import Resource, build, documents, key
from tests.test_dashboard import full_scrape

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "kubernetes"
KUBERNETES = ("1.30", "1.37")  # preStop's sleep needs no feature gate since the first
OVERLAYS = ("cpu", "gpu")
MIB = 2**20
# Names that others read: the C library, Python and the hubs.
NOT_OURS = {"HOME", "TMPDIR"}

overlays = pytest.mark.parametrize("overlay", OVERLAYS)


def resources(overlay: str) -> dict[str, Resource]:
    """By kind: there is one of each."""
    found = build(FOLDER / "overlays" / overlay)
    assert len({one["kind"] for one in found}) == len(found)
    return {one["kind"]: one for one in found}


def pod(overlay: str) -> dict[str, Any]:
    return dict(resources(overlay)["Deployment"]["spec"]["template"]["spec"])


def service_container(overlay: str) -> dict[str, Any]:
    (container,) = pod(overlay)["containers"]
    return dict(container)


def settings(overlay: str) -> Settings:
    """Those of the manifest, as the service reads them."""
    env = service_container(overlay)["env"]
    plain = {one["name"]: one["value"] for one in env if "value" in one}
    ours = {name: value for name, value in plain.items() if name not in NOT_OURS}
    return Settings(**ours)


def volume_bytes(overlay: str, name: str) -> int:
    (volume,) = (one for one in pod(overlay)["volumes"] if one["name"] == name)
    return int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 1024 * MIB


@overlays
@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_each_field(overlay: str, version: str) -> None:
    found = resources(overlay)
    assert set(found) == {
        "Namespace",
        "Deployment",
        "Service",
        "PodDisruptionBudget",
        "Ingress",
        "ScaledObject",
    }
    for kind, resource in found.items():
        if kind != "ScaledObject":
            kubernetes_validate.validate(resource, version, strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    deployment = resources("cpu")["Deployment"]
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 10
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriod"):
        kubernetes_validate.validate(deployment, KUBERNETES[0], strict=True)


@overlays
def test_keda_knows_each_field_of_the_autoscaler(overlay: str) -> None:
    scaler = resources(overlay)["ScaledObject"]
    assert scaler["apiVersion"] == "keda.sh/v1alpha1"
    jsonschema.validate(scaler["spec"], SCALED_OBJECT)
    behavior = scaler["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "keda-makes-this"},
        "spec": {
            "behavior": behavior,
            "maxReplicas": scaler["spec"]["maxReplicaCount"],
            "scaleTargetRef": {"kind": "Deployment", "name": "sensevoice"},
        },
    }
    kubernetes_validate.validate(autoscaler, KUBERNETES[0], strict=True)


@overlays
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="there is no kubectl here")
def test_kustomize_makes_the_same_of_it(overlay: str) -> None:
    command = ["kubectl", "kustomize", str(FOLDER / "overlays" / overlay)]
    made = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    theirs = {key(one): _in_order(one) for one in yaml.safe_load_all(made)}
    ours = {key(one): _in_order(one) for one in build(FOLDER / "overlays" / overlay)}
    assert ours == theirs


def _in_order(node: Any) -> Any:
    """Lists of named things compare whatever their order."""
    if isinstance(node, dict):
        return {name: _in_order(value) for name, value in node.items()}
    if isinstance(node, list):
        items = [_in_order(item) for item in node]
        return sorted(items, key=lambda item: str(item.get("name"))) if _is_named(items) else items
    return node


def _is_named(items: list[Any]) -> bool:
    return all(isinstance(item, dict) and "name" in item for item in items)


@overlays
def test_each_setting_is_one_of_the_service(overlay: str) -> None:
    env = service_container(overlay)["env"]
    names = {one["name"] for one in env} - NOT_OURS
    assert names <= set(Settings.model_fields)
    known = settings(overlay)
    assert known.MODEL == "/models/SenseVoiceSmall"
    assert known.HOST == "0.0.0.0"


@overlays
def test_probes_and_scrapes_ask_what_is_served(overlay: str) -> None:
    container = service_container(overlay)
    (port,) = container["ports"]
    assert port["containerPort"] == settings(overlay).PORT
    paths = {container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("liveness", "readiness")}
    assert paths == {"/health/live", "/health/ready"}
    assert container["startupProbe"]["httpGet"]["path"] == "/health/ready"
    annotations = resources(overlay)["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"])
    paths.add(annotations["prometheus.io/path"])
    assert paths <= set(house().app().openapi()["paths"])
    (service_port,) = resources(overlay)["Service"]["spec"]["ports"]
    assert service_port["targetPort"] == port["name"]


@overlays
def test_the_grace_period_holds_the_whole_end_of_a_pod(overlay: str) -> None:
    own = settings(overlay)
    sleep_s = service_container(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    work_s = max(own.DRAIN_SEC, own.SHUTDOWN_TIMEOUT_SEC)
    needed_s = sleep_s + work_s + ANSWER_S + CANCEL_S + WEDGED_S
    assert needed_s < pod(overlay)["terminationGracePeriodSeconds"]


@overlays
def test_a_pod_runs_as_nobody_special_and_writes_into_its_volumes_alone(overlay: str) -> None:
    spec = pod(overlay)
    assert spec["securityContext"]["runAsNonRoot"] is True
    user = re.search(r"--uid (\d+)", (FOLDER.parents[1] / "Dockerfile").read_text("utf-8"))
    assert user is not None
    assert spec["securityContext"]["runAsUser"] == int(user[1])
    for container in (*spec["containers"], *spec["initContainers"]):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        env = {one["name"]: one.get("value") for one in container["env"]}
        assert {value for name, value in env.items() if name in NOT_OURS} <= mounted


@overlays
def test_the_model_is_fetched_to_where_the_service_looks(
    overlay: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (init,) = pod(overlay)["initContainers"]
    assert init["command"] == ["python", "-m", "sensevoice_service", "download"]
    assert init["args"] == ["--to", settings(overlay).MODEL]
    monkeypatch.setattr("sys.argv", ["sensevoice_service", *init["command"][3:], "--help"])
    with pytest.raises(SystemExit, match="0"):
        command()
    assert "--to" in capsys.readouterr().out


@overlays
def test_the_volume_for_uploads_holds_all_that_may_come_at_once(overlay: str) -> None:
    own = settings(overlay)
    most_bytes = own.MAX_CONCURRENT_REQUESTS * own.MAX_UPLOAD_MB * MIB
    assert volume_bytes(overlay, "temp") >= most_bytes


@overlays
def test_too_large_a_body_is_refused_by_the_service_and_not_before(overlay: str) -> None:
    annotations = resources(overlay)["Ingress"]["metadata"]["annotations"]
    sizes = [value for name, value in annotations.items() if name.endswith("body-size")]
    assert len(sizes) == 2
    for size in sizes:
        assert int(size.removesuffix("m")) > settings(overlay).MAX_UPLOAD_MB


@overlays
def test_too_long_a_request_is_ended_by_the_service_and_not_before(overlay: str) -> None:
    annotations = resources(overlay)["Ingress"]["metadata"]["annotations"]
    waits = [value for name, value in annotations.items() if name.endswith("read-timeout")]
    assert len(waits) == 2
    for wait in waits:
        assert int(wait.removesuffix("s")) > settings(overlay).REQUEST_TIMEOUT_SEC


@overlays
def test_the_autoscaler_asks_for_metrics_that_there_are_and_keeps_slots_free(overlay: str) -> None:
    spec = resources(overlay)["ScaledObject"]["spec"]
    assert spec["scaleTargetRef"]["name"] == resources(overlay)["Deployment"]["metadata"]["name"]
    triggers = {one["name"]: one["metadata"] for one in spec["triggers"]}
    asked = set(re.findall(r"sensevoice_\w+", str(triggers)))
    assert asked == {
        "sensevoice_slots_in_use",
        "sensevoice_requests_waiting",
        "sensevoice_chunks_queued",
    }
    assert asked <= full_scrape().sample_names
    slots = settings(overlay).MAX_CONCURRENT_REQUESTS
    assert int(triggers["requests"]["threshold"]) == slots * 3 // 4
    # A single file has that many chunks in the queue, and is no reason for another pod.
    assert int(triggers["chunks"]["threshold"]) > settings(overlay).CHUNKS_IN_FLIGHT


def test_on_a_cpu_there_is_a_thread_for_each_core_that_the_pod_gets() -> None:
    own = settings("cpu")
    n_cores = int(service_container("cpu")["resources"]["limits"]["cpu"])
    assert own.DEVICE == "cpu"
    assert n_cores == own.MODEL_WORKERS * own.INTRA_OP_THREADS


def test_with_a_gpu_the_pod_has_one_and_does_not_do_without() -> None:
    resources_of_pod = service_container("gpu")["resources"]
    for of in ("requests", "limits"):
        assert resources_of_pod[of]["nvidia.com/gpu"] == "1"
    assert settings("gpu").DEVICE == "cuda:0"


@overlays
def test_the_image_is_of_this_version(overlay: str) -> None:
    spec = pod(overlay)
    images = {one["image"] for one in (*spec["containers"], *spec["initContainers"])}
    assert images == {f"registry.example.com/sensevoice:{__version__}"}


def test_one_volume_can_hold_the_model_of_all_pods(tmp_path: Path) -> None:
    plan = {
        "resources": [str(FOLDER / "overlays" / "cpu")],
        "components": [str(FOLDER / "components" / "shared-model")],
        "namespace": "sensevoice",
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(plan), "utf-8")
    found = {one["kind"]: one for one in build(tmp_path)}
    volumes = found["Deployment"]["spec"]["template"]["spec"]["volumes"]
    (models,) = (one for one in volumes if one["name"] == "models")
    claim = found["PersistentVolumeClaim"]
    assert models == {
        "name": "models",
        "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]},
    }
    for kind in ("Deployment", "PersistentVolumeClaim"):
        kubernetes_validate.validate(found[kind], KUBERNETES[0], strict=True)


def test_each_manifest_is_part_of_something() -> None:
    plans = sorted(FOLDER.rglob("kustomization.yaml"))
    named = {
        (plan.parent / name).resolve()
        for plan in plans
        for (content,) in [documents(plan)]
        for name in (
            *content.get("resources", ()),
            *(p["path"] for p in content.get("patches", ())),
        )
    }
    files = {path.resolve() for path in FOLDER.rglob("*.yaml")} - {path.resolve() for path in plans}
    assert files <= named
