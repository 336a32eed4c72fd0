"""A real Chromium without a window, and what the page's tests do with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

PATIENCE_S = 60.0  # only a hang takes that long
ROOT = Path(__file__).resolve().parents[1]
HELLO = ROOT / "samples" / "hello.wav"
REFUSED = "Failed to load resource: the server responded with a status of "  # what a console says

T = TypeVar("T")


def file_of(folder: Path, content: bytes, name: str = "talk.wav") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def require_chromium() -> tuple[str, str]:
    """Chromium and its driver. Skips where there is none, but fails where CI is to have one."""
    found = shutil.which("chromium"), shutil.which("chromedriver")
    if not all(found):
        if os.environ.get("CI"):
            pytest.fail("chromium and chromium-driver are needed")
        pytest.skip("chromium and chromium-driver are not installed")
    return str(found[0]), str(found[1])


class Browser:
    """Its microphone hears ``HELLO``, over and over."""

    def __init__(self, downloads: Path) -> None:
        chromium, driver = require_chromium()
        self.downloads = downloads
        options = ChromeOptions()
        options.binary_location = chromium
        for argument in (
            "--headless=new",
            "--no-sandbox",  # which root may not use, as in a container
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--window-size=1280,1000",
            "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream",
            f"--use-file-for-fake-audio-capture={HELLO}",
        ):
            options.add_argument(argument)
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = Chrome(options=options, service=Service(driver))

    def open(self, url: str, language: str = "en-US") -> None:
        """As somebody who was never here, speaks that language and likes it light."""
        self.driver.get("about:blank")
        self.devtools("Browser.resetPermissions")
        self.devtools("Network.enable")
        self.devtools(
            "Storage.clearDataForOrigin", origin=url.rstrip("/"), storageTypes="local_storage"
        )
        agent = self.devtools("Browser.getVersion")["userAgent"]
        self.devtools("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)
        self.prefer("light")
        self.driver.get(url)
        self.until(lambda: self.text("h1") != "")

    def prefer(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def resize(self, width: int, height: int = 1000) -> None:
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def devtools(self, command: str, **values: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, values)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """Once it is there."""
        return self.until(lambda: self.all(selector))[0]

    def text(self, selector: str) -> str:
        return str(self.one(selector).get_property("textContent"))

    def texts(self, selector: str) -> list[str]:
        return [str(element.get_property("textContent")) for element in self.all(selector)]

    def script(self, code: str, *values: Any) -> Any:
        return self.driver.execute_script(code, *values)

    def waiting_script(self, code: str, *values: Any) -> Any:
        """One that may use ``await``."""
        return self.script(f"return (async () => {{{code}}})()", *values)

    def until(self, condition: Callable[[], T]) -> T:
        waiting = WebDriverWait(self.driver, PATIENCE_S, poll_frequency=0.05)
        return waiting.until(lambda _: condition())

    def choose(self, *paths: Path) -> None:
        """In the dialog for files; a new one's card is the first."""
        files = self.driver.find_element(By.ID, "files")
        files.send_keys("\n".join(map(str, paths)))

    def drop(self, *paths: Path) -> None:
        """From the system's files onto the middle of the page."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.devtools("Input.dispatchDragEvent", type=kind, x=640, y=500, data=data)

    def done(self, n_files: int = 1) -> None:
        self.until(lambda: len(self.all(".card[data-state=done]")) == n_files)

    def press(self, *keys: str) -> None:
        actions = ActionChains(self.driver)
        for key in keys:
            actions.send_keys(key)
        actions.perform()

    def downloaded(self, name: str) -> str:
        path = self.downloads / name
        self.until(path.exists)
        text = path.read_bytes().decode()
        path.unlink()
        return text

    def complaints(self, *expected: str) -> Sequence[str]:
        """What its console says of errors and of its policy since the last call, but for that."""
        messages = [
            str(line["message"])
            for line in self.driver.get_log("browser")  # type: ignore[no-untyped-call]
            if line["level"] in ("SEVERE", "WARNING")
        ]
        return [one for one in messages if not any(part in one for part in expected)]
