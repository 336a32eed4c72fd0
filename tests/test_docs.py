from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from config import Settings
from sensevoice_service.routes import errors
from sensevoice_service.routes.schemas import (
    ErrorAnswer,
    FileDetail,
    TranscribeAnswer,
    TranscribeForm,
)
from sensevoice_service.types import ServiceError

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README_zh.md")
PAGES = [
    *READMES,
    "CHANGELOG.md",
    "SECURITY.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))),
]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#+) ", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")

readme = pytest.mark.parametrize("page", READMES)


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def prose_of(page: str) -> str:
    return _BLOCK.sub("", text_of(page))


def blocks(page: str) -> list[tuple[str, str]]:
    return _BLOCK.findall(text_of(page))


def rows(page: str, pattern: str) -> list[tuple[str, str]]:
    """The first two columns of the table rows whose columns match the pattern."""
    return re.findall(rf"^\| {pattern} \|", prose_of(page), re.MULTILINE)


def leads_somewhere(page: Path, link: str) -> bool:
    """Headings are named as GitHub does it."""
    name, _, heading = link.partition("#")
    target = page.parent / name if name else page
    if not heading:
        return target.exists()
    headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
    return heading in {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}


def as_environment(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def service_errors(base: type[ServiceError] = ServiceError) -> set[type[ServiceError]]:
    """The service's own family; tests may have made relatives."""
    own = {base} if base.__module__.startswith("sensevoice_service.") else set()
    return own.union(*(service_errors(child) for child in base.__subclasses__()))


@readme
def test_each_setting_is_in_the_table_with_its_default(page: str) -> None:
    expected = [
        (name, as_environment(field.default)) for name, field in Settings.model_fields.items()
    ]
    assert rows(page, r"`([A-Z_]+)` \| (?:`([^`]+)`|[^`|]+)") == expected


@readme
def test_each_field_of_the_form_is_in_the_table_in_order(page: str) -> None:
    names = [name for name, _ in rows(page, r"`([a-z_]+)` \| (`?[^|`]+`?)")]
    assert names[: len(TranscribeForm.model_fields)] == list(TranscribeForm.model_fields)


@readme
def test_each_field_of_a_file_s_answer_is_explained(page: str) -> None:
    cells = re.findall(r"^\| (`[a-z].*?) \|", prose_of(page), re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`([a-z_]+)`", cell)}
    assert named >= set(FileDetail.model_fields)


@readme
def test_each_error_is_in_the_table_with_its_status(page: str) -> None:
    listed = {(int(status), code) for status, code in rows(page, r"(\d{3}) \| `(\w+)`")}
    own = {(error.status, error.code) for error in service_errors()}
    assert (408, errors.UploadStalled.code) in own
    assert listed == own | {(404, "not_found"), (405, "method_not_allowed")}


@readme
def test_the_answers_shown_have_the_form_of_the_api(page: str) -> None:
    answer, error = (json.loads(code) for language, code in blocks(page) if language == "json")
    shown = TranscribeAnswer.model_validate(answer)
    assert shown.results == [detail.text for detail in shown.details]
    assert shown.model.demo
    ErrorAnswer.model_validate(error)


@readme
def test_python_examples_are_python(page: str) -> None:
    examples = [code for language, code in blocks(page) if language == "python"]
    assert examples
    for code in examples:
        compile(code, page, "exec")


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_project_lead_somewhere(page: str) -> None:
    links = [link for link in _LINK.findall(prose_of(page)) if "://" not in link]
    assert [link for link in links if not leads_somewhere(ROOT / page, link)] == []


@readme
def test_each_make_target_that_is_named_exists(page: str) -> None:
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)$|`make ([a-z-]+)`", text_of(page), re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    assert named
    assert {one or other for one, other in named} <= targets


def test_both_languages_have_the_same_headings() -> None:
    english, chinese = (_HEADING.findall(prose_of(page)) for page in READMES)
    assert english == chinese


def test_both_languages_show_the_same_code() -> None:
    english, chinese = (blocks(page) for page in READMES)
    assert english == chinese


def test_both_languages_have_rows_alike() -> None:
    english, chinese = (len(re.findall(r"^\|", prose_of(page), re.MULTILINE)) for page in READMES)
    assert english == chinese
