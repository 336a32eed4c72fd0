"""As much of kustomize as the manifests under ``deploy/kubernetes`` use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]

_KNOWN = {"apiVersion", "kind", "namespace", "resources", "components", "patches", "images"}
_BUILT_IN = ("v1", "apps/v1", "policy/v1", "networking.k8s.io/v1")
_MERGE_KEYS = {
    **dict.fromkeys(("containers", "initContainers", "env", "volumes"), "name"),
    "ports": "containerPort",
    "volumeMounts": "mountPath",
}


def documents(path: Path) -> list[Resource]:
    return [one for one in yaml.safe_load_all(path.read_text("utf-8")) if one]


def build(folder: Path) -> list[Resource]:
    """The resources of a kustomization with what it includes, patched."""
    return _apply(folder, [])


def _apply(folder: Path, given: list[Resource]) -> list[Resource]:
    (plan,) = documents(folder / "kustomization.yaml")
    if unknown := set(plan) - _KNOWN:
        raise ValueError(f"{folder}: {unknown} is more than is understood here")
    found = list(given)
    for name in plan.get("resources", ()):
        path = folder / name
        found += build(path) if path.is_dir() else documents(path)
    for name in plan.get("components", ()):
        found = _apply(folder / name, found)
    for patch in plan.get("patches", ()):
        (change,) = documents(folder / patch["path"])
        found = _patched(found, change)
    for resource in found:
        _set_images(resource, plan.get("images", ()))
        if "namespace" in plan and resource["kind"] != "Namespace":
            resource["metadata"]["namespace"] = plan["namespace"]
    return found


def key(resource: Resource) -> tuple[str, str]:
    return resource["kind"], resource["metadata"]["name"]


def _patched(resources: list[Resource], change: Resource) -> list[Resource]:
    if key(change) not in map(key, resources):
        raise ValueError(f"there is no {key(change)} to patch")
    # Kustomize knows the lists of built-in kinds alone; those of others are replaced.
    by_key = change["apiVersion"] in _BUILT_IN
    return [_merged(one, change, by_key) if key(one) == key(change) else one for one in resources]


def _merged(old: Any, new: Any, by_key: bool) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    result = dict(old)
    for name, value in new.items():
        if value is None:
            result.pop(name, None)
        elif by_key and isinstance(value, list) and name in _MERGE_KEYS:
            result[name] = _merged_lists(result.get(name, []), value, _MERGE_KEYS[name])
        else:
            result[name] = _merged(result.get(name), value, by_key)
    return result


def _merged_lists(old: list[Resource], new: list[Resource], by: str) -> list[Resource]:
    merged = {item[by]: item for item in old}
    for item in new:
        merged[item[by]] = _merged(merged.get(item[by], {}), item, True)
    return list(merged.values())


def _set_images(resource: Resource, images: list[dict[str, str]]) -> None:
    new = {image["name"]: f"{image['newName']}:{image['newTag']}" for image in images}
    pod = resource.get("spec", {}).get("template", {}).get("spec", {})
    for container in (*pod.get("containers", ()), *pod.get("initContainers", ())):
        container["image"] = new.get(container["image"], container["image"])
