from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from deploy import audit
from deploy.audit import judge, main, read_accepted, read_report

SAFE = {"name": "h11", "version": "0.16.0", "vulns": []}
WEAK = {
    "name": "h11",
    "version": "0.14.0",
    "vulns": [
        {
            "id": "PYSEC-2025-1",
            "fix_versions": ["0.16.0"],
            "aliases": ["CVE-2025-43859", "GHSA-vqfr-h8mv-ghfj"],
            "description": "lenient line terminators",
        }
    ],
}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI"}


def report(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Any:
    def answer(text: str, errors: str = "") -> None:
        done: subprocess.CompletedProcess[str] = subprocess.CompletedProcess([], 1, text, errors)
        monkeypatch.setattr(audit, "ask", lambda: done)

    return answer


def test_a_weakness_fails_unless_it_is_only_to_be_told(
    answering: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(report(SAFE, WEAK))
    assert (main([]), main(["--tell"])) == (1, 0)
    line = (
        "WARNING: h11 0.14.0: PYSEC-2025-1, CVE-2025-43859, GHSA-vqfr-h8mv-ghfj; mended in 0.16.0"
    )
    assert capsys.readouterr().out.count(line) == 2


def test_versions_without_one_pass(answering: Any) -> None:
    answering(report(SAFE))
    assert main([]) == 0


def test_what_cannot_be_asked_is_told_and_no_failure(
    answering: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    answering("", "ConnectionError: nobody there")
    assert main([]) == 0
    assert "NOTHING WAS AUDITED:\nConnectionError: nobody there" in capsys.readouterr().out
    answering(report(SAFE, UNKNOWN))
    assert main([]) == 0
    told = capsys.readouterr().out
    assert "1 of 2 packages were audited" in told
    assert "NOTHING IS KNOWN OF 1 PACKAGES, such as\n  torch: Dependency not found" in told


@pytest.mark.parametrize("name", ["PYSEC-2025-1", "GHSA-vqfr-h8mv-ghfj"])
def test_one_is_accepted_by_any_of_its_names(name: str) -> None:
    open_ones, told = judge(read_report(report(WEAK)), {name: "we do not parse"})
    assert open_ones == []
    assert told[0].endswith("mended in 0.16.0: we do not parse")


def test_what_is_accepted_in_vain_is_told() -> None:
    _, told = judge(read_report(report(SAFE)), {"GHSA-1": "long gone"})
    assert "no longer found: GHSA-1" in told


def test_whoever_accepts_has_a_reason() -> None:
    assert read_accepted("# a comment\n\nGHSA-1: it is\n") == {"GHSA-1": "it is"}
    with pytest.raises(ValueError, match="GHSA-1"):
        read_accepted("GHSA-1:\n")


def test_the_list_of_this_project_can_be_read() -> None:
    read_accepted(audit.ACCEPTED.read_text("utf-8"))
