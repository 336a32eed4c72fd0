from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_float, c_int, c_int32, c_uint, c_void_p
from types import SimpleNamespace
from typing import Any

import pytest

from sensevoice_service import cuda_driver
from sensevoice_service.cuda_driver import CudaFunction, open_driver

CODE = b"\x7fELF\0\0code"
MODULE, FUNCTION, STREAM = 0x1234567890, 0x9876543210, 0x7F0011112222
POINTER_TYPES = (c_void_p, c_void_p)
NOT_FOUND = 500
_kept: list[bytes] = []


def load_data(module: Any, image: int) -> int:
    module[0] = MODULE
    _kept.append(ctypes.string_at(image, len(CODE)))
    return 0


def get_function(function: Any, module: int, name: bytes) -> int:
    if module != MODULE or name != b"add":
        return NOT_FOUND
    function[0] = FUNCTION
    return 0


def error_string(status: int, words: Any) -> int:
    assert status == NOT_FOUND
    words[0] = b"named symbol not found"
    return 0


class Library:
    """Stands for ``libcuda``: C functions, called through the same types as its own."""

    def __init__(self) -> None:
        self.launches: list[tuple[object, ...]] = []
        places = POINTER(c_void_p)
        sizes = (c_uint,) * 7
        launching = CFUNCTYPE(c_int, c_void_p, *sizes, c_void_p, places, places)
        self.functions = SimpleNamespace(
            cuModuleLoadData=CFUNCTYPE(c_int, places, c_void_p)(load_data),
            cuModuleGetFunction=CFUNCTYPE(c_int, places, c_void_p, c_char_p)(get_function),
            cuGetErrorString=CFUNCTYPE(c_int, c_int, POINTER(c_char_p))(error_string),
            cuLaunchKernel=launching(self.launch),
        )

    def launch(self, *arguments: Any) -> int:
        function, *sizes, stream, places, extra = arguments
        types = (*POINTER_TYPES, c_int32, c_float, c_void_p, c_void_p)
        values = [ctypes.cast(places[i], POINTER(one))[0] for i, one in enumerate(types)]
        self.launches.append((function, sizes, stream, values, bool(extra)))
        return 0 if sizes[0] else NOT_FOUND


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library.functions)
    return library


def make_function(name: str = "add") -> CudaFunction:
    types = (*POINTER_TYPES, c_int32, c_float)
    return CudaFunction(open_driver(), CODE, name, types, n_threads=128, shared_bytes=4_096)


def test_a_launch_hands_over_what_the_kernel_reads(library: Library) -> None:
    function = make_function()
    assert _kept.pop() == CODE
    function.launch(44, STREAM, 0x7FFF00000010, 0x7FFF00000020, -3, 0.5)
    function.launch(1, 0, 1, 2, 3, 4.0)
    first, second = library.launches
    values = [0x7FFF00000010, 0x7FFF00000020, -3, 0.5, None, None]
    assert first == (FUNCTION, [44, 1, 1, 128, 1, 1, 4_096], STREAM, values, False)
    assert second[2:4] == (None, [1, 2, 3, 4.0, None, None])


def test_errors_are_the_drivers_words(library: Library) -> None:
    with pytest.raises(RuntimeError, match="CUDA driver: named symbol not found"):
        make_function("another")
    with pytest.raises(RuntimeError, match="CUDA driver: named symbol not found"):
        make_function().launch(0, STREAM, 1, 2, 3, 4.0)
    assert len(library.launches) == 1


def test_a_machine_without_the_driver_has_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libcuda-of-no-machine.so.1")
    with pytest.raises(OSError, match="libcuda-of-no-machine"):
        open_driver()
