"""The page in a real browser, with the demo model behind it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import srt  # type: ignore[import-untyped]
from selenium.webdriver.common.keys import Keys

from api import create_app
from config import load_settings
from tests.audio_files import pcm16, voice, wav
from tests.browser import HELLO, PATIENCE_S, REFUSED, ROOT, Browser, file_of
from tests.http_service import serving
from tests.server_process import gated_service, make_ready
from training.lexicon import WIDE

NIHAO = HELLO.with_name("nihao.wav")
WORDS = "hello world good morning".split()


@pytest.fixture(scope="module")
def service() -> Iterator[httpx.Client]:
    """The demo model on a port of its own."""
    settings = load_settings(MODEL="demo", DEVICE="cpu", INTRA_OP_THREADS=1)
    with (
        serving(create_app(settings)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client,
    ):
        pause = threading.Event()
        while client.get("/health").json()["status"] == "loading":
            pause.wait(0.1)
        yield client


@pytest.fixture
def page(browser: Browser, service: httpx.Client) -> Browser:
    browser.open(str(service.base_url))
    browser.one("#demo:not([hidden])")
    return browser


def detail_of(service: httpx.Client, path: Path) -> dict[str, Any]:
    answer = service.post(
        "/transcribe",
        files={"files": (path.name, path.read_bytes())},
        data={"timestamps": "word"},
    )
    return dict(answer.json()["details"][0])


def test_a_file_is_shown_with_its_words_and_tags(page: Browser) -> None:
    page.choose(HELLO)
    page.done()
    assert page.texts(".word") == WORDS
    assert page.text(".segment p") == " ".join(WORDS)
    assert page.text(".card h3") == "hello.wav"
    tags = [badge.get_attribute("data-tag") for badge in page.all(".card > header .badge")]
    assert tags == ["en", "NEUTRAL", "Speech"]
    assert page.complaints() == []


def test_the_waveform_is_drawn_and_knows_its_length(page: Browser) -> None:
    page.choose(HELLO)
    waveform = page.one(".waveform")
    drawn = "return arguments[0].firstElementChild?.shadowRoot.querySelectorAll('canvas').length"
    page.until(lambda: page.script(drawn, waveform))
    assert waveform.get_attribute("aria-valuemax") == "2.0"
    assert page.complaints() == []


def test_several_files_are_each_shown(page: Browser) -> None:
    page.choose(HELLO, NIHAO)
    page.done(2)
    assert page.texts(".card h3") == ["hello.wav", "nihao.wav"]
    assert page.texts(".card:last-child .word") == list("今天天气")


def positions_from_now(page: Browser) -> None:
    """Note each position of the playback, beginning with the next."""
    page.script(
        """
        const waveform = document.querySelector(".waveform");
        window.positions = [];
        new MutationObserver(() => positions.push(Number(waveform.getAttribute("aria-valuenow"))))
          .observe(waveform, { attributeFilter: ["aria-valuenow"] });
        """
    )


@pytest.mark.parametrize("how", ["click", "keys"])
def test_a_chosen_word_is_played_from_and_marked_as_it_is_spoken(
    page: Browser, service: httpx.Client, how: str
) -> None:
    start_s = detail_of(service, HELLO)["segments"][0]["words"][2]["start_s"]
    page.choose(HELLO)
    page.done()
    positions_from_now(page)
    # Each word that is marked from now on.
    page.script(
        """
        window.spoken = [];
        new MutationObserver((changes) => changes.forEach(({ target }) =>
          target.classList.contains("spoken") && spoken.push(target.textContent)))
          .observe(document.querySelector(".transcript"), { subtree: true, attributes: true });
        """
    )
    if how == "click":
        page.all(".word")[2].click()
    else:
        page.script("document.querySelector('.transcript').focus()")
        page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
        assert page.texts(".word.chosen") == ["good"]
        page.press(Keys.ENTER)
    page.until(lambda: page.script("return positions.at(-1)") == 2.0)
    assert page.script("return positions.find((at_s) => at_s > 0)") == pytest.approx(
        start_s, abs=0.06
    )
    # A busy machine may have no frame to show the last one in.
    spoken = page.script("return spoken")
    assert spoken[0] == "good"
    assert set(spoken) <= {"good", "morning"}


def test_the_keys_move_the_playback(page: Browser) -> None:
    page.choose(HELLO)
    page.done()
    page.until(lambda: page.one(".waveform").get_attribute("aria-valuemax") == "2.0")
    page.script("document.querySelector('.waveform').focus()")
    page.press(Keys.END)
    page.until(lambda: page.one(".waveform").get_attribute("aria-valuenow") == "2.0")
    page.press(Keys.HOME)
    page.until(lambda: page.one(".waveform").get_attribute("aria-valuenow") == "0.0")
    assert page.one(".waveform").get_attribute("aria-valuetext") == "0:00 of 0:02"


def test_downloads_are_what_the_service_would_have_answered(
    page: Browser, service: httpx.Client
) -> None:
    page.choose(HELLO)
    page.done()
    for form, ending in (("text", "txt"), ("srt", "srt"), ("vtt", "vtt")):
        page.one(f"[data-format={ending}]").click()
        answer = service.post(
            "/transcribe",
            files={"files": ("hello.wav", HELLO.read_bytes())},
            data={"response_format": form},
        )
        assert page.downloaded(f"hello.{ending}") == answer.text
    page.one("[data-format=srt]").click()
    (cue,) = srt.parse(page.downloaded("hello.srt"))
    assert cue.content == "hello world good morning"
    page.one("[data-format=json]").click()
    kept = json.loads(page.downloaded("hello.json"))
    assert kept.pop("model")["demo"] is True
    assert kept == detail_of(service, HELLO)


def test_the_text_is_copied(page: Browser) -> None:
    page.choose(HELLO)
    page.done()
    page.devtools("Browser.grantPermissions", permissions=["clipboardReadWrite"])
    page.one(".actions button").click()
    page.until(lambda: page.text(".actions button span") == "Copied")
    assert page.script("return navigator.clipboard.readText()") == "hello world good morning"


def test_a_text_file_is_refused_with_the_service_s_words_and_what_to_do(
    page: Browser, service: httpx.Client
) -> None:
    page.choose(ROOT / "README.md")
    page.one(".card[data-state=failed]")
    answer = service.post("/transcribe", files={"files": (ROOT / "README.md").read_bytes()})
    message = answer.json()["error"]["message"]
    assert page.text(".failure .message") == message
    assert page.text(".failure strong") == "This is not audio that can be read"
    assert "convert it to WAV" in page.text(".failure")
    assert page.all(".failure button") == []  # it would be refused again
    assert message in page.text("#alarm")
    assert page.complaints(REFUSED + "415") == []


def test_the_banner_lists_the_words_of_the_demo_model(page: Browser) -> None:
    assert page.text("#demo-title") == "The demo model answers here"
    assert page.texts("#demo-english-words li") == list(WIDE.english)
    assert page.texts("#demo-chinese-words li") == list(WIDE.chinese)


def test_the_sample_of_the_banner_is_transcribed(page: Browser) -> None:
    page.one("[data-sample='nihao.wav']").click()
    page.done()
    assert page.texts(".word") == list("今天天气")


def test_the_microphone_is_recorded_and_understood(page: Browser) -> None:
    page.one("#record").click()
    page.until(lambda: page.text("#record").strip() >= "Stop, 0:03")
    page.one("#record").click()
    page.done()
    assert page.text(".card h3") == "Recording 1.webm"
    assert "hello world" in page.text(".segment p")
    page.until(lambda: float(page.one(".waveform").get_attribute("aria-valuemax") or 0) > 2)
    # Its file knows neither its length nor where in it a time is.
    page.all(".word")[1].click()
    page.until(lambda: page.texts(".word.spoken") == ["world"])
    assert page.complaints() == []


def keep_stream(page: Browser) -> None:
    """As ``stream``, once the page has opened the microphone."""
    page.script(
        """
        const devices = navigator.mediaDevices;
        const open = devices.getUserMedia.bind(devices);
        devices.getUserMedia = async (wanted) => (window.stream = await open(wanted));
        """
    )


def is_open(page: Browser) -> bool:
    return bool(page.script("return stream.active"))


def can_record(page: Browser) -> bool:
    return page.one("#record").is_enabled() and page.text("#record").strip() == "Record"


@pytest.mark.parametrize("is_revoked", [True, False])
def test_a_recording_whose_microphone_goes_away_is_ended_and_kept(
    page: Browser, service: httpx.Client, is_revoked: bool
) -> None:
    """A browser may leave the recorder at work, or end it too."""
    keep_stream(page)
    page.one("#record").click()
    page.until(lambda: page.text("#record").strip() >= "Stop, 0:03")
    if is_revoked:
        page.devtools(
            "Browser.setPermission",
            permission={"name": "microphone"},
            setting="denied",
            origin=str(service.base_url),
        )
    else:
        page.script("stream.getTracks().forEach((track) => track.stop())")
    page.done()
    page.devtools("Browser.resetPermissions")
    assert "hello world" in page.text(".segment p")
    assert can_record(page)
    page.one("#record").click()
    page.until(lambda: page.text("#record").strip() >= "Stop, 0:01")
    page.one("#record").click()
    page.done(2)
    assert page.texts(".card h3") == ["Recording 2.webm", "Recording 1.webm"]
    assert page.complaints() == []


def test_a_microphone_that_cannot_be_recorded_is_let_go(page: Browser) -> None:
    keep_stream(page)
    page.script(
        """
        const recorder = MediaRecorder.prototype;
        const { start } = recorder;
        window.mend = () => (recorder.start = start);
        recorder.start = () => { throw new Error("it is in use"); };
        """
    )
    page.one("#record").click()
    page.until(lambda: page.one("#record-problem").is_displayed())
    assert page.text("#record-problem") == "The microphone cannot be used: it is in use"
    assert not is_open(page)
    page.until(lambda: can_record(page))
    page.script("mend()")
    page.one("#record").click()
    page.until(lambda: page.text("#record").strip() >= "Stop, 0:01")
    page.one("#record").click()
    page.done()
    assert page.complaints() == []


def test_a_slip_of_the_page_leaves_the_microphone_to_be_used_again(page: Browser) -> None:
    page.script("window.File = class { constructor() { throw new Error('a slip'); } }")
    page.one("#record").click()
    page.until(lambda: page.text("#record").strip() >= "Stop, 0:01")
    page.one("#record").click()
    page.until(lambda: can_record(page))
    page.until(lambda: any("a slip" in complaint for complaint in page.complaints()))


def test_the_bar_stands_where_the_recognition_is(browser: Browser, tmp_path: Path) -> None:
    """A chunk at a time; its text is told when the next has shown where it ends."""

    def value() -> float:
        return float(browser.script("return arguments[0].value", browser.one("progress")))

    with gated_service() as server:
        make_ready(server)
        browser.open(server.address)
        browser.choose(file_of(tmp_path, wav(pcm16(voice(60)))))
        before = 0.25  # the upload's share
        for heard in ("", "w0", "w0 w1"):
            server.tell("go")
            browser.until(lambda: value() > before)  # noqa: B023
            assert browser.text(".partial").strip() == heard
            before = value()
            assert before < 1
        server.tell("go")
        server.tell("go")
        browser.done()
        assert browser.texts(".word") == ["w0", "w1", "w2", "w3", "w4"]


def test_the_bar_never_falls_and_what_it_tells_stays(page: Browser, tmp_path: Path) -> None:
    sample, rate_hz = soundfile.read(HELLO, dtype="float32")
    long = np.concatenate([sample, np.zeros(rate_hz, np.float32)] * 40)
    page.script(
        """
        window.seen = [];
        new MutationObserver(() => {
          const bar = document.querySelector("progress");
          if (bar) seen.push([bar.value, document.querySelector(".partial").textContent]);
        }).observe(document.body, { subtree: true, childList: true, attributes: true });
        """
    )
    page.choose(file_of(tmp_path, wav(pcm16(long))))
    page.done()
    values, partials = zip(*page.script("return seen"), strict=True)
    assert all(before <= after for before, after in pairwise(values))
    whole = page.script(
        "return [...document.querySelectorAll('.segment p')].map(p => p.textContent)"
    )
    assert len(whole) == 40
    assert all(" ".join(whole).startswith(partial) for partial in partials)


def test_the_language_is_the_browser_s_until_it_is_switched(
    browser: Browser, service: httpx.Client
) -> None:
    url = str(service.base_url)
    browser.open(url, language="zh-CN")
    browser.until(lambda: browser.text("#drop-title") == "把音频或视频文件拖到这里")
    assert browser.one("html").get_attribute("lang") == "zh-CN"
    browser.choose(HELLO)
    browser.done()
    assert browser.texts(".badge.language span")[-1] == "英语"
    browser.one("#switch-language").click()
    assert browser.one("html").get_attribute("lang") == "en"
    assert browser.texts(".badge.language span")[-1] == "English"
    browser.driver.refresh()
    browser.until(lambda: browser.text("#drop-title") == "Drop audio or video files here")


def test_no_title_follows_the_pointer_over_a_transcript(page: Browser) -> None:
    page.choose(HELLO)
    page.done()
    for language in ("en", "zh-CN", "en"):
        assert page.one("html").get_attribute("lang") == language
        transcript = page.one(".transcript")
        assert not transcript.get_attribute("title")
        assert ("hello.wav 的词语" in transcript.accessible_name) == (language == "zh-CN")
        page.one("#switch-language").click()


def test_colours_are_the_system_s_until_they_are_switched(page: Browser) -> None:
    def ground() -> str:
        return str(page.script("return getComputedStyle(document.documentElement).backgroundColor"))

    light = ground()
    page.prefer("dark")
    page.until(lambda: ground() != light)
    page.one("#theme").click()
    assert ground() == light
    page.driver.refresh()
    page.until(lambda: ground() == light)


def test_every_control_is_reached_by_the_tab_key_and_has_a_name(page: Browser) -> None:
    page.choose(HELLO)
    page.done()
    page.script("document.body.focus(); window.getSelection().removeAllRanges()")
    reached = []
    while True:
        page.press(Keys.TAB)
        active = page.driver.switch_to.active_element
        if active.tag_name == "body" or active in reached:
            break
        reached.append(active)
    operable = "a[href], button, input, select, summary, [role=slider], .transcript"
    shown = [
        one for one in page.all(operable) if one.is_displayed() or one.get_property("id") == "files"
    ]
    assert [one.get_attribute("outerHTML") for one in shown if one not in reached] == []
    assert [one.get_attribute("outerHTML") for one in reached if not one.accessible_name] == []


@pytest.mark.parametrize("width", [320, 390, 768])
def test_it_fits_narrow_screens(page: Browser, width: int) -> None:
    page.resize(width)
    page.choose(HELLO)
    page.done()
    overhang = page.script(
        "const { scrollWidth, clientWidth } = document.documentElement;"
        "return scrollWidth - clientWidth"
    )
    assert overhang == 0
    page.devtools("Emulation.clearDeviceMetricsOverride")
