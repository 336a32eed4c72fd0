"""What a scrape says, read by prometheus_client's own parsers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Scrape:
    families: tuple[Metric, ...]

    @property
    def values(self) -> dict[tuple[str, Labels], float]:
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families
            for sample in family.samples
        }

    @property
    def sample_names(self) -> set[str]:
        return {name for name, _ in self.values}

    @property
    def label_names(self) -> set[str]:
        return {label for _, labels in self.values for label, _ in labels}

    def value(self, name: str, /, **labels: str) -> float:
        return self.values[name, tuple(sorted(labels.items()))]

    def series(self, name: str) -> dict[Labels, float]:
        return {labels: value for (found, labels), value in self.values.items() if found == name}


def parse(body: bytes, media_type: str) -> Scrape:
    is_openmetrics = media_type.startswith("application/openmetrics-text")
    read = parse_openmetrics if is_openmetrics else parse_text
    families: Iterable[Metric] = read(body.decode())
    return Scrape(tuple(families))
