from __future__ import annotations

import ctypes
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sensevoice_service.encoder import EncoderConfig
from sensevoice_service.native_network import (
    HALF_STEP,
    INT8_STEP,
    PIECE_BYTES,
    Layout,
    Memory,
    NetworkWeights,
    quantize_bounded,
    split,
    sums_of_groups,
    to_panels,
    why_not,
)
from tests.models import Model

PUBLISHED = EncoderConfig(vocab_size=25_055)


def test_the_published_network_and_the_demo_fit(demo: Model) -> None:
    assert why_not(PUBLISHED) is None
    assert why_not(demo.engine.model.config) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("output_size", 500),
        ("linear_units", 2_000),
        ("input_size", 555),
        ("attention_heads", 3),
        ("kernel_size", 10),
    ],
)
def test_what_does_not_fit_is_named(name: str, value: int) -> None:
    assert why_not(replace(PUBLISHED, **{name: value})) == f"{name} {value}"


def test_a_panel_is_two_tiles_at_each_step_of_four_neighbours_a_column() -> None:
    columns = np.arange(64 * 128, dtype=np.int32).reshape(64, 128).astype(np.int8)
    panels = to_panels(columns, INT8_STEP)
    assert panels.shape == (2, 2, 2, 16, 16, 4)
    for column, at in ((0, 0), (17, 3), (33, 64), (63, 127)):
        panel, tile, within = column // 32, column % 32 // 16, column % 16
        step, row, neighbour = at // 64, at % 64 // 4, at % 4
        assert panels[panel, step, tile, row, within, neighbour] == columns[column, at]


def test_a_tile_of_halves_has_two_neighbours_a_column_and_its_parts_behind_it() -> None:
    weights = np.arange(64 * 128, dtype=np.float32).reshape(64, 128)
    tiles = np.ascontiguousarray(to_panels(weights, HALF_STEP))
    panels = split(tiles, 3)
    assert panels.shape == (2, 4, 2, 3, 16, 16, 2)
    for column, at in ((0, 0), (17, 3), (33, 64), (63, 127)):
        panel, tile, within = column // 32, column % 32 // 16, column % 16
        step, row, neighbour = at // 32, at % 32 // 2, at % 2
        parts = floats(panels[panel, step, tile, :, row, within, neighbour])
        assert parts.sum() == weights[column, at]


def floats(bf16: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bf16.astype(np.uint32) << 16).view(np.float32)


def test_three_parts_have_all_bits_of_a_float() -> None:
    rng = np.random.default_rng(0)
    weights = np.exp(rng.uniform(-30, 30, (8, 16, 16, 2))) * rng.choice([-1.0, 1.0], (8, 16, 16, 2))
    tiles = weights.astype(np.float32)
    parts = floats(split(tiles, 3))
    np.testing.assert_array_equal(parts.astype(np.float64).sum(axis=-4), tiles)
    (rounded,) = np.moveaxis(floats(split(tiles, 1)), -4, 0)
    assert np.all(np.abs(rounded / tiles - 1) <= 2**-8)
    np.testing.assert_array_equal(rounded, parts[:, 0])


def some_weights() -> NDArray[np.float32]:
    """Columns of each kind: like any, of one sign and height, with one that is far from all."""
    weights = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    weights[1], weights[2], weights[3, 5], weights[4] = 0.5, -2.0, 40.0, 0.0
    return weights


def test_columns_have_the_whole_range_and_a_scale_each() -> None:
    weights = some_weights()
    columns, scales = quantize_bounded(weights)
    assert np.abs(columns).max(axis=1).tolist() == [127, 127, 127, 127, 0, 127]
    assert np.all(np.abs(columns * scales[:, None] - weights) <= 0.501 * scales[:, None])


def test_a_group_is_what_avx2_sums_in_16_bits() -> None:
    """Pairs of neighbours, from four instructions that have four bytes of a column each."""
    columns = np.arange(1, 65).reshape(2, 32)
    columns[1] *= -1
    groups = [
        [first + four * 4 + pair * 2 + neighbour for four in range(4) for neighbour in range(2)]
        for first in (0, 16)
        for pair in (0, 1)
    ]
    wanted = np.array([[columns[row, group].sum() for group in groups] for row in range(2)])
    found = sums_of_groups(columns)
    assert found[0].tolist() == [*wanted[0], 0, 0, 0, 0]
    assert found[1].tolist() == [0, 0, 0, 0, *-wanted[1]]


def test_no_group_of_weights_leaves_16_bits() -> None:
    weights = some_weights()
    columns, scales = quantize_bounded(weights, highest_sum=181)
    highest = sums_of_groups(columns.astype(int)).max(axis=1)
    assert highest.max() <= 181
    assert highest[[0, 1, 2, 5]].min() > 160
    assert np.abs(columns[3]).max() == 127  # alone in its group, it may have the whole range
    assert np.all(np.abs(columns * scales[:, None] - weights) <= 0.501 * scales[:, None])


def test_copies_begin_at_lines_of_the_cache_and_keep_off_each_other() -> None:
    memory = Memory()
    sizes = [1, 15, 16, 1_000, 100_000, PIECE_BYTES // 8 - 8, 3, PIECE_BYTES // 4, 17]
    given = [np.arange(2 * n, dtype=np.float32).reshape(2, n).T for n in sizes]
    copies = [memory.keep(values) for values in given]
    for copy, values in zip(copies, given, strict=True):
        assert copy.ctypes.data % 64 == 0
        assert copy.flags.c_contiguous
        assert np.array_equal(copy, values)


def huge_pages_mode() -> str:
    """The system's, the one in brackets; empty where there are none."""
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    found = re.search(r"\[(\w+)\]", path.read_text()) if path.exists() else None
    return found[1] if found else ""


@pytest.mark.skipif(huge_pages_mode() not in ("always", "madvise"), reason="no huge pages here")
def test_most_of_a_full_piece_is_in_huge_pages() -> None:
    values = np.ones(PIECE_BYTES - 4_096, np.int8)
    for megabytes in ([30], [20, 20]):  # so that glibc has as much to give, in small pages
        freed = [b"x" * (n * 2**20) for n in megabytes]
        freed.clear()
    copy = Memory().keep(values)
    start = copy.ctypes.data
    assert huge_bytes(start, start + copy.nbytes) > PIECE_BYTES / 2


def huge_bytes(start: int, end: int) -> int:
    """In huge pages, of mappings that have some of these addresses."""
    n_bytes, is_there = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if "-" in name:
            first, last = (int(address, 16) for address in name.split("-"))
            is_there = first < end and start < last
        elif is_there and name == "AnonHugePages:":
            n_bytes += int(values[0]) * 1_024
    return n_bytes


def test_sizes_are_whole_panels_and_steps(demo: Model) -> None:
    config = demo.engine.model.config
    state = {name: value.numpy() for name, value in demo.engine.model.state_dict().items()}
    weights = NetworkWeights(state, config, Layout())
    network = weights.network
    assert network.n_blocks == config.num_blocks + config.tp_blocks
    first, second = network.blocks[0], network.blocks[1]
    assert (first.changes_width, second.changes_width) == (1, 0)
    assert first.query_key_value.n_in == 576  # 560 and a gap
    assert second.query_key_value.n_in == 192  # 160 and a gap
    assert network.ctc.n_out % 32 == 0
    assert network.ctc.n_out - config.vocab_size in range(32)
    assert weights.n_logits == network.ctc.n_out


@pytest.mark.parametrize("layout", [Layout(), Layout(highest_sum=181), Layout(n_parts=3)])
def test_threads_write_what_one_writes(demo: Model, layout: Layout) -> None:
    state = {name: value.numpy() for name, value in demo.engine.model.state_dict().items()}
    one, several = (
        NetworkWeights(state, demo.engine.model.config, layout, n_threads) for n_threads in (1, 3)
    )
    n_bytes = layout.n_parts * 2 or 1  # of a weight
    for index in range(one.network.n_blocks):
        a, b = one.network.blocks[index].forward2, several.network.blocks[index].forward2
        n_all = a.n_in * a.n_out * n_bytes
        assert ctypes.string_at(a.panels, n_all) == ctypes.string_at(b.panels, n_all)
        if not layout.n_parts:
            assert ctypes.string_at(a.scales, 4 * a.n_out) == ctypes.string_at(
                b.scales, 4 * b.n_out
            )
            assert ctypes.string_at(a.weight_sums, 4 * a.n_out) == ctypes.string_at(
                b.weight_sums, 4 * b.n_out
            )


def test_what_cannot_be_written_is_told(demo: Model) -> None:
    state = {name: value.numpy() for name, value in demo.engine.model.state_dict().items()}
    state["ctc.ctc_lo.weight"] = np.full_like(state["ctc.ctc_lo.weight"], "?", dtype=object)
    with pytest.raises(TypeError):
        NetworkWeights(state, demo.engine.model.config, Layout(), n_threads=2)


def test_scales_are_int8s_alone(demo: Model) -> None:
    state = {name: value.numpy() for name, value in demo.engine.model.state_dict().items()}
    for n_parts in (0, 1, 3):
        layer = NetworkWeights(state, demo.engine.model.config, Layout(n_parts)).network.ctc
        assert [bool(layer.scales), bool(layer.weight_sums)] == [n_parts == 0] * 2
        assert layer.panels
        assert layer.bias
