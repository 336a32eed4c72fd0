"""The graph against the network in torch, on a small model of random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sensevoice_service.encoder import EncoderConfig, PaddingMask, SenseVoice
from sensevoice_service.onnx_engine import choose_int8, open_session
from sensevoice_service.onnx_graph import Int8, build_graph, quantize_columns

CONFIG = EncoderConfig(
    vocab_size=300, input_size=56, output_size=32, linear_units=48, num_blocks=3, tp_blocks=2
)


@pytest.fixture(scope="module")
def network() -> SenseVoice:
    torch.manual_seed(0)
    return SenseVoice(CONFIG).eval()


def run(
    network: SenseVoice, int8: Int8 | None, x: NDArray[np.float32]
) -> list[NDArray[np.float32]]:
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    session = open_session(build_graph(weights, CONFIG, int8), n_threads=1)
    return [np.asarray(output) for output in session.run(["ids", "hidden", "logits"], {"x": x})]


@torch.inference_mode()
def reference(network: SenseVoice, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The encoder without what comes ahead of its first block."""
    return network.encoder.blocks(torch.from_numpy(x), PaddingMask()).numpy()


def inputs(n_frames: int) -> NDArray[np.float32]:
    shape = (1, n_frames, CONFIG.input_size)
    return np.random.default_rng(n_frames).normal(0, 3, shape).astype(np.float32)


@pytest.mark.parametrize("n_frames", [5, 6, 37, 300])
def test_in_fp32_it_is_the_network(network: SenseVoice, n_frames: int) -> None:
    x = inputs(n_frames)
    wanted = reference(network, x)
    ids, hidden, found = run(network, None, x)
    np.testing.assert_allclose(hidden, wanted, atol=2e-5)
    logits = network.ctc(torch.from_numpy(wanted)).detach().numpy()
    np.testing.assert_allclose(found[..., : CONFIG.vocab_size], logits, atol=5e-5)
    assert np.all(np.isneginf(found[..., CONFIG.vocab_size :]))
    assert ids.shape == (1, n_frames)
    assert np.mean(ids == logits.argmax(axis=-1)) > 0.99
    assert np.array_equal(ids, found.argmax(axis=-1))


@pytest.mark.parametrize(("limit", "most"), [(127, 0.05), (63, 0.1)])
def test_in_int8_it_is_nearly_the_network(network: SenseVoice, limit: int, most: float) -> None:
    if limit > choose_int8().limit:
        pytest.skip("this CPU sums products in 16 bits, which such weights overflow")
    x = inputs(100)
    wanted = reference(network, x)
    ids, hidden, logits = run(network, Int8(limit), x)
    assert np.array_equal(ids, logits.argmax(axis=-1))
    error = np.linalg.norm(hidden - wanted) / np.linalg.norm(wanted)
    assert 1e-4 < error < most


def test_each_column_is_rounded_by_its_own_scale() -> None:
    weight = np.array([[1.0, -2.0, 0.5], [100.0, 0.0, -50.0], [0.0, 0.0, 0.0]], np.float32)
    columns, scales = quantize_columns(weight, 127)
    assert columns.dtype == np.int8
    assert columns.shape == (3, 3)
    assert columns[:, 0].tolist() == [64, -127, 32]  # 63.5 and 31.75, rounded to even
    assert columns[:, 1].tolist() == [127, 0, -64]
    np.testing.assert_allclose(scales, [2 / 127, 100 / 127, 1.0])


@pytest.mark.parametrize("limit", [63, 127])
def test_rounding_is_off_by_half_a_step_at_most(limit: int) -> None:
    weight = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    columns, scales = quantize_columns(weight, limit)
    assert np.abs(columns).max() == limit
    assert np.all(np.abs(columns.T * scales[:, None] - weight) <= scales[:, None] * 0.5001)


def test_the_first_of_equal_tokens_is_taken(network: SenseVoice) -> None:
    """As ``argmax`` does, wherever they stand."""
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    weights["ctc.ctc_lo.weight"] = np.zeros_like(weights["ctc.ctc_lo.weight"])
    bias = np.zeros(CONFIG.vocab_size, np.float32)
    bias[[131, 140, 299]] = 1.0
    weights["ctc.ctc_lo.bias"] = bias
    session = open_session(build_graph(weights, CONFIG, None), n_threads=1)
    (ids,) = session.run(["ids"], {"x": inputs(7)})
    assert np.asarray(ids).tolist() == [[131] * 7]


def test_what_is_nowhere_positive_is_rectified_to_nothing(network: SenseVoice) -> None:
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    for name in [name for name in weights if name.endswith("w_1.bias")]:
        weights[name] = np.full_like(weights[name], -1e4)
    fp32, int8 = (
        open_session(build_graph(weights, CONFIG, precision), n_threads=1)
        for precision in (None, choose_int8())
    )
    x = inputs(40)
    wanted, found = (np.asarray(one.run(["hidden"], {"x": x})[0]) for one in (fp32, int8))
    assert 0 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.05
