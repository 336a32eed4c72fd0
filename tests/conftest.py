"""Models that many tests share. Nothing heavy is imported until a test asks for one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bench.reference import FunAsr
    from tests.browser import Browser
    from tests.hostile import Victim
    from tests.models import Model
    from training.speech import Espeak

DEMO_FOLDER = Path(__file__).resolve().parents[1] / "sensevoice_service" / "demo_model"
FULL_SIZE_FOLDER = os.environ.get("SENSEVOICE_FULL_SIZE_MODEL")


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Random weights in three narrow blocks, with the vocabulary of the published model."""
    from bench.make_model import make_model
    from tests.models import load_model

    folder = tmp_path_factory.mktemp("small-model")
    make_model(folder, small=True)
    return load_model(folder)


@pytest.fixture(scope="session")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """The service as it is run, with the demo model, for clients that mean no good."""
    from tests.hostile import victim_service

    with victim_service(tmp_path_factory.mktemp("victim")) as place:
        yield place


@pytest.fixture(scope="session")
def espeak() -> Espeak:
    """The voice of the tests; only a person's own machine may lack it."""
    from training.speech import Espeak

    try:
        return Espeak()
    except OSError:
        if os.environ.get("CI"):
            raise
        pytest.skip("espeak-ng is not installed")


@pytest.fixture(scope="session")
def demo() -> Model:
    from tests.models import load_model

    return load_model(DEMO_FOLDER)


@pytest.fixture(
    scope="session", params=["small", "demo", *(["full-size"] if FULL_SIZE_FOLDER else [])]
)
def model(request: pytest.FixtureRequest) -> Model:
    """Each model that must agree with FunASR: a random one, the bundled demo, and on demand one
    of the published size."""
    from tests.models import load_model

    if request.param != "full-size":
        name = "small_model" if request.param == "small" else "demo"
        found: Model = request.getfixturevalue(name)
        return found
    assert FULL_SIZE_FOLDER
    return load_model(Path(FULL_SIZE_FOLDER), is_full_size=True)


@pytest.fixture(scope="session")
def funasr(model: Model) -> FunAsr:
    from bench.reference import FunAsr

    return FunAsr(model.folder.path)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    from tests.browser import Browser

    found = Browser(tmp_path_factory.mktemp("downloads"))
    yield found
    found.driver.quit()


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    chromium.complaints()  # those of the test before
    return chromium
