"""The kernel of ``fused_sums`` in Triton, and its compilation for a kind of GPU.

Triton's own launcher is built by a C compiler on the machine that serves, which few images have. So
a kernel is compiled ahead of its use, to a cubin, as ``triton.tools.compile`` does it: for that no
compiler is needed, and no GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

# Neighbours share what the convolution reads. With more rows or warps than these the compiler takes
# each tap through shared memory, with two barriers: their loads wait for one another.
ROWS_A_BLOCK = 2
N_WARPS, THREADS_A_WARP = 2, 32
ALIGNMENT_BYTES = 16
TYPE_NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def add_norm(
    x: tl.tensor,
    added: tl.tensor,
    value: tl.tensor,
    taps: tl.tensor,
    lengths: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    sums: tl.tensor,
    normed: tl.tensor,
    n_rows: tl.tensor,
    n_steps: tl.tensor,
    is_padded: tl.tensor,
    eps: tl.tensor,
    n: tl.constexpr,
    n_block: tl.constexpr,
    n_taps: tl.constexpr,
    value_stride: tl.constexpr,
    n_rows_a_block: tl.constexpr,
) -> None:
    """See ``fused_sums.Arguments``. Each program has some rows: frames of one utterance or two."""
    row = tl.program_id(0) * n_rows_a_block + tl.arange(0, n_rows_a_block)
    columns = tl.arange(0, n_block)
    is_row, is_column = row < n_rows, columns < n
    rows = row.to(tl.int64)
    is_inside = is_row[:, None] & is_column[None, :]
    places = rows[:, None] * n + columns[None, :]
    total = tl.load(x + places, mask=is_inside, other=0.0)
    total += tl.load(added + places, mask=is_inside, other=0.0).to(tl.float32)
    if n_taps > 0:
        step = row % n_steps
        end = tl.load(lengths + row // n_steps, mask=is_row & (is_padded != 0), other=n_steps)
        for tap in tl.static_range(n_taps):
            there = step + (tap - n_taps // 2)
            is_real = is_row & (there >= 0) & (there < end)
            near = (rows + (tap - n_taps // 2))[:, None] * value_stride + columns[None, :]
            seen = tl.load(value + near, mask=is_real[:, None] & is_column[None, :], other=0.0)
            share = tl.load(taps + tap * n + columns, mask=is_column, other=0.0)
            total += seen.to(tl.float32) * share.to(tl.float32)[None, :]
            if tap == n_taps // 2:
                total += seen.to(tl.float32)
    tl.store(sums + places, total, mask=is_inside)
    mean = tl.sum(total, axis=1)[:, None] / n
    centred = tl.where(is_column[None, :], total - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=1)[:, None] / n + eps)
    gain = tl.load(weight + columns, mask=is_column, other=0.0)[None, :]
    shift = tl.load(bias + columns, mask=is_column, other=0.0)[None, :]
    result = centred * scale * gain + shift
    tl.store(normed + places, result.to(normed.dtype.element_ty), mask=is_inside)


@dataclass(frozen=True)
class KernelShape:
    """What ``add_norm`` is compiled for: the width of a frame, and no taps for no convolution."""

    n: int
    n_taps: int
    product_dtype: torch.dtype

    def constants(self) -> dict[str, int]:
        """Values are read where they are in a product of queries, keys and values."""
        return {
            "n": self.n,
            "n_block": triton.next_power_of_2(self.n),
            "n_taps": self.n_taps,
            "value_stride": 3 * self.n,
            "n_rows_a_block": ROWS_A_BLOCK,
        }

    def signature(self) -> dict[str, str]:
        product = "*" + TYPE_NAMES[self.product_dtype]
        return {
            "x": "*fp32",
            "added": product,
            "value": product,
            "taps": product,
            "lengths": "*i64",
            "weight": "*fp32",
            "bias": "*fp32",
            "sums": "*fp32",
            "normed": product,
            "n_rows": "i32",
            "n_steps": "i32",
            "is_padded": "i32",
            "eps": "fp32",
            **dict.fromkeys(self.constants(), "constexpr"),
        }


@dataclass(frozen=True)
class Cubin:
    """A compiled kernel: its code, its name in there, and what a launch of it needs."""

    code: bytes
    name: str
    shared_bytes: int
    n_threads: int


def compile_kernel(shape: KernelShape, capability: tuple[int, int]) -> Cubin:
    """For GPUs of a compute capability such as ``(9, 0)``; raises what Triton does.

    All pointers have to be aligned to 16 bytes. Raises ``ValueError`` for a kernel that wants
    scratch memory, of which its launches give it none: the device would be broken for all.
    """
    types = shape.signature()
    pointers = [index for index, type_name in enumerate(types.values()) if type_name[0] == "*"]
    source = ASTSource(
        triton.jit(add_norm),
        signature=types,
        constexprs=shape.constants(),
        attrs={(index,): [["tt.divisibility", ALIGNMENT_BYTES]] for index in pointers},
    )
    target = GPUTarget("cuda", capability[0] * 10 + capability[1], THREADS_A_WARP)
    compiled = triton.compile(source, target=target, options={"num_warps": N_WARPS})
    if compiled.metadata.global_scratch_size or compiled.metadata.profile_scratch_size:
        raise ValueError("the kernel wants scratch memory")
    return Cubin(
        code=compiled.asm["cubin"],
        name=compiled.metadata.name,
        shared_bytes=compiled.metadata.shared,
        n_threads=N_WARPS * THREADS_A_WARP,
    )
