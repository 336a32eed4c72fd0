"""The C of ``native/``, compiled for a kind of CPU and a precision, and loaded.

There is no compiler in most containers, so ``python -m sensevoice_service.native_library`` compiles
it ahead, where an image is built. Elsewhere it is compiled at the first start, in two seconds. A
library is named by its sources and flags, so that none is ever loaded for others.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from sensevoice_service.cpu_flags import CPUINFO, lacks_byte_products, read_cpu_flags

SOURCES = Path(__file__).parent / "native"
# Of -ffast-math what loops need to be vectorised; the whole would have every thread of the process
# that loads the library treat tiny numbers as zero.
FLAGS = (
    *("-std=gnu11", "-O3", "-shared", "-fPIC", "-pthread", "-D_GNU_SOURCE"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-ffinite-math-only"),
    *("-fassociative-math", "-freciprocal-math"),
)
COMPILE_S = 120.0
PARTS = {"bf16": 1, "fp32": 3}  # of a weight, see tiles.h; int8 has none
# Who serves in a precision where the C does not.
INSTEAD = {"int8": "onnxruntime", "fp32": "onnxruntime", "bf16": "torch"}

_at_work = threading.Lock()


class NativeUnavailable(Exception):
    """Why the native library cannot be had here."""


@dataclass(frozen=True)
class Target:
    """What to compile for; ``cpu_flags`` as in ``/proc/cpuinfo``."""

    name: str
    flags: tuple[str, ...]
    cpu_flags: frozenset[str]
    precision: str = "int8"

    def at(self, precision: str) -> Target:
        """The same CPU in bf16 or fp32, which need products of bf16."""
        switch = f"-DPARTS={PARTS[precision]}"
        return replace(self, flags=(*self.flags, switch), precision=precision)

    @property
    def without_it(self) -> str:
        """What a user is told of where the library cannot be had."""
        return f"{self.precision} runs in {INSTEAD[self.precision]}, more slowly"

    def suits(self, cpu_flags: frozenset[str]) -> bool:
        """Whether a CPU of these flags has all that is needed."""
        return self.cpu_flags <= cpu_flags


def _switches(*names: str) -> tuple[str, ...]:
    return tuple(f"-m{name}" for name in names)


_AVX2 = ("avx2", "fma", "bmi2")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl")
_WIDE = "-mprefer-vector-width=512"

PLAIN = Target("any CPU", (), frozenset())  # slowly: what the tests compare with
AVX2 = Target("AVX2", _switches(*_AVX2), frozenset(_AVX2))
VNNI = Target(
    "AVX-512 VNNI",
    (*_switches(*_AVX512, "avx512vnni"), _WIDE),
    frozenset((*_AVX512, "avx512_vnni")),
)
AMX = Target(
    "AMX",
    (
        *_switches(*_AVX512, "avx512vbmi", "amx-tile", "amx-int8", "amx-bf16"),
        *("-mtune=sapphirerapids", _WIDE),
    ),
    frozenset((*_AVX512, "avx512vbmi", "amx_tile", "amx_int8", "amx_bf16")),
)
TARGETS = (AMX, VNNI, AVX2, AMX.at("fp32"), AMX.at("bf16"))  # the fastest of a precision first


def choose_target(precision: str, cpuinfo: Path = CPUINFO) -> Target | None:
    """What is faster than ``INSTEAD``, if anything is.

    None on ARM, on x86 with VNNI and without AVX-512, and but for int8 without AMX.
    """
    flags = read_cpu_flags(cpuinfo)
    suitable = (one for one in TARGETS if one.precision == precision and one.suits(flags))
    found = next(suitable, None)
    return found if found is not AVX2 or lacks_byte_products(flags) else None


def load_library(target: Target) -> ctypes.CDLL:
    """Compile it unless that has been done, and load it. Raises ``NativeUnavailable``.

    A second caller waits for the first, and finds what that has compiled.
    """
    with _at_work:
        return _load(target, path_of(target))


def compile_ahead(quantize: str) -> None:
    """What ``load_library`` will be asked for on a CPU with this QUANTIZE, if it is.

    Whoever asks is told of what fails.
    """
    precision = {"auto": "int8", "off": "fp32"}.get(quantize, quantize)
    target = choose_target(precision)
    if target is not None and is_writable(SOURCES):
        with suppress(NativeUnavailable):
            load_library(target)


def _load(target: Target, path: Path) -> ctypes.CDLL:
    try:
        if path.exists():
            return _checked(ctypes.CDLL(str(path)))
        if is_writable(SOURCES):
            compile_library(target, path)
            return _checked(ctypes.CDLL(str(path)))
        with tempfile.TemporaryDirectory(prefix="sensevoice-") as folder:
            compile_library(target, Path(folder) / path.name)
            return _checked(ctypes.CDLL(str(Path(folder) / path.name)))
    except OSError as error:
        raise NativeUnavailable(f"the native encoder cannot be loaded: {error}") from error


def path_of(target: Target) -> Path:
    """Where the library of these sources and flags is kept."""
    digest = hashlib.sha256(" ".join((*FLAGS, *target.flags)).encode())
    for source in sorted(SOURCES.glob("*.[ch]")):
        digest.update(source.read_bytes())
    return SOURCES / f"encoder-{digest.hexdigest()[:16]}.so"


def is_at_hand(target: Target) -> bool:
    """Whether a start finds the library, or something to compile it with."""
    return path_of(target).exists() or find_compiler() is not None


def find_compiler() -> str | None:
    return os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")


def is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK)


def compile_library(target: Target, path: Path) -> None:
    """Write the library at once whole. Raises ``NativeUnavailable`` and ``OSError``."""
    compiler = find_compiler()
    if compiler is None:
        raise NativeUnavailable("there is no C compiler (cc) for the native encoder")
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".so", delete=False) as unfinished:
        sources = [str(source) for source in sorted(SOURCES.glob("*.c"))]
        command = [*compiler.split(), *FLAGS, *target.flags, *sources]
        command += ["-o", unfinished.name, "-lm"]
    try:
        _run(command)
        os.chmod(unfinished.name, 0o755)  # an image is built by root, and served by another
        _onto_the_disk(Path(unfinished.name))
        os.replace(unfinished.name, path)
    finally:
        Path(unfinished.name).unlink(missing_ok=True)


def _onto_the_disk(path: Path) -> None:
    """Or a loss of power may leave a name without all of its content, which ends who loads it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMPILE_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NativeUnavailable(f"{command[0]} took more than {COMPILE_S:.0f} s") from error
    if done.returncode:
        complaint = next((line for line in done.stderr.splitlines() if "error" in line), "no word")
        raise NativeUnavailable(f"{command[0]} failed on the native encoder: {complaint}")


def _checked(library: ctypes.CDLL) -> ctypes.CDLL:
    if not library.sensevoice_begin():
        raise NativeUnavailable("the kernel does not let this process use the CPU's tile unit")
    return library


def main() -> int:
    if platform.machine() != "x86_64":
        print("nothing to compile: it is for x86 alone")
        return 0
    for target in TARGETS:
        path = path_of(target)
        try:
            compile_library(target, path)
        except (NativeUnavailable, OSError) as error:
            print(error, file=sys.stderr)
            return 1
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
