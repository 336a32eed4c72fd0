"""Launches of compiled kernels by the CUDA driver's own interface, ``libcuda``.

Its functions and their arguments: "Module Management" and "Execution Control" in
https://docs.nvidia.com/cuda/cuda-driver-api/.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_uint, c_void_p
from typing import Any

LIBRARY = "libcuda.so.1"
# What a compiler adds at the end of a kernel's own parameters is scratch memory that these do not
# use; a driver reads as many as the kernel has.
N_NULLS_AT_THE_END = 4


def open_driver() -> Any:
    """Raises ``OSError`` where there is none."""
    driver = ctypes.CDLL(LIBRARY)
    driver.cuModuleLoadData.argtypes = (POINTER(c_void_p), c_char_p)
    driver.cuModuleGetFunction.argtypes = (POINTER(c_void_p), c_void_p, c_char_p)
    driver.cuGetErrorString.argtypes = (c_int, POINTER(c_char_p))
    sizes = (c_uint,) * 7  # of the grid, of a block, and of its shared memory
    pointers = (POINTER(c_void_p), POINTER(c_void_p))
    driver.cuLaunchKernel.argtypes = (c_void_p, *sizes, c_void_p, *pointers)
    return driver


class CudaFunction:
    """A kernel on the device that is the thread's current one, now and at each launch.

    ``driver`` is what ``open_driver`` gives. Raises ``RuntimeError`` with the driver's words.
    """

    def __init__(
        self,
        driver: Any,
        code: bytes,
        name: str,
        parameter_types: Sequence[type],
        n_threads: int,
        shared_bytes: int,
    ) -> None:
        self._driver = driver
        self._n_threads = n_threads
        self._shared_bytes = shared_bytes
        self._module, self._function = c_void_p(), c_void_p()
        self._require(driver.cuModuleLoadData(byref(self._module), code))
        found = driver.cuModuleGetFunction(byref(self._function), self._module, name.encode())
        self._require(found)
        types = (*parameter_types, *(c_void_p,) * N_NULLS_AT_THE_END)
        fields = [(f"parameter_{index}", one) for index, one in enumerate(types)]
        self._parameters = type("Parameters", (ctypes.Structure,), {"_fields_": fields})
        self._offsets = [getattr(self._parameters, field).offset for field, _ in fields]

    def launch(self, n_blocks: int, stream: int, *arguments: float) -> None:
        """Queue it on a stream, of which torch gives the address; those of tensors are integers."""
        parameters = self._parameters(*arguments)  # read before the driver returns
        start = ctypes.addressof(parameters)
        places = (c_void_p * len(self._offsets))(*(start + offset for offset in self._offsets))
        grid, block = (n_blocks, 1, 1), (self._n_threads, 1, 1)
        launched = self._driver.cuLaunchKernel(
            self._function, *grid, *block, self._shared_bytes, stream, places, None
        )
        self._require(launched)

    def _require(self, status: int) -> None:
        if status:
            words = c_char_p()
            self._driver.cuGetErrorString(status, byref(words))
            raise RuntimeError(f"CUDA driver: {(words.value or b'unknown error').decode()}")
