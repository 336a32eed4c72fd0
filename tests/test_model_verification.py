from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from bench.make_model import make_model
from sensevoice_service.model_store import open_folder, verify_published
from sensevoice_service.published import PUBLISHED, Published, PublishedFile
from sensevoice_service.types import ModelError
from tests.model_folders import ignore, publish

GIVEN_OUT = os.environ.get("SENSEVOICE_PUBLISHED_FILES")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder, small=True)
    return folder


@pytest.fixture
def published(model: Path) -> Published:
    return publish(model)


def test_a_checkpoint_of_the_published_size_must_be_it(model: Path, published: Published) -> None:
    folder = open_folder(model)
    assert not verify_published(folder, report=ignore)
    wrong = replace(published, checkpoint=replace(published.checkpoint, sha256="0" * 64))
    with pytest.raises(ModelError, match=r"model\.pt .*0{64}"):
        verify_published(folder, report=ignore, published=wrong)


@pytest.mark.parametrize("part", ["bpe_model", "cmvn"])
def test_the_small_files_are_verified_too(part: str, model: Path, published: Published) -> None:
    wrong = replace(published, **{part: PublishedFile(3, "0" * 64)})
    with pytest.raises(ModelError, match=r"found \d+ bytes"):
        verify_published(open_folder(model), report=ignore, published=wrong)


def test_the_demo_does_not_claim_to_be_the_published_model(
    model: Path, published: Published
) -> None:
    demo = open_folder(model, name="demo", source="bundled")
    assert not verify_published(demo, report=ignore, published=published)


@pytest.mark.skipif(not GIVEN_OUT, reason="SENSEVOICE_PUBLISHED_FILES names no folder")
def test_the_published_files_are_those_that_upstream_gives_out() -> None:
    content = Path(str(GIVEN_OUT), "am.mvn").read_bytes()
    assert PublishedFile(len(content), hashlib.sha256(content).hexdigest()) == PUBLISHED.cmvn
