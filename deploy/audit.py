"""``python -m deploy.audit [--tell]``: known weaknesses in the versions of ``requirements.lock``.

pip-audit asks PyPI for them. One that ``audit-accepted.txt`` does not name ends it with 1; with
``--tell`` it is told alone. That nobody could be asked is told too, and no failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parents[1] / "requirements.lock"
ACCEPTED = Path(__file__).with_name("audit-accepted.txt")
LONGEST_S = 600.0


@dataclass(frozen=True)
class Weakness:
    """``names`` are its id and its aliases: of PyPI, GitHub and CVE."""

    package: str
    version: str
    names: tuple[str, ...]
    fixed_in: tuple[str, ...]

    def __str__(self) -> str:
        mended = f"mended in {', '.join(self.fixed_in)}" if self.fixed_in else "not mended yet"
        return f"{self.package} {self.version}: {', '.join(self.names)}; {mended}"


@dataclass(frozen=True)
class Report:
    """``unknown`` are the packages that nothing could be learnt of, and why."""

    n_packages: int
    weaknesses: tuple[Weakness, ...]
    unknown: Mapping[str, str]


def read_report(text: str) -> Report:
    """Of pip-audit's JSON. Raises ``ValueError`` where it is none."""
    try:
        packages = json.loads(text)["dependencies"]
        return Report(
            n_packages=len(packages),
            weaknesses=tuple(found for package in packages for found in _weaknesses(package)),
            unknown={one["name"]: one["skip_reason"] for one in packages if "skip_reason" in one},
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"no report of pip-audit: {error!r}") from error


def _weaknesses(package: Mapping[str, Any]) -> Iterable[Weakness]:
    for one in package.get("vulns", ()):
        names = (one["id"], *one.get("aliases", ()))
        yield Weakness(package["name"], package["version"], names, tuple(one["fix_versions"]))


def read_accepted(text: str) -> dict[str, str]:
    """Names with their reasons. Raises ``ValueError`` where a line has no reason."""
    accepted = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, reason = line.partition(": ")
            if not reason.strip():
                raise ValueError(f"{ACCEPTED.name}: {line!r} has no reason")
            accepted[name.strip()] = reason.strip()
    return accepted


def judge(report: Report, accepted: Mapping[str, str]) -> tuple[list[Weakness], list[str]]:
    """The weaknesses that nobody accepted, and what else is to be told."""
    open_ones, told = [], []
    for weakness in report.weaknesses:
        if reasons := [accepted[name] for name in weakness.names if name in accepted]:
            told.append(f"accepted: {weakness}: {reasons[0]}")
        else:
            open_ones.append(weakness)
    named = {name for weakness in report.weaknesses for name in weakness.names}
    if not report.unknown:
        told += [f"no longer found: {name}" for name in accepted if name not in named]
    n_asked = report.n_packages - len(report.unknown)
    told.append(f"{n_asked} of {report.n_packages} packages were audited")
    if report.unknown:
        some = [f"  {name}: {reason}" for name, reason in list(report.unknown.items())[:3]]
        told += [f"WARNING: NOTHING IS KNOWN OF {len(report.unknown)} PACKAGES, such as", *some]
    return open_ones, told


def ask() -> subprocess.CompletedProcess[str]:
    command = [
        str(Path(sys.executable).with_name("pip-audit")),
        f"--requirement={LOCK}",
        "--disable-pip",
        "--require-hashes",
        "--aliases=on",
        "--format=json",
        "--progress-spinner=off",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST_S)


def main(arguments: Sequence[str]) -> int:
    accepted = read_accepted(ACCEPTED.read_text("utf-8"))
    try:
        answer = ask()
        report = read_report(answer.stdout)
    except subprocess.TimeoutExpired:
        print("WARNING: NOTHING WAS AUDITED: the database did not answer in time")
        return 0
    except ValueError:
        print(f"WARNING: NOTHING WAS AUDITED:\n{answer.stderr}")
        return 0
    open_ones, told = judge(report, accepted)
    print("\n".join(told))
    for weakness in open_ones:
        print(f"WARNING: {weakness}")
    return 1 if open_ones and "--tell" not in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
