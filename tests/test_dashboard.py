"""What documents and dashboards say of the metrics, held against a scrape."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from sensevoice_service.metrics import EndedRequest
from tests.http_service import house
from tests.scrapes import Scrape, parse

ROOT = Path(__file__).resolve().parents[1]
# Prometheus adds them to all that it scrapes.
TARGET_LABELS = {"job", "instance"}


def full_scrape() -> Scrape:
    """Of a service on a GPU with a request behind it."""
    place = house()
    reading = {"used_bytes": 3, "total_bytes": 4, "process_bytes": 2}
    place.state.gpu = {**reading, "devices": {"cuda:0": reading}}
    place.metrics.request_ended(EndedRequest("/transcribe", 200, "ok", 2.0, {}))
    return parse(*place.metrics.exposition(""))


@pytest.mark.parametrize("page", ["README.md", "README_zh.md"])
def test_each_metric_is_in_the_readme(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    listed = re.findall(r"`(sensevoice_\w+)`", text)
    assert sorted(listed) == sorted(own_names(full_scrape()))


def own_names(found: Scrape) -> list[str]:
    """Of the metrics as they are asked for: the text format writes ``_total`` and ``_info`` out."""
    names = [family.name + "_total" * (family.type == "counter") for family in found.families]
    return [
        name for name in names if name.startswith("sensevoice_") and not name.endswith("_created")
    ]


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    text = (ROOT / "deploy" / "grafana" / "dashboard.json").read_text("utf-8")
    return dict(json.loads(text))


def queries(dashboard: dict[str, Any]) -> list[str]:
    panels = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    variables = [
        one["query"]["query"] for one in dashboard["templating"]["list"] if one["type"] == "query"
    ]
    return panels + variables


def test_the_dashboard_asks_for_what_is_exposed(dashboard: dict[str, Any]) -> None:
    asked = {
        name
        for query in queries(dashboard)
        for name in re.findall(r"\b(?:sensevoice|process)_\w+", query)
    }
    assert len(asked) > 30
    assert asked - full_scrape().sample_names == set()


def test_the_dashboard_shows_all_that_is_exposed(dashboard: dict[str, Any]) -> None:
    text = " ".join(queries(dashboard))
    assert [name for name in own_names(full_scrape()) if name not in text] == []


def test_the_dashboard_knows_the_labels(dashboard: dict[str, Any]) -> None:
    legends = [
        target["legendFormat"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]
    text = "\n".join(queries(dashboard))
    named = set(re.findall(r"(\w+)=~?\"", text)) | set(re.findall(r"{{(\w+)}}", " ".join(legends)))
    for group in re.findall(r"\bby \(([^)]*)\)", text):
        named |= set(group.split(", "))
    assert named - TARGET_LABELS - full_scrape().label_names == set()


def test_the_dashboard_can_be_imported(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert dashboard["id"] is None  # an id of its own would be that of another's dashboard
    assert variables["datasource"]["type"] == "datasource"
    assert len({panel["id"] for panel in panels}) == len(panels)
    sources = {one["datasource"]["uid"] for one in _with_a_datasource(dashboard)}
    assert sources == {"${datasource}"}
    for query in queries(dashboard):
        assert [query.count(sign) for sign in "({["] == [query.count(sign) for sign in ")}]"]
        assert set(re.findall(r"\$(\w+)", query)) <= {*variables, "__rate_interval"}


def _with_a_datasource(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "datasource" in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _with_a_datasource(child)


def test_no_panel_lies_on_another(dashboard: dict[str, Any]) -> None:
    for one, other in combinations([panel["gridPos"] for panel in dashboard["panels"]], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above
        assert one["x"] + one["w"] <= 24


def test_the_example_scrapes_the_path_that_is_served() -> None:
    text = (ROOT / "deploy" / "prometheus.yml").read_text("utf-8")
    (job,) = yaml.safe_load(text)["scrape_configs"]
    assert job["metrics_path"] in house().app().openapi()["paths"]
    assert job["static_configs"][0]["targets"] == ["localhost:8000"]
