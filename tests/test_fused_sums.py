from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from sensevoice_service import fused_sums
from sensevoice_service.encoder import EncoderConfig, PlainSums, SenseVoice
from sensevoice_service.fused_sums import (
    Arguments,
    FusedSums,
    Launch,
    choose_sums,
    compile_for,
    require_close_sums,
    taps_of,
)
from tests.models import CPU

pytest.importorskip("triton", reason="needs Triton")
CONFIG = EncoderConfig(299, output_size=40, linear_units=64, num_blocks=3, tp_blocks=2)
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Call]:
    """Calls a function where Triton interprets kernels instead of compiling them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            yield lambda function, *arguments: pool.submit(function, *arguments).result()


def make_network(dtype: torch.dtype) -> SenseVoice:
    torch.manual_seed(0)
    network = SenseVoice(CONFIG).eval().requires_grad_(False)
    network.round_products(dtype)
    return network


def interpreted(n_taps: int, dtype: torch.dtype) -> Launch:
    import triton

    from sensevoice_service.triton_kernels import ROWS_A_BLOCK, KernelShape, add_norm

    kernel = triton.jit(add_norm)
    constants = KernelShape(CONFIG.output_size, n_taps, dtype).constants()

    def launch(arguments: Arguments) -> None:
        grid = (-(-arguments.n_rows // ROWS_A_BLOCK),)
        kernel[grid](*arguments.tensors(), *arguments.numbers(), **constants)

    return launch


def both_interpreted(dtype: torch.dtype) -> tuple[Launch, Launch]:
    return interpreted(0, dtype), interpreted(CONFIG.kernel_size, dtype)


def fuse(network: SenseVoice, dtype: torch.dtype) -> FusedSums:
    return FusedSums(taps_of(network.encoder), *both_interpreted(dtype))


def run_both(lengths: tuple[int, ...] | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Hidden states of the network with plain sums and with fused ones."""
    network = make_network(dtype)
    n_rows, n_frames = (2, 23) if lengths is None else (len(lengths), max(lengths))
    features = torch.randn(n_rows, n_frames, CONFIG.input_size)
    rows = torch.zeros(n_rows, dtype=torch.long)
    counts = None if lengths is None else torch.tensor(lengths)
    with torch.inference_mode():
        plain = network.encode(features, counts, rows, rows)
        network.encoder.sums = fuse(network, dtype)
        return plain, network.encode(features, counts, rows, rows)


@pytest.mark.parametrize("lengths", [None, (1,), (23, 1, 8), (2, 30, 30, 7)])
def test_the_network_with_fused_sums_is_the_network(
    interpreter: Call, lengths: tuple[int, ...] | None
) -> None:
    plain, fused = interpreter(run_both, lengths, torch.float32)
    for row, length in enumerate(lengths or (23, 23)):
        real = 4 + length
        torch.testing.assert_close(fused[row, :real], plain[row, :real], atol=2e-5, rtol=1e-4)


def test_in_bf16_it_is_nearly_the_same(interpreter: Call) -> None:
    plain, fused = interpreter(run_both, (23, 8), torch.bfloat16)
    assert fused.dtype == torch.bfloat16
    error = (fused[0] - plain[0]).float().norm() / plain[0].float().norm()
    assert error < 0.02


def spoil_padding() -> tuple[Tensor, Tensor]:
    """Of a short row, with one thing behind it and with another."""
    network = make_network(torch.float32)
    network.encoder.sums = fuse(network, torch.float32)
    features = torch.randn(2, 12, CONFIG.input_size)
    rows, counts = torch.zeros(2, dtype=torch.long), torch.tensor([3, 12])
    spoilt = features.clone()
    spoilt[0, 3:] = 1e3
    with torch.inference_mode():
        clean, other = (network.encode(one, counts, rows, rows) for one in (features, spoilt))
    return clean[0, :7], other[0, :7]


def test_no_row_feels_its_padding(interpreter: Call) -> None:
    clean, other = interpreter(spoil_padding)
    assert torch.equal(clean, other)


def judge(shift: int, dtype: torch.dtype) -> str:
    """What is said of sums whose convolution is off by ``shift`` frames."""
    network = make_network(dtype)
    taps = {module: taps.roll(shift, 0) for module, taps in taps_of(network.encoder).items()}
    sums = FusedSums(taps, *both_interpreted(dtype))
    try:
        require_close_sums(sums, network.encoder)
    except ValueError as error:
        return str(error)
    return "alike"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_are_compared_before_they_serve(interpreter: Call, dtype: torch.dtype) -> None:
    assert interpreter(judge, 0, dtype) == "alike"
    assert "off by" in interpreter(judge, 1, dtype)


def chosen(dtype: torch.dtype) -> str:
    encoder = make_network(dtype).encoder
    launches = both_interpreted(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_sums, "compile_for", lambda encoder, device: launches)
        return type(choose_sums(encoder, CPU)).__name__


def test_kernels_that_are_right_are_taken(interpreter: Call) -> None:
    assert interpreter(chosen, torch.bfloat16) == "FusedSums"


def test_results_that_are_no_numbers_are_not_alike() -> None:
    def launch(arguments: Arguments) -> None:
        arguments.sums.fill_(torch.nan)
        arguments.normed.fill_(torch.nan)

    encoder = make_network(torch.float32).encoder
    with pytest.raises(ValueError, match="off by nan"):
        require_close_sums(FusedSums(taps_of(encoder), launch, launch), encoder)


def test_without_them_there_are_the_plain_ones(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> NoReturn:
        raise OSError("no assembler")

    encoder = make_network(torch.float32).encoder
    monkeypatch.setattr(fused_sums, "compile_for", fail)
    with caplog.at_level(logging.WARNING):
        assert isinstance(choose_sums(encoder, CPU), PlainSums)
    assert "no assembler" in caplog.text


def test_a_width_that_kernels_cannot_read_is_refused() -> None:
    network = SenseVoice(EncoderConfig(299, output_size=36, linear_units=8, num_blocks=1))
    with pytest.raises(ValueError, match="36 is not a multiple of 8"):
        compile_for(network.encoder, CPU)
