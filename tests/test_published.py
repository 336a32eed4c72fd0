from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from sensevoice_service.published import STAMP_NAME, PublishedFile, verify_files
from sensevoice_service.types import ModelError

CONTENT = b"weights"
FILE = PublishedFile(len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "model.pt"
    path.write_bytes(CONTENT)
    return path


def hashes_anew(path: Path, file: PublishedFile = FILE) -> bool:
    reports: list[str] = []
    verify_files(path.parent, {path: file}, reports.append)
    return bool(reports)


def test_another_size_is_refused_with_both_sizes(path: Path) -> None:
    path.write_bytes(b"weight")
    with pytest.raises(ModelError, match=r"model\.pt .*expected 7 bytes.*found 6 bytes"):
        hashes_anew(path)


def test_another_content_is_refused_with_both_hashes(path: Path) -> None:
    path.write_bytes(b"wEights")
    found = hashlib.sha256(b"wEights").hexdigest()
    with pytest.raises(ModelError, match=f"{FILE.sha256}; found sha256 {found}"):
        hashes_anew(path)
    assert not (path.parent / STAMP_NAME).exists()


def test_a_good_outcome_is_remembered_beside_the_files(path: Path) -> None:
    assert hashes_anew(path)
    assert (path.parent / STAMP_NAME).exists()
    assert not hashes_anew(path)


def test_a_folder_that_cannot_be_written_is_remembered_in_the_users_cache(
    path: Path, tmp_path: Path
) -> None:
    (path.parent / STAMP_NAME).mkdir()  # writing fails here, for root too
    assert hashes_anew(path)
    assert list((tmp_path / "cache" / "sensevoice-service").iterdir())
    assert not hashes_anew(path)


def test_where_nothing_can_be_written_each_start_hashes(path: Path, tmp_path: Path) -> None:
    (path.parent / STAMP_NAME).mkdir()
    (tmp_path / "cache").write_text("no folder")
    assert hashes_anew(path)
    assert hashes_anew(path)


def test_a_touched_file_is_hashed_anew(path: Path) -> None:
    hashes_anew(path)
    path.write_bytes(b"wEights")
    os.utime(path, ns=(1, 1))
    with pytest.raises(ModelError, match="sha256"):
        hashes_anew(path)


def test_a_stamp_for_another_release_does_not_count(path: Path) -> None:
    hashes_anew(path)
    with pytest.raises(ModelError, match="sha256"):
        hashes_anew(path, PublishedFile(len(CONTENT), "0" * 64))


def test_a_stamp_that_is_nonsense_does_not_count(path: Path) -> None:
    (path.parent / STAMP_NAME).write_text("nonsense")
    assert hashes_anew(path)
