from __future__ import annotations

import html
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from sensevoice_service.routes.page import FOLDER
from sensevoice_service.subtitles import SubtitleRules
from tests.http_service import house
from tests.test_docs import service_errors
from training.lexicon import WIDE

FILES = sorted(
    str(path.relative_to(FOLDER)) for path in (FOLDER / "page").rglob("*") if path.is_file()
)
TEXT = re.compile(r'^  "([\w.,]+)":', re.MULTILINE)


@pytest.fixture
def client() -> TestClient:
    return TestClient(house().app())


def told(client: TestClient) -> Any:
    """What the page is told of the settings."""
    found = re.search(r'data-config="(.*?)"', client.get("/").text)
    assert found
    return json.loads(html.unescape(found[1]))


def source(name: str) -> str:
    return (FOLDER / "page" / "js" / name).read_text("utf-8")


def test_the_page_may_load_and_do_only_what_is_its_own(client: TestClient) -> None:
    policy = client.get("/").headers["content-security-policy"]
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert "unsafe" not in policy
    assert directives["default-src"] == directives["frame-ancestors"] == "'none'"
    assert directives["script-src"] == directives["connect-src"] == "'self'"
    assert directives["media-src"] == "'self' blob:"


def test_the_page_has_no_script_or_style_of_its_own_and_no_address_elsewhere() -> None:
    page = (FOLDER / "index.html").read_text("utf-8")
    assert re.findall(r"<style|\bstyle=|\bon\w+=|<script(?! type=\"module\" src=)", page) == []
    assert "//" not in page


@pytest.mark.parametrize("path", [name for name in FILES if not name.startswith("page/vendor")])
def test_no_file_names_an_address_elsewhere(path: str) -> None:
    addresses = re.findall(r"https?://[^\s\"')]+", (FOLDER / path).read_text("utf-8"))
    # A namespace is a name, and a comment may say where something is explained.
    assert set(addresses) <= {
        "http://www.w3.org/2000/svg",
        "https://html.spec.whatwg.org/multipage/server-sent-events.html",
    }


def test_it_is_told_the_settings_that_it_has_to_know() -> None:
    settings = {"MAX_UPLOAD_MB": 3, "SUBTITLE_LINES": 1, "SUBTITLE_MAX_SEC": 5.5, "DOCS": False}
    known = told(TestClient(house(**settings).app()))
    rules = SubtitleRules(max_lines=1, max_s=5.5)
    assert known == {
        "max_upload_bytes": 3 * 2**20,
        "subtitles": asdict(rules),
        "has_docs": False,
    }


@pytest.mark.parametrize("path", ["", *FILES])
def test_what_a_browser_has_is_not_sent_again(client: TestClient, path: str) -> None:
    first = client.get(f"/{path}")
    assert (first.status_code, first.headers["cache-control"]) == (200, "no-cache")
    again = client.get(f"/{path}", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    other = client.get(f"/{path}", headers={"if-none-match": '"other"'})
    assert other.status_code == 200


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page/js/main.js", "text/javascript; charset=utf-8"),
        ("/page/css/page.css", "text/css; charset=utf-8"),
        ("/page/icons.svg", "image/svg+xml"),
        ("/page/demo-words.json", "application/json"),
        ("/page/vendor/wavesurfer/LICENSE.txt", "text/plain; charset=utf-8"),
        ("/page/samples/hello.wav", "audio/wav"),
    ],
)
def test_each_kind_of_file_says_what_it_is(client: TestClient, path: str, media_type: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
    assert client.head(path).headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/js",
        "/page/nothing.js",
        "/page/../index.html",
        "/page/%2e%2e/index.html",
        "/page/..%2findex.html",
        "/page/js/../../../page.py",
        "/page/%2e%2e/%2e%2e/page.py",
        "/page//etc/passwd",
        "/page/%2fetc/passwd",
        "/page/js/main.js%00",
        "/page/samples/..%2fhello.wav",
        "/page/samples/pyproject.toml",
        "/page/samples/",
    ],
)
def test_there_is_nothing_beside_the_page_s_files(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_it_can_be_switched_off() -> None:
    client = TestClient(house(PAGE=False).app())
    for path in ("/", "/page/js/main.js"):
        assert client.get(path).status_code == 404
    assert client.get("/health").status_code == 200


def test_keys_are_for_the_service_and_not_for_the_page() -> None:
    client = TestClient(house(API_KEYS="secret").app())
    assert client.get("/").status_code == 200
    assert client.get("/page/js/main.js").status_code == 200
    assert client.post("/transcribe").status_code == 401


def test_the_list_of_words_is_the_demo_model_s(client: TestClient) -> None:
    listed = client.get("/page/demo-words.json").json()
    assert listed == {"en": " ".join(WIDE.english), "zh": "".join(WIDE.chinese)}


def test_both_languages_have_the_same_texts_with_the_same_values() -> None:
    english, chinese = source("texts.en.js"), source("texts.zh.js")
    assert TEXT.findall(english) == TEXT.findall(chinese)
    values = re.compile(r"\{(\w+)\}")
    assert sorted(values.findall(english)) == sorted(values.findall(chinese))


def test_each_text_is_used_and_each_that_is_used_is_there() -> None:
    known = set(TEXT.findall(source("texts.en.js")))
    modules = [
        path.read_text("utf-8")
        for path in (FOLDER / "page" / "js").glob("*.js")
        if not path.name.startswith("texts.")
    ]
    page = (FOLDER / "index.html").read_text("utf-8")
    named = set(re.findall(r'data-(?:text|label|hint)="([^"]+)"', page))
    named |= {text for code in modules for text in re.findall(r'"([a-z]+\.[\w.]+)"', code)}
    named = {name for name in named if not name.endswith((".js", ".json", ".svg"))}
    # Those of tags and of errors are looked up by what the service says.
    spoken = {name for name in known if re.match(r"(language|emotion|event|badge|error)\.", name)}
    assert named - known == set()
    assert known - spoken - named == set()


def test_the_service_s_errors_have_a_title_and_advice() -> None:
    known = set(TEXT.findall(source("texts.en.js")))
    # What only a broken client, or a broken service, meets is told in general words.
    general = {
        *("internal_error", "inference_failed", "malformed_body", "unsupported_media_type"),
        *("unsupported_format", "model_not_found"),
    }
    codes = {error.code for error in service_errors()} - general
    assert {f"error.{code}" for code in codes} <= known
    titled = {name for name in known if name.startswith("error.") and not name.endswith(".do")}
    assert {f"{name}.do" for name in titled} <= known


def test_wavesurfer_is_whole_and_has_its_licence() -> None:
    folder = FOLDER / "page" / "vendor" / "wavesurfer"
    assert {path.name for path in folder.iterdir()} == {"LICENSE.txt", "wavesurfer.esm.js"}
    assert "BSD 3-Clause" in Path(folder / "LICENSE.txt").read_text("utf-8")
    assert "sourceMappingURL" not in Path(folder / "wavesurfer.esm.js").read_text("utf-8")
