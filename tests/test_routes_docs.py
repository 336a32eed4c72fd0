from __future__ import annotations

import re
from urllib.parse import urljoin

import pytest
from starlette.testclient import TestClient

from sensevoice_service.routes.docs import ASSETS, CONTENT_SECURITY_POLICY
from tests.http_service import house

PAGES = ("/docs", "/redoc")
_LOADED = re.compile(r"(?:src|href|url)(?:=|: *)[\"']([^\"']+)[\"']")

pages = pytest.mark.parametrize("page", PAGES)


def client() -> TestClient:
    return TestClient(house().app())


@pages
def test_each_page_is_made_of_files_of_this_service(page: str) -> None:
    service = client()
    links = _LOADED.findall(service.get(page).text)
    assert "openapi.json" in links
    for link in links:
        assert link == "data:," or re.fullmatch(r"[a-z][\w./-]*", link), link
        if link != "data:,":
            assert service.get(urljoin(page, link)).status_code == 200


@pages
def test_each_page_lets_no_script_or_style_of_its_own_run_and_nothing_from_elsewhere(
    page: str,
) -> None:
    answer = client().get(page)
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert not re.search(r"https?:|\*", CONTENT_SECURITY_POLICY)
    assert not re.search(r"<style|<script>|\bon\w+=|\bstyle=", answer.text)


@pytest.mark.parametrize(
    ("name", "media_type"), [("swagger.js", "text/javascript"), ("page.css", "text/css")]
)
def test_each_file_says_what_it_is_whatever_the_system_takes_it_for(
    name: str, media_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("starlette.responses.guess_type", lambda *_: ("text/plain", None))
    answer = client().get(f"/docs/assets/{name}")
    assert answer.headers["content-type"] == f"{media_type}; charset=utf-8"


def test_nothing_is_fetched_from_the_makers_of_the_parts() -> None:
    fetched = re.compile(rb"https://[\w.]*(?:cdn|fonts|telemetry|otel)[\w./]*")
    files = [path for path in ASSETS.rglob("*") if path.suffix in {".js", ".css", ".html"}]
    assert len(files) >= 7
    assert [found for path in files for found in fetched.findall(path.read_bytes())] == []
    assert "validatorUrl: null" in (ASSETS / "swagger.js").read_text("utf-8")


def test_each_part_has_its_licence_beside_it() -> None:
    folders = sorted(path for path in ASSETS.iterdir() if path.is_dir())
    assert [folder.name for folder in folders] == ["redoc", "swagger-ui"]
    for folder in folders:
        assert (folder / "LICENSE").is_file()
        assert list(folder.glob("*.js.LICENSE.txt"))
        assert f"`{folder.name}`" in (ASSETS / "README.md").read_text("utf-8")


def test_a_file_that_the_browser_has_is_not_sent_again() -> None:
    service = client()
    first = service.get("/docs/assets/swagger-ui/swagger-ui.css")
    assert first.headers["content-type"].startswith("text/css")
    again = service.get(
        "/docs/assets/swagger-ui/swagger-ui.css", headers={"if-none-match": first.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["nothing.js", "swagger-ui", "%2e%2e/docs.py", "..%2fdocs.py"])
def test_nothing_but_the_files_of_the_folder_is_sent(path: str) -> None:
    answer = client().get(f"/docs/assets/{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_the_pages_can_be_asked_for_without_a_body() -> None:
    for path in (*PAGES, "/docs/assets/page.css"):
        assert client().head(path).status_code == 200
