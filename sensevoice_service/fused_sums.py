"""What a layer does between its products, on a GPU, in one kernel each.

In torch's operators the residual sums, the FSMN memory and the norms of a layer are about ten
kernels, more than its products, and each has a trip through the device's memory. Here they are two,
and each value is read once and written once. ``triton_kernels`` has the kernel, ``cuda_driver``
launches it.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sensevoice_service.cuda_driver import CudaFunction, open_driver
from sensevoice_service.encoder import (
    FsmnMemory,
    Norm,
    PaddingMask,
    PlainSums,
    SanmEncoder,
    SanmLayer,
    Sums,
)

# Shares of the largest value. Sums are in fp32, norms may be in bf16.
MOST_ERROR_OF_SUMS, MOST_ERROR_OF_NORMS = 1e-4, 1e-2
# Kernels read and write 16 bytes at once.
MULTIPLE = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Arguments:
    """The kernel's arguments, in its order.

    It writes ``sums = x + added``, plus the FSMN memory of ``value`` under ``taps (k, n)`` where it
    is compiled with one, and ``normed``, the layer norm of that with ``weight`` and ``bias (n,)``;
    all are ``(B, T, n)``. ``lengths (B,)`` is read only if it ``is_padded``, and ``value`` is the
    last third of a tensor ``(B, T, 3 * n)``.
    """

    x: Tensor
    added: Tensor
    value: Tensor
    taps: Tensor
    lengths: Tensor
    weight: Tensor
    bias: Tensor
    sums: Tensor
    normed: Tensor
    n_rows: int
    n_steps: int
    is_padded: bool
    eps: float

    def tensors(self) -> tuple[Tensor, ...]:
        read = (self.x, self.added, self.value, self.taps, self.lengths, self.weight, self.bias)
        return (*read, self.sums, self.normed)

    def numbers(self) -> tuple[int, int, int, float]:
        return self.n_rows, self.n_steps, int(self.is_padded), self.eps


N_TENSORS = 9
PARAMETER_TYPES = (*(ctypes.c_void_p,) * N_TENSORS, *(ctypes.c_int32,) * 3, ctypes.c_float)
Launch = Callable[[Arguments], None]


class FusedSums:
    """``Sums`` of one encoder, but for its first layer, which is narrower behind than ahead.

    ``launch`` runs the kernel without a convolution and ``launch_memory`` the one with it.
    """

    def __init__(self, taps: Mapping[nn.Module, Tensor], launch: Launch, launch_memory: Launch):
        self._taps = taps
        self._launch = launch
        self._launch_memory = launch_memory
        self._plain = PlainSums()

    def add_norm(self, x: Tensor, added: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        return _run(self._launch, x, added, added, norm.weight, norm, PaddingMask())

    def add_memory_norm(
        self, x: Tensor, added: Tensor, memory: FsmnMemory, norm: Norm
    ) -> tuple[Tensor, Tensor]:
        if x.shape != added.shape:
            return self._plain.add_memory_norm(x, added, memory, norm)
        taps = self._taps[memory.convolution]
        return _run(self._launch_memory, x, added, memory.value, taps, norm, memory.mask)


def _run(
    launch: Launch,
    x: Tensor,
    added: Tensor,
    value: Tensor,
    taps: Tensor,
    norm: Norm,
    mask: PaddingMask,
) -> tuple[Tensor, Tensor]:
    x, added = x.contiguous(), added.contiguous()  # as they are anyhow
    sums, normed = torch.empty_like(x), torch.empty_like(x, dtype=norm.out_dtype)
    batch, n_steps, _ = x.shape
    is_padded = mask.n_frames is not None
    lengths = norm.weight if mask.n_frames is None else mask.n_frames
    arguments = Arguments(
        x=x,
        added=added,
        value=value,
        taps=taps,
        lengths=lengths,
        weight=norm.weight,
        bias=norm.bias,
        sums=sums,
        normed=normed,
        n_rows=batch * n_steps,
        n_steps=n_steps,
        is_padded=is_padded,
        eps=norm.eps,
    )
    launch(arguments)
    return sums, normed


def choose_sums(encoder: SanmEncoder, device: torch.device) -> Sums:
    """Fused ones for a GPU, if they can be had there and agree with the plain ones."""
    try:
        sums = FusedSums(taps_of(encoder), *compile_for(encoder, device))
        require_close_sums(sums, encoder)
    except Exception as error:  # Triton, its assembler and the driver have errors of all kinds
        _log.warning("no fused kernels, so the GPU runs slower: %s", error)
        return PlainSums()
    return sums


def taps_of(encoder: SanmEncoder) -> dict[nn.Module, Tensor]:
    """The weights of every convolution as rows, ``(k, n)``."""
    blocks = (layer.self_attn.fsmn_block for layer in layers_of(encoder))
    return {block: block.weight.detach()[:, 0].t().contiguous() for block in blocks}


def layers_of(encoder: SanmEncoder) -> list[SanmLayer]:
    return [module for module in encoder.modules() if isinstance(module, SanmLayer)]


def compile_for(encoder: SanmEncoder, device: torch.device) -> tuple[Launch, Launch]:
    """The kernels without a convolution and with it. Raises what Triton and the driver do."""
    weight = layers_of(encoder)[0].self_attn.fsmn_block.weight
    n, _, n_taps = weight.shape
    if n % MULTIPLE:
        raise ValueError(f"a width of {n} is not a multiple of {MULTIPLE}")
    without, with_memory = (launcher(n, taps, weight.dtype, device) for taps in (0, n_taps))
    return without, with_memory


def launcher(n: int, n_taps: int, product_dtype: torch.dtype, device: torch.device) -> Launch:
    from sensevoice_service.triton_kernels import ROWS_A_BLOCK, KernelShape, compile_kernel

    shape = KernelShape(n, n_taps, product_dtype)
    kernel = compile_kernel(shape, torch.cuda.get_device_capability(device))
    with torch.cuda.device(device):
        function = CudaFunction(
            open_driver(),
            kernel.code,
            kernel.name,
            PARAMETER_TYPES,
            n_threads=kernel.n_threads,
            shared_bytes=kernel.shared_bytes,
        )

    def launch(arguments: Arguments) -> None:
        pointers = (tensor.data_ptr() for tensor in arguments.tensors())
        n_blocks = -(-arguments.n_rows // ROWS_A_BLOCK)
        with torch.cuda.device(device):
            stream = torch.cuda.current_stream(device).cuda_stream
            function.launch(n_blocks, stream, *pointers, *arguments.numbers())

    return launch


@torch.inference_mode()
def require_close_sums(sums: Sums, encoder: SanmEncoder) -> None:
    """Raises ``ValueError`` unless random frames of a layer get what plain sums give in fp32."""
    layer = layers_of(encoder)[-1]
    norm, convolution = layer.norm2, layer.self_attn.fsmn_block
    exact, plain = deepcopy(convolution).float(), PlainSums()
    n, dtype, device = len(norm.weight), convolution.weight.dtype, norm.weight.device
    lengths = torch.tensor([37, 1, 20], device=device)
    generator = torch.Generator(device).manual_seed(0)
    x, *products = torch.randn(5, 3, 37, n, generator=generator, device=device)
    added = products[0].to(dtype)
    value = torch.cat(products[1:], dim=-1).to(dtype)[..., 2 * n :]
    for mask in (PaddingMask(), PaddingMask.of(lengths, 37, torch.float32)):
        found = sums.add_memory_norm(x, added, FsmnMemory(value, convolution, mask), norm)
        memory = FsmnMemory(value.float(), exact, mask)
        _require_close(found, plain.add_memory_norm(x, added.float(), memory, norm))
    _require_close(sums.add_norm(x, added, norm), plain.add_norm(x, added.float(), norm))


def _require_close(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    """Sums and norms."""
    limits = (MOST_ERROR_OF_SUMS, MOST_ERROR_OF_NORMS)
    for ours, theirs, most in zip(found, wanted, limits, strict=True):
        error = float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())
        if not error <= most:
            raise ValueError(f"they are off by {error:.2g} of the largest value")
