from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sensevoice_service.encoder import EncoderConfig
from sensevoice_service.native_network import NetworkWeights, aligned, to_panels, why_not
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
    panels = to_panels(columns)
    assert panels.shape == (2, 2, 2, 16, 16, 4)
    for column, at in ((0, 0), (17, 3), (33, 64), (63, 127)):
        panel, tile, within = column // 32, column % 32 // 16, column % 16
        step, row, neighbour = at // 64, at % 64 // 4, at % 4
        assert panels[panel, step, tile, row, within, neighbour] == columns[column, at]


@pytest.mark.parametrize("n", [1, 15, 16, 1_000, 100_000])
def test_memory_begins_at_a_line_of_the_cache(n: int) -> None:
    values = np.arange(2 * n, dtype=np.float32).reshape(2, n).T
    copy = aligned(values)
    assert copy.ctypes.data % 64 == 0
    assert copy.flags.c_contiguous
    assert np.array_equal(copy, values)


def test_sizes_are_whole_panels_and_steps(demo: Model) -> None:
    config = demo.engine.model.config
    state = {name: value.numpy() for name, value in demo.engine.model.state_dict().items()}
    weights = NetworkWeights(state, config)
    network = weights.network
    assert network.n_blocks == config.num_blocks + config.tp_blocks
    first, second = network.blocks[0], network.blocks[1]
    assert (first.changes_width, second.changes_width) == (1, 0)
    assert first.query_key_value.n_in == 576  # 560 and a gap
    assert second.query_key_value.n_in == 192  # 160 and a gap
    assert network.ctc.n_out % 32 == 0
    assert network.ctc.n_out - config.vocab_size in range(32)
    assert weights.n_logits == network.ctc.n_out
