from __future__ import annotations

import os
from pathlib import Path

import pytest

from sensevoice_service.cores import usable_cores


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(16)), raising=False)


def cores(root: Path, own: str, **limits: str) -> int:
    """With the files of limits, by their folders."""
    for folder, text in limits.items():
        path = root / folder.replace("__", "/")
        path.mkdir(parents=True, exist_ok=True)
        if "cpu" in path.parts:
            quota, period = text.split()
            (path / "cpu.cfs_quota_us").write_text(f"{quota}\n")
            (path / "cpu.cfs_period_us").write_text(f"{period}\n")
        else:
            (path / "cpu.max").write_text(f"{text}\n")
    process_cgroups = root / "self"
    process_cgroups.write_text(own)
    return usable_cores(root, process_cgroups)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("200000 100000", 2),
        ("250000 100000", 3),
        ("50000 100000", 1),
        ("6400000 100000", 16),
        ("max 100000", 16),
        ("max", 16),
        ("much of it", 16),
        ("200000 0", 16),
    ],
)
def test_a_container_has_the_cores_whose_time_it_has(
    tmp_path: Path, limit: str, expected: int
) -> None:
    assert cores(tmp_path, "0::/pod\n", pod=limit) == expected


def test_the_tightest_limit_from_the_group_to_the_root_counts(tmp_path: Path) -> None:
    limits = {"pod": "300000 100000", "pod__one": "max 100000"}
    assert cores(tmp_path, "0::/pod/one\n", **limits) == 3


@pytest.mark.parametrize(("limit", "expected"), [("400000 100000", 4), ("-1 100000", 16)])
def test_a_v1_limit_counts_too(tmp_path: Path, limit: str, expected: int) -> None:
    own = "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/\n"
    assert cores(tmp_path, own, cpu__docker__x=limit) == expected


def test_without_control_groups_all_cores_that_it_may_run_on_are_its_own(tmp_path: Path) -> None:
    assert usable_cores(tmp_path, tmp_path / "absent") == 16


def test_where_the_system_knows_no_affinity_all_cores_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert usable_cores(tmp_path, tmp_path / "absent") == 5
