from __future__ import annotations

import gc
from pathlib import Path

import psutil
import pytest

from sensevoice_service.memory import MemoryGauge, MemoryReading, keep_all, read_memory


def v2_group(folder: Path, limit: str, used: int, inactive_file: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {inactive_file}\nslab 3\n")


def v1_group(folder: Path, limit: int, used: int, inactive_file: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"inactive_file 9\ntotal_inactive_file {inactive_file}\n")


def read(root: Path, own: str) -> tuple[int, int]:
    """Used and total bytes of a process whose /proc/self/cgroup says ``own``."""
    process_cgroups = root / "self"
    process_cgroups.write_text(own)
    reading = read_memory(root, process_cgroups)
    return reading.used_bytes, reading.total_bytes


def test_a_v2_limit_counts_without_the_reclaimable_cache(tmp_path: Path) -> None:
    v2_group(tmp_path, "1000", used=700, inactive_file=200)
    assert read(tmp_path, "0::/\n") == (500, 1000)


def test_the_process_s_own_group_is_found_by_its_path(tmp_path: Path) -> None:
    v2_group(tmp_path / "app.slice" / "asr.service", "400", used=300)
    assert read(tmp_path, "0::/app.slice/asr.service\n") == (300, 400)


def test_a_limit_further_up_holds_too_and_the_fullest_group_counts(tmp_path: Path) -> None:
    v2_group(tmp_path / "pod", "1000", used=950)
    v2_group(tmp_path / "pod" / "one", "500", used=100)
    assert read(tmp_path, "0::/pod/one\n") == (950, 1000)


def test_a_group_without_a_limit_is_passed_over(tmp_path: Path) -> None:
    v2_group(tmp_path / "pod", "2000", used=600)
    v2_group(tmp_path / "pod" / "one", "max", used=600)
    assert read(tmp_path, "0::/pod/one\n") == (600, 2000)


@pytest.mark.parametrize("own", ["0::/host/path/of/it\n", "0::/../../elsewhere\n"])
def test_a_path_that_is_not_mounted_falls_back_to_the_mounted_root(
    tmp_path: Path, own: str
) -> None:
    v2_group(tmp_path / "container", "1000", used=10)
    assert read(tmp_path / "container", own) == (10, 1000)


def test_a_v1_limit_is_honoured_beside_an_empty_v2_tree(tmp_path: Path) -> None:
    v1_group(tmp_path / "memory" / "docker" / "x", limit=1000, used=800, inactive_file=300)
    own = "9:name=systemd:/docker/x\n4:cpu,memory:/docker/x\n0::/\n"
    assert read(tmp_path, own) == (500, 1000)


def test_a_v1_group_without_a_limit_gives_the_host(tmp_path: Path) -> None:
    v1_group(tmp_path / "memory", limit=9223372036854771712, used=800)
    assert read(tmp_path, "4:memory:/\n")[1] == psutil.virtual_memory().total


def test_without_control_groups_the_host_is_read(tmp_path: Path) -> None:
    reading = read_memory(tmp_path, tmp_path / "absent")
    assert reading.total_bytes == psutil.virtual_memory().total
    assert 0 < reading.used_bytes < reading.total_bytes


def test_unreadable_numbers_give_the_host(tmp_path: Path) -> None:
    v2_group(tmp_path, "lots", used=700)
    assert read(tmp_path, "0::/\nnonsense\n")[1] == psutil.virtual_memory().total


def test_the_process_s_own_size_is_told(tmp_path: Path) -> None:
    rss_bytes = read_memory(tmp_path, tmp_path / "absent").process_rss_bytes
    assert 2**20 < rss_bytes < psutil.virtual_memory().total


def test_percent_is_of_the_total() -> None:
    assert MemoryReading(used_bytes=30, total_bytes=120, process_rss_bytes=1).percent == 25.0


def test_the_gauge_reads_again_only_when_its_reading_is_old() -> None:
    now_s = 100.0
    taken: list[MemoryReading] = []

    def read_next() -> MemoryReading:
        taken.append(MemoryReading(len(taken) + 1, 100, 1))
        return taken[-1]

    gauge = MemoryGauge(read_next, max_age_s=0.5, clock=lambda: now_s)
    assert gauge.percent() == 1.0
    now_s = 100.4
    assert gauge.percent() == 1.0
    now_s = 100.5
    assert gauge.percent() == 2.0
    assert gauge.reading() is taken[1]
    assert len(taken) == 2


def test_the_collector_is_spared_what_is_kept() -> None:
    kept: list[object] = []
    try:
        keep_all()
        fresh: list[object] = []
        seen = {id(thing) for thing in gc.get_objects()}
        assert id(kept) not in seen
        assert id(fresh) in seen
    finally:
        gc.unfreeze()
