"""The compilation of the C: where it goes, and what is said where there can be none."""

from __future__ import annotations

import ctypes
import platform
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from sensevoice_service import native_library
from sensevoice_service.engine import choose_precision
from sensevoice_service.native_library import (
    AMX,
    AVX2,
    PLAIN,
    SOURCES,
    VNNI,
    NativeUnavailable,
    Target,
    choose_target,
    compile_ahead,
    compile_library,
    is_at_hand,
    load_library,
    main,
    path_of,
)

ROOT = Path(__file__).resolve().parents[1]
ALL_FLAGS = " ".join(sorted(AMX.cpu_flags | VNNI.cpu_flags))
AVX512 = " ".join(sorted(VNNI.cpu_flags))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources in which nothing has been compiled."""
    folder = tmp_path / "native"
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("*.so"))
    monkeypatch.setattr(native_library, "SOURCES", folder)
    return folder


def compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.so"))


@pytest.mark.parametrize(
    ("flags", "does"),
    [
        (ALL_FLAGS + " sse2 fpu", True),
        (ALL_FLAGS.replace("amx_int8", ""), False),
        (ALL_FLAGS.replace("avx512vbmi", ""), False),
        ("fp asimd asimddp", False),
    ],
)
def test_a_cpu_suits_if_it_has_all_that_is_needed(flags: str, does: bool) -> None:
    assert AMX.suits(frozenset(flags.split())) is does
    assert PLAIN.suits(frozenset(flags.split()))


@pytest.mark.parametrize(
    ("flags", "target"),
    [
        (ALL_FLAGS, AMX),
        (ALL_FLAGS.replace("amx_tile", ""), VNNI),
        (AVX512, VNNI),
        (AVX512.replace("avx512bw", ""), None),
        ("avx2 fma bmi2 avx_vnni", None),
        ("avx2 fma bmi2 avx512f", AVX2),
        ("avx2 fma bmi2", AVX2),
        ("avx2 fma", None),
        ("sse4_2 avx", None),
        ("fp asimd asimddp", None),
    ],
)
def test_c_is_for_cpus_on_which_it_is_faster(
    tmp_path: Path, flags: str, target: Target | None
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t\t: {flags}\n")
    assert choose_target("int8", cpuinfo) is target
    for precision in ("fp32", "bf16"):
        wanted = AMX.at(precision) if target is AMX else None
        assert choose_target(precision, cpuinfo) == wanted


def test_without_cpuinfo_nothing_is_taken_for_granted(tmp_path: Path) -> None:
    assert choose_target("int8", tmp_path / "none") is None


def test_it_is_compiled_once_and_found_after_that(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_library(PLAIN).sensevoice_begin() == 1
    assert libraries(sources) == [path_of(PLAIN)]
    assert path_of(PLAIN).stat().st_mode & 0o777 == 0o755
    monkeypatch.setenv("CC", compiler(sources, "exit 1"))
    assert load_library(PLAIN).sensevoice_begin() == 1


def test_what_is_compiled_ahead_is_found(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_library, "choose_target", lambda precision: PLAIN)
    compile_ahead("auto")
    assert libraries(sources) == [path_of(PLAIN)]


def test_who_asks_while_it_is_compiled_waits_for_that(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_library, "choose_target", lambda precision: PLAIN)
    calls = sources / "calls"
    monkeypatch.setenv("CC", compiler(sources, f'echo call >> "{calls}"; exec gcc "$@"'))
    with ThreadPoolExecutor(3) as callers:
        answers: list[Future[Any]] = [
            callers.submit(compile_ahead, "int8"),
            callers.submit(load_library, PLAIN),
            callers.submit(load_library, PLAIN),
        ]
    assert [answer.exception() for answer in answers] == [None] * 3
    assert calls.read_text().split() == ["call"]


@pytest.mark.parametrize(
    ("quantize", "precision"),
    [("auto", "int8"), ("int8", "int8"), ("bf16", "bf16"), ("off", "fp32")],
)
def test_what_is_compiled_ahead_is_what_a_cpu_will_serve_in(
    sources: Path, monkeypatch: pytest.MonkeyPatch, quantize: str, precision: str
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(native_library, "choose_target", asked.append)
    compile_ahead(quantize)
    assert asked == [precision]
    assert precision == choose_precision(quantize, torch.device("cpu"))


@pytest.mark.parametrize("target", [None, PLAIN], ids=["no target", "no compiler"])
def test_what_cannot_be_compiled_ahead_is_left_to_who_asks(
    sources: Path, monkeypatch: pytest.MonkeyPatch, target: Target | None
) -> None:
    monkeypatch.setattr(native_library, "choose_target", lambda precision: target)
    monkeypatch.setenv("CC", compiler(sources, "exit 1"))
    compile_ahead("auto")
    assert libraries(sources) == []


def test_other_sources_or_flags_are_another_library(sources: Path) -> None:
    before = path_of(PLAIN)
    assert len({before, path_of(AMX), path_of(PLAIN.at("fp32")), path_of(PLAIN.at("bf16"))}) == 4
    with (sources / "tiles.h").open("a") as file:
        file.write("/* more */\n")
    assert path_of(PLAIN) != before


def test_where_the_sources_cannot_be_written_beside_nothing_is_left(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_library, "is_writable", lambda folder: False)
    assert load_library(PLAIN).sensevoice_begin() == 1
    assert libraries(sources) == []


@pytest.mark.usefixtures("sources")
def test_without_a_compiler_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NativeUnavailable, match="no C compiler"):
        load_library(PLAIN)


def test_it_is_at_hand_if_it_is_compiled_or_can_be(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", compiler(sources, "exit 0"))
    assert is_at_hand(PLAIN)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not is_at_hand(PLAIN)
    path_of(PLAIN).touch()
    assert is_at_hand(PLAIN)


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = "echo 'encoder.c:1: note: here' >&2; echo 'error: unknown -mamx-int8' >&2; exit 1"
    monkeypatch.setenv("CC", compiler(sources, fails))
    with pytest.raises(NativeUnavailable, match="error: unknown -mamx-int8"):
        load_library(PLAIN)
    assert libraries(sources) == []


def test_a_compiler_that_hangs_is_given_up(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", compiler(sources, "exec sleep 60"))
    monkeypatch.setattr(native_library, "COMPILE_S", 0.2)
    with pytest.raises(NativeUnavailable, match="took more than"):
        load_library(PLAIN)
    assert libraries(sources) == []


def test_a_compiler_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, sources: Path
) -> None:
    monkeypatch.setenv("CC", str(sources / "nothing"))
    with pytest.raises(NativeUnavailable, match="nothing"):
        load_library(PLAIN)


def test_a_file_that_is_no_library_is_not_loaded(sources: Path) -> None:
    path_of(PLAIN).write_bytes(b"\x7fELF and then nothing")
    with pytest.raises(NativeUnavailable, match="cannot be loaded"):
        load_library(PLAIN)


def test_a_kernel_that_forbids_the_tile_unit_is_believed(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sources / "tiles.h"
    source.write_text(
        source.read_text().replace(
            "static inline int tiles_permitted(void) { return 1; }",
            "static inline int tiles_permitted(void) { return 0; }",
        )
    )
    with pytest.raises(NativeUnavailable, match="tile unit"):
        load_library(PLAIN)


@pytest.mark.usefixtures("sources")
def test_the_library_keeps_tiny_numbers_for_others() -> None:
    """Whole -ffast-math would bring code that switches them off for the thread that loads it."""
    compile_library(PLAIN, path_of(PLAIN))
    ctypes.CDLL(str(path_of(PLAIN)))
    tiny = 1e-310
    assert tiny / 2 > 0
    assert b"set_fast_math" not in path_of(PLAIN).read_bytes()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="it is for x86 alone")
def test_an_image_has_it_compiled_for_all_that_may_run_it(
    sources: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main() == 0
    targets = (AMX, VNNI, AVX2, AMX.at("fp32"), AMX.at("bf16"))
    paths = [path_of(target) for target in targets]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    assert libraries(sources) == sorted(paths)


def test_an_image_without_it_is_not_built(
    sources: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("CC", compiler(sources, "exit 1"))
    assert main() == 1
    assert "failed" in capsys.readouterr().err


def test_on_another_processor_there_is_nothing_to_compile(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert main() == 0
    assert "nothing to compile" in capsys.readouterr().out


def test_the_image_takes_what_its_build_compiled() -> None:
    _, build, final = (ROOT / "Dockerfile").read_text("utf-8").split("\nFROM ")
    assert "gcc libc6-dev" in build
    assert "python3 -m sensevoice_service.native_library" in build
    assert "gcc" not in final
    assert (
        "COPY --from=build /app/sensevoice_service/native ./sensevoice_service/native"
        in final.splitlines()
    )
