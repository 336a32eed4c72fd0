"""The weights as the C of ``native/`` reads them: ``encoder.h`` in ctypes, and the memory."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from ctypes import c_int32, c_uint32, c_void_p
from dataclasses import dataclass
from mmap import MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from sensevoice_service.encoder import EncoderConfig
from sensevoice_service.onnx_graph import column_scales, round_columns

PANEL_COLUMNS, SUM_PADDING = 32, 64  # see tiles.h
INT8_STEP, HALF_STEP = 64, 32  # what one tile of a panel sums over
LINE_BYTES = 64
PIECE_BYTES = 32 * 2**20  # more than any layer has
LANES = 32  # channels that are added at once
HIGHEST_WEIGHT, WEIGHTS_OF_A_GROUP = 127, 8
NEVER = -1e30  # bias of logits behind the vocabulary; the C knows no infinity
Array = NDArray[Any]


class Linear(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("panels", "bias", "scales", "weight_sums")),
        *((name, c_int32) for name in ("n_in", "n_out")),
    )


class Norm(ctypes.Structure):
    _fields_ = (("scale", c_void_p), ("shift", c_void_p), ("size", c_int32))


class Block(ctypes.Structure):
    _fields_ = (
        *(("norm1", Norm), ("norm2", Norm)),
        *((name, Linear) for name in ("query_key_value", "out", "forward1", "forward2")),
        *(("taps", c_void_p), ("changes_width", c_int32)),
    )


class Network(ctypes.Structure):
    _fields_ = (
        *(("blocks", ctypes.POINTER(Block)), ("n_blocks", c_int32), ("n_main_blocks", c_int32)),
        *(("after_norm", Norm), ("last_norm", Norm), ("ctc", Linear)),
        *((name, c_int32) for name in ("size", "n_heads", "n_taps", "n_hidden")),
    )


class Cores(ctypes.Structure):
    """What the C counts in it, callers only read."""

    _fields_ = (
        *((name, c_int32) for name in ("n_each", "n_all", "n_inside")),
        ("n_calls", c_uint32),
    )


def why_not(config: EncoderConfig) -> str | None:
    """What of these dimensions the C has no room for; None where there is nothing."""
    needed = {
        "output_size": config.output_size % LANES,
        "linear_units": config.linear_units % LANES,
        "input_size": config.input_size % (LANES // 2),
        "attention_heads": config.output_size % config.attention_heads,
        "kernel_size": 1 - config.kernel_size % 2,
    }
    return next((f"{name} {getattr(config, name)}" for name, rest in needed.items() if rest), None)


def padded(weight: Array) -> Array:
    """A layer ``(n_out, n_in)`` with zeros up to whole panels and steps."""
    missing = [
        -n % whole for n, whole in zip(weight.shape, (PANEL_COLUMNS, SUM_PADDING), strict=True)
    ]
    return np.pad(weight, [(0, n) for n in missing]) if any(missing) else weight


def quantize_bounded(
    weight: Array, highest_sum: int = 0
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """``(n_out, n_in)`` float to int8 of the same shape and its scales ``(n_out,)``.

    ``highest_sum``, unless it is 0, bounds what the weights of one sign come to in each group that
    is summed in 16 bits.
    """
    scales = column_scales(weight, HIGHEST_WEIGHT)
    if highest_sum:
        # Each weight of a group may be rounded up by a half.
        bound = np.float32(highest_sum - WEIGHTS_OF_A_GROUP / 2)
        scales = np.maximum(scales, sums_of_groups(weight).max(axis=1) / bound)
    return round_columns(weight, scales), scales


def sums_of_groups(weight: Array) -> Array:
    """What the weights of each sign come to, ``(n_out, groups)``: see ``tiles_avx2.h``.

    Of 16 weights along the sum, the first and the second pair of each four are a group.
    """
    signs = (np.maximum(weight, 0), np.maximum(-weight, 0))
    return np.concatenate([_sums_of_groups(one) for one in signs], axis=1)


def _sums_of_groups(weight: Array) -> Array:
    fours = weight.reshape(len(weight), -1, 4, 2, 2)
    pairs = fours[..., 0] + fours[..., 1]
    sums: Array = pairs[:, :, 0] + pairs[:, :, 1] + pairs[:, :, 2] + pairs[:, :, 3]
    return sums.reshape(len(weight), -1)


def to_panels(columns: Array, step: int) -> Array:
    """``(n_out, n_in)`` to tiles ``(panels, steps, 2, 16, 16, step / 16)``.

    A tile has ``step`` numbers of each of 16 columns, in rows of as many neighbours.
    """
    n_out, n_in = columns.shape
    tiles = columns.reshape(n_out // PANEL_COLUMNS, 2, 16, n_in // step, 16, step // 16)
    return tiles.transpose(0, 3, 1, 4, 2, 5)


def split(tiles: NDArray[np.float32], n_parts: int) -> NDArray[np.uint16]:
    """Tiles ``(..., 16, 16, 2)`` to bits of bf16 ``(..., n_parts, 16, 16, 2)``, whose sum they are.

    Each part is what those before it leave, rounded to nearest: three have all bits of a float.
    """
    rest = torch.from_numpy(tiles)
    parts = []
    for _ in range(n_parts):
        parts.append(rest.bfloat16())
        rest = rest - parts[-1].float()
    bits: NDArray[np.uint16] = torch.stack(parts, dim=-4).view(torch.uint16).numpy()
    return bits


class Memory:
    """Copies of arrays side by side, each from a line of the cache on: a row of a tile fills one.

    They share large pieces, for which Linux is asked for pages of 2 MiB. A call reads all weights
    once, and with pages of 4 KiB it may take longer to look up where they are than to read them.
    The pieces are mapped, since an allocator may give what it has already, in small pages.
    """

    def __init__(self) -> None:
        self._pieces: list[mmap] = []
        self._room = np.empty(0, np.int8)  # what is left of the last piece

    def keep(self, values: Array) -> Array:
        """The copy, which is there for as long as this is."""
        copy = self.place(values.shape, values.dtype)
        copy[...] = values
        return copy

    def place(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """For an array that is still to be made."""
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        n_taken = n_bytes + -n_bytes % LINE_BYTES
        if n_taken > len(self._room):
            self._begin_piece(max(PIECE_BYTES, n_taken))
        place, self._room = self._room[:n_bytes], self._room[n_taken:]
        return place.view(dtype).reshape(shape)

    def _begin_piece(self, n_bytes: int) -> None:
        piece = mmap(-1, n_bytes, MAP_PRIVATE | MAP_ANONYMOUS)
        with suppress(OSError):  # of a kernel without such pages
            piece.madvise(MADV_HUGEPAGE)
        self._pieces.append(piece)
        self._room = np.frombuffer(piece, np.int8)


@dataclass(frozen=True)
class Layout:
    """The library's ``sensevoice_weight_parts`` and ``sensevoice_highest_weight_sum``."""

    n_parts: int = 0
    highest_sum: int = 0


class NetworkWeights:
    """A ``Network`` and the memory that it points to; weights have the checkpoint's names.

    Layers have their places in the order in which a call reads them, and are written there by
    ``n_threads`` at once, since numpy and torch let go of the interpreter's lock.
    """

    def __init__(
        self,
        weights: Mapping[str, Array],
        config: EncoderConfig,
        layout: Layout,
        n_threads: int = 1,
    ) -> None:
        self._memory = Memory()
        with ThreadPoolExecutor(n_threads) as pool:
            writer = _Writer(weights, layout, self._memory, pool)
            self.network = writer.network(config)
            writer.wait()
        self.n_logits = int(self.network.ctc.n_out)


class _Writer:
    """Gives every array its place at once, and has the pool write the larger ones."""

    def __init__(
        self, weights: Mapping[str, Array], layout: Layout, memory: Memory, pool: Executor
    ) -> None:
        self._weights = weights
        self._layout = layout
        self._memory = memory
        self._pool = pool
        self._writing: list[Future[None]] = []

    def wait(self) -> None:
        for written in self._writing:
            written.result()

    def network(self, config: EncoderConfig) -> Network:
        names = [
            "encoder.encoders0.0",
            *(f"encoder.encoders.{index}" for index in range(config.num_blocks - 1)),
            *(f"encoder.tp_encoders.{index}" for index in range(config.tp_blocks)),
        ]
        blocks = (Block * len(names))(*(self._block(name) for name in names))
        blocks[0].changes_width = 1
        return Network(
            blocks=blocks,
            n_blocks=len(names),
            n_main_blocks=config.num_blocks,
            after_norm=self._norm("encoder.after_norm"),
            last_norm=self._norm("encoder.tp_norm"),
            ctc=self._linear("ctc.ctc_lo"),
            size=config.output_size,
            n_heads=config.attention_heads,
            n_taps=config.kernel_size,
            n_hidden=config.linear_units,
        )

    def _block(self, name: str) -> Block:
        attention, forward = f"{name}.self_attn", f"{name}.feed_forward"
        taps = self._weights[f"{attention}.fsmn_block.weight"][:, 0].copy()
        taps[:, taps.shape[1] // 2] += 1.0
        return Block(
            norm1=self._norm(f"{name}.norm1"),
            norm2=self._norm(f"{name}.norm2"),
            query_key_value=self._linear(f"{attention}.linear_q_k_v"),
            out=self._linear(f"{attention}.linear_out"),
            forward1=self._linear(f"{forward}.w_1"),
            forward2=self._linear(f"{forward}.w_2"),
            taps=self._floats(taps.T),
        )

    def _norm(self, name: str) -> Norm:
        scale, shift = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return Norm(scale=self._floats(scale), shift=self._floats(shift), size=len(scale))

    def _linear(self, name: str) -> Linear:
        weight, bias = padded(self._weights[f"{name}.weight"]), self._weights[f"{name}.bias"]
        n_out, n_in = weight.shape
        missing = n_out - len(bias)
        linear = Linear(
            bias=self._floats(np.pad(bias, (0, missing), constant_values=NEVER)),
            n_in=n_in,
            n_out=n_out,
        )
        if self._layout.n_parts:
            self._place_halves(linear, weight)
        else:
            self._place_int8(linear, weight)
        return linear

    def _place_halves(self, linear: Linear, weight: Array) -> None:
        n_parts = self._layout.n_parts
        panels = self._memory.place((n_parts, *weight.shape), np.uint16)
        linear.panels = panels.ctypes.data

        def write() -> None:
            tiles = np.ascontiguousarray(to_panels(weight, HALF_STEP))
            parts = split(tiles, n_parts)
            panels.reshape(parts.shape)[...] = parts

        self._writing.append(self._pool.submit(write))

    def _place_int8(self, linear: Linear, weight: Array) -> None:
        panels = self._memory.place(weight.shape, np.int8)
        scales, sums = (self._memory.place((len(weight),), np.float32) for _ in range(2))
        linear.panels = panels.ctypes.data
        linear.scales, linear.weight_sums = scales.ctypes.data, sums.ctypes.data

        def write() -> None:
            columns, scales[:] = quantize_bounded(weight, self._layout.highest_sum)
            sums[:] = columns.sum(axis=1, dtype=np.int32)
            tiles = to_panels(columns, INT8_STEP)
            panels.reshape(tiles.shape)[...] = tiles

        self._writing.append(self._pool.submit(write))

    def _floats(self, values: Array) -> int:
        return int(self._memory.keep(np.asarray(values, np.float32)).ctypes.data)
