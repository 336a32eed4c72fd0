"""The page before a service that obeys the test: it hears the bytes of a file as its words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from selenium.webdriver.common.keys import Keys

from sensevoice_service.types import Overloaded
from tests.browser import PATIENCE_S, REFUSED, Browser, file_of
from tests.http_service import House, house, serving


@contextlib.contextmanager
def obedient(browser: Browser, place: House) -> Iterator[str]:
    with serving(place.app()) as port:
        url = f"http://127.0.0.1:{port}/"
        browser.open(url)
        yield url


def test_options_reach_the_service(browser: Browser, tmp_path: Path) -> None:
    place = house()
    with obedient(browser, place):
        browser.one("#language [value='zh,en']").click()
        browser.one("#itn").click()
        browser.one("#hotwords").send_keys("Ada, Hangzhou")
        browser.choose(file_of(tmp_path, b"speech"))
        browser.done()
    ((name, options),) = place.pipeline.calls
    assert name == "talk.wav"
    assert (options.language, options.among) == ("auto", ("zh", "en"))
    assert (options.use_itn, options.hotwords) == (False, ("Ada", "Hangzhou"))


def test_files_and_folders_are_dropped(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "talks" / "monday"
    folder.mkdir(parents=True)
    file_of(folder, b"first", "first.wav")
    file_of(folder, b"nothing", ".hidden")
    with obedient(browser, house()):
        browser.drop(file_of(tmp_path, b"second", "second.wav"), tmp_path / "talks")
        browser.done(2)
        assert set(browser.texts(".card h3")) == {"first.wav", "second.wav"}
        assert set(browser.texts(".segment p")) == {"first", "second"}


def test_what_was_heard_and_names_of_files_are_text_and_no_markup(
    browser: Browser, tmp_path: Path
) -> None:
    with obedient(browser, house()):
        browser.choose(file_of(tmp_path, b"<img src=x> &am", "<b>talk<b>.wav"))
        browser.done()
        assert browser.text(".segment p") == "<img src=x> &am"
        assert browser.text(".card h3") == "<b>talk<b>.wav"
        assert browser.all(".card b, .card img") == []
        assert browser.complaints() == []


def test_a_busy_service_is_asked_again_when_its_visitor_wants(
    browser: Browser, tmp_path: Path
) -> None:
    place = house()
    place.pipeline.errors[b"speech"] = Overloaded("all slots are taken", retry_after_s=7)
    with obedient(browser, place):
        browser.choose(file_of(tmp_path, b"speech"))
        browser.one(".card[data-state=failed]")
        assert browser.text(".failure strong") == "The service is busy"
        assert browser.text(".failure .message") == "all slots are taken"
        assert "Try again in 7 s." in browser.text(".failure")
        place.pipeline.errors.clear()
        browser.one(".failure button").click()
        browser.done()
        assert browser.text(".segment p") == "speech"


def test_a_file_refused_for_its_options_is_sent_again_with_others(
    browser: Browser, tmp_path: Path
) -> None:
    place = house()
    with obedient(browser, place):
        browser.one("#hotwords").send_keys("x" * 51)
        browser.choose(file_of(tmp_path, b"speech"))
        browser.one(".card[data-state=failed]")
        assert "hotwords" in browser.text(".failure .message")
        browser.one("#hotwords").clear()
        browser.one("#hotwords").send_keys("Ada")
        browser.one(".failure button").click()
        browser.done()
        assert browser.complaints(REFUSED + "422") == []
    ((_, options),) = place.pipeline.calls
    assert options.hotwords == ("Ada",)


def test_a_key_is_asked_for_and_kept_for_the_tab_alone(browser: Browser, tmp_path: Path) -> None:
    with obedient(browser, house(API_KEYS="secret")):
        browser.choose(file_of(tmp_path, b"speech"))
        browser.one("#key-dialog[open]")
        browser.one("#key-input").send_keys("wrong", Keys.ENTER)
        browser.until(lambda: browser.one("#key-input").get_property("value") == "")
        browser.one("#key-dialog[open]")
        browser.one("#key-input").send_keys("secret", Keys.ENTER)
        browser.done()
        browser.driver.refresh()
        browser.choose(file_of(tmp_path, b"speech"))
        browser.done()
        assert "secret" not in browser.script("return JSON.stringify(localStorage)")
        assert browser.complaints(REFUSED + "401") == []


@pytest.mark.parametrize("slip", ["“secret”", "secret\u200b", "se cret", "schlüssel"])
def test_what_can_be_no_key_is_not_taken_for_one(
    browser: Browser, tmp_path: Path, slip: str
) -> None:
    with obedient(browser, house(API_KEYS="secret")):
        browser.choose(file_of(tmp_path, b"speech"))
        browser.one("#key-dialog[open]")
        key = browser.one("#key-input")
        key.send_keys(slip, Keys.ENTER)
        assert browser.all("#key-dialog[open]")
        assert browser.script("return arguments[0].validity.patternMismatch", key)
        assert "ASCII" in str(key.get_property("title"))
        key.clear()
        key.send_keys("  secret ", Keys.ENTER)
        browser.done()


def test_without_a_key_the_file_waits_for_one(browser: Browser, tmp_path: Path) -> None:
    with obedient(browser, house(API_KEYS="secret")):
        browser.choose(file_of(tmp_path, b"speech"))
        browser.one("#key-dialog[open]")
        browser.press(Keys.ESCAPE)
        browser.until(lambda: not browser.all("#key-dialog[open]"))
        assert browser.text(".failure strong") == "An API key is needed"
        browser.one(".failure button").click()
        browser.one("#key-dialog[open]")


def test_a_service_that_is_gone_is_said_to_be(browser: Browser, tmp_path: Path) -> None:
    with obedient(browser, house()):
        pass
    browser.choose(file_of(tmp_path, b"speech"))
    browser.one(".card[data-state=failed]")
    assert browser.text(".failure strong") == "The service cannot be reached"


def test_a_file_that_would_be_refused_for_its_size_is_not_sent(
    browser: Browser, tmp_path: Path
) -> None:
    place = house(MAX_UPLOAD_MB=1)
    with obedient(browser, place):
        browser.choose(file_of(tmp_path, bytes(2**20 + 1)))
        browser.one(".card[data-state=failed]")
        assert browser.text(".failure strong") == "The file is too large"
        assert "1 MiB" in browser.text(".failure .message")
        assert browser.complaints() == []  # the browser would tell of a refusal


def test_a_file_that_is_removed_is_no_longer_worked_on(browser: Browser, tmp_path: Path) -> None:
    place = house()
    waiting = [file_of(tmp_path, b"wait", f"{number}.wav") for number in range(4)]
    with obedient(browser, place):
        browser.choose(*waiting)
        assert place.pipeline.has_started.wait(PATIENCE_S)
        for _ in waiting:
            browser.one(".card header button").click()
        assert place.pipeline.was_cancelled.wait(PATIENCE_S)
        assert browser.all(".card") == []
        browser.choose(file_of(tmp_path, b"speech"))
        browser.done()


def test_it_works_below_a_prefix(browser: Browser, tmp_path: Path) -> None:
    proxy = FastAPI()
    proxy.mount("/speech", house().app())
    with serving(proxy) as port:
        browser.open(f"http://127.0.0.1:{port}/speech/")
        browser.choose(file_of(tmp_path, b"speech"))
        browser.done()
        assert browser.text(".segment p") == "speech"
        assert browser.text("#model") == "tiny · cpu · fp32"
        assert browser.complaints() == []
