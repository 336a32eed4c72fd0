from __future__ import annotations

from ctypes import c_float, c_int32, c_void_p
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from sensevoice_service.fused_sums import PARAMETER_TYPES, Arguments

triton_kernels = pytest.importorskip("sensevoice_service.triton_kernels", reason="needs Triton")
FULL_WIDTH, N_TAPS = 512, 11


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize("product_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("n_taps", [0, N_TAPS])
def test_it_compiles_for_gpus_that_are_not_here(
    capability: tuple[int, int], product_dtype: torch.dtype, n_taps: int
) -> None:
    shape = triton_kernels.KernelShape(FULL_WIDTH, n_taps, product_dtype)
    kernel = triton_kernels.compile_kernel(shape, capability)
    assert kernel.code.startswith(b"\x7fELF")
    assert f".text.{kernel.name}\0".encode() in kernel.code
    assert kernel.n_threads == 64
    assert kernel.shared_bytes < 48 * 1_024  # more would have to be asked for


def test_what_is_launched_is_what_is_compiled() -> None:
    signature = triton_kernels.KernelShape(FULL_WIDTH, N_TAPS, torch.bfloat16).signature()
    given = {name: kind for name, kind in signature.items() if kind != "constexpr"}
    assert list(given) == [field.name for field in fields(Arguments)]
    types = {"*": c_void_p, "i": c_int32, "f": c_float}
    assert tuple(types[kind[0]] for kind in given.values()) == PARAMETER_TYPES
