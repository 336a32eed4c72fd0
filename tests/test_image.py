"""What the image is made of, and as whom it runs."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.markers import Marker
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text("utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")

# Ubuntu 24.04's, as the image has it.
IMAGE = {"python_version": "3.12", "python_full_version": "3.12.3", "sys_platform": "linux"}

_PINNED = re.compile(r"^([\w.-]+)==(\S+?)(?: *; *([^#]+?))?(?: +#.*| +\\)?$", re.MULTILINE)
_ENTRY = re.compile(r"^(\S+?==\S+) \\\n((?:    --hash=.*\n)+)", re.MULTILINE)


def pins(text: str) -> dict[str, str]:
    return {
        canonicalize_name(name): version
        for name, version, marker in _PINNED.findall(text)
        if not marker or Marker(marker).evaluate(IMAGE)
    }


def test_it_has_what_the_requirements_ask_for() -> None:
    asked = pins((ROOT / "requirements.txt").read_text("utf-8"))
    locked = pins(LOCK)
    assert {"torch", "fastapi", "av"} <= asked.keys()
    assert {name: locked.get(name) for name in asked} == asked


def test_each_package_has_its_hashes() -> None:
    entries = _ENTRY.findall(LOCK)
    assert len(entries) == len(pins(LOCK)) == len(re.findall(r"^\w", LOCK, re.MULTILINE))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", hashes) for _, hashes in entries)


def test_it_does_not_say_where_packages_come_from() -> None:
    assert "://" not in LOCK
    assert not re.search(r"^\s*-", LOCK.replace("    --hash", ""), re.MULTILINE)


def test_the_image_is_made_of_it_alone() -> None:
    assert "requirements.txt" not in DOCKERFILE
    assert "--require-hashes" in DOCKERFILE
    assert "ubuntu24.04" in DOCKERFILE  # whose Python the lock is for
    assert "!requirements.lock" in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert "--python-version 3.12" in (ROOT / "Makefile").read_text("utf-8")


def test_the_image_s_service_is_run_by_nobody_special() -> None:
    users = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert users == ["sensevoice"]
    assert DOCKERFILE.index("USER sensevoice") < DOCKERFILE.index("CMD [")
    assert re.search(r"useradd --uid [1-9]\d+ .*--shell /usr/sbin/nologin sensevoice", DOCKERFILE)


def test_what_builds_the_sources_is_cut_out_of_it_whole() -> None:
    """As the Dockerfile's sed does."""
    (first, last) = re.findall(r"sed -n '/(\S+)/,/(.+?)/p'", DOCKERFILE)[0]
    lines = LOCK.splitlines()
    start = next(n for n, line in enumerate(lines) if re.search(first, line))
    end = next(n for n, line in enumerate(lines) if n > start and re.search(last, line))
    assert list(pins("\n".join(lines[start : end + 1]) + "\n")) == ["setuptools"]
