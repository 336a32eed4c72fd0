from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text("utf-8")

_NAMED = re.compile(r"`(test_\w+\.py)::(\w+)`")
_TEST = re.compile(r"^(?:async )?def (test_\w+)", re.MULTILINE)


def defined_in(path: Path) -> set[str]:
    return set(_TEST.findall(path.read_text("utf-8")))


def test_each_test_that_is_named_exists() -> None:
    named = _NAMED.findall(PAGE)
    assert named
    assert [
        (file, name) for file, name in named if name not in defined_in(ROOT / "tests" / file)
    ] == []


def test_each_kind_of_hostile_request_names_its_test() -> None:
    (section,) = re.findall(r"^## Hostile input$(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    items = re.split(r"^\d+\. ", section, flags=re.MULTILINE)[1:]
    assert len(items) == 26
    assert all(_NAMED.search(item) for item in items)
