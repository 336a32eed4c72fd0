"""``/docs`` and ``/redoc`` in a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.browser import Browser
from tests.http_service import house, serving


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    with serving(house().app()) as port:
        yield f"http://127.0.0.1:{port}"


def loaded(browser: Browser) -> list[str]:
    names = browser.script("return performance.getEntriesByType('resource').map(one => one.name)")
    return [str(name) for name in names]


def test_swagger_ui_shows_all_operations_and_asks_nobody_else(
    browser: Browser, service: str
) -> None:
    # First, since FastAPI silences warnings for all threads while it reads what routes take.
    n_operations = sum(len(methods) for methods in house().app().openapi()["paths"].values())
    browser.driver.get(f"{service}/docs")
    browser.until(lambda: len(browser.all(".opblock")) == n_operations)
    for operation in browser.all(".opblock-summary-control"):
        browser.script("arguments[0].click()", operation)
    browser.until(lambda: len(browser.all(".opblock.is-open .responses-wrapper")) == n_operations)
    names = loaded(browser)
    assert len(names) >= 4
    assert [name for name in names if not name.startswith((service, "data:"))] == []
    assert browser.complaints() == []


def test_swagger_ui_sends_requests_to_the_service_that_it_came_from(
    browser: Browser, service: str
) -> None:
    browser.driver.get(f"{service}/docs")
    operation = browser.one("[id*='health_live']")
    browser.script("arguments[0].querySelector('.opblock-summary-control').click()", operation)
    for step in (".try-out__btn", ".execute"):
        browser.script("arguments[0].click()", browser.one(f"[id*='health_live'] {step}"))
    assert browser.text(".request-url pre") == f"{service}/health/live"
    assert "200" in browser.text(".live-responses-table .response .response-col_status")
    assert browser.complaints() == []


def test_redoc_shows_all_tags_and_asks_nobody_else(browser: Browser, service: str) -> None:
    tags = [tag["name"] for tag in house().app().openapi()["tags"]]
    browser.driver.get(f"{service}/redoc")
    browser.until(lambda: len(browser.all("[data-section-id^='tag/']")) >= len(tags))
    assert browser.text("h1").startswith("SenseVoice")
    # Its styles are there: without them the menu would not stand beside the text.
    assert browser.one("[role=navigation], .menu-content").rect["width"] < 400
    names = loaded(browser)
    assert [name for name in names if not name.startswith((service, "data:", "blob:"))] == []
    assert browser.complaints() == []
