from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, cycle, islice
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bench.reference import FunAsr
from sensevoice_service import encoder as encoders
from sensevoice_service.encoder import (
    CtcHead,
    EncoderConfig,
    Norm,
    PaddingMask,
    SenseVoice,
    convolve_by_taps,
    linear_relu,
)
from sensevoice_service.frontend import LANGUAGE_ROWS, WITH_ITN_ROW, WITHOUT_ITN_ROW
from sensevoice_service.types import PROMPT_FRAMES
from tests.models import Model

PARITY = 1e-4  # largest difference over largest logit
LANGUAGES = tuple(LANGUAGE_ROWS.values())
TEXT_NORMS = (WITH_ITN_ROW, WITHOUT_ITN_ROW)
# All logits of a batch are at once in memory here, so the longest has one neighbour only.
MIXED = ((1, 7, 2, 50, 3, 333), (1_000, 1))
MIXED_OF_FULL_SIZE = ((1, 7, 2, 50, 3),)


@pytest.fixture(scope="module")
def batches(model: Model) -> tuple[tuple[int, ...], ...]:
    """The frames of each row of batches that pad a lot."""
    return MIXED_OF_FULL_SIZE if model.is_full_size else MIXED


@pytest.fixture(scope="module")
def network(model: Model) -> SenseVoice:
    """Read from the folder once more, by torch alone."""
    config = yaml.safe_load(model.folder.config_yaml.read_text())
    network = SenseVoice(EncoderConfig.from_yaml(config, model.vocabulary.size))
    network.load_state_dict(torch.load(model.folder.checkpoint, weights_only=True))
    return network.eval()


def random_features(*lengths: int) -> Tensor:
    """Of a spread like that of CMVN, zero-padded: ``(B, T, 560)``."""
    generator = torch.Generator().manual_seed(sum(lengths))
    rows = [torch.randn(length, 560, generator=generator) for length in lengths]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@torch.inference_mode()
def logits_of(
    network: SenseVoice, features: Tensor, lengths: Sequence[int] | None, languages: Any, norms: Any
) -> Tensor:
    n_frames = None if lengths is None else torch.tensor(lengths)
    return network(features, n_frames, torch.tensor(languages), torch.tensor(norms))


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert ours.isfinite().all()
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_logits_of_any_length_are_those_of_funasr(
    network: SenseVoice, funasr: FunAsr, batches: tuple[tuple[int, ...], ...]
) -> None:
    for length in chain(*batches):
        features = random_features(length)
        ours = logits_of(network, features, None, [0], [WITH_ITN_ROW])
        theirs = funasr.logits(features, [length], [0], [WITH_ITN_ROW])
        assert difference(ours, theirs) < PARITY, length


@pytest.mark.parametrize("textnorm_row", TEXT_NORMS)
@pytest.mark.parametrize("language_row", LANGUAGES)
def test_logits_of_any_prompt_are_those_of_funasr(
    network: SenseVoice, funasr: FunAsr, language_row: int, textnorm_row: int
) -> None:
    features = random_features(20)
    ours = logits_of(network, features, None, [language_row], [textnorm_row])
    theirs = funasr.logits(features, [20], [language_row], [textnorm_row])
    assert difference(ours, theirs) < PARITY


def test_prompts_change_the_logits(network: SenseVoice) -> None:
    features = random_features(20)
    prompts = [(language, norm) for language in LANGUAGES for norm in TEXT_NORMS]
    seen = [logits_of(network, features, None, [row], [norm]) for row, norm in prompts]
    assert all(difference(one, seen[0]) > PARITY for one in seen[1:])


def test_a_mixed_batch_has_the_logits_of_funasr_and_of_each_row_alone(
    network: SenseVoice, funasr: FunAsr, batches: tuple[tuple[int, ...], ...]
) -> None:
    for rows in batches:
        languages, norms = (list(islice(cycle(ids), len(rows))) for ids in (LANGUAGES, TEXT_NORMS))
        features = random_features(*rows)
        ours = logits_of(network, features, rows, languages, norms)
        theirs = funasr.logits(features, rows, languages, norms)
        for i, length in enumerate(rows):
            one, language, norm = features[i : i + 1, :length], languages[i], norms[i]
            alone = logits_of(network, one, None, [language], [norm])[0]
            real = PROMPT_FRAMES + length
            assert difference(ours[i, :real], theirs[i, :real]) < PARITY, (rows, i)
            assert difference(ours[i, :real], alone) < PARITY, (rows, i)


def test_what_lies_in_the_padding_is_of_no_consequence(network: SenseVoice) -> None:
    rows = [5, 30]
    features = random_features(*rows)
    littered = features.clone()
    littered[0, 5:] = 1e3
    clean, other = (
        logits_of(network, x, rows, [0, 0], [WITH_ITN_ROW] * 2) for x in (features, littered)
    )
    real = PROMPT_FRAMES + rows[0]
    assert torch.equal(clean[0, :real], other[0, :real])
    assert torch.equal(clean[1], other[1])


def test_inputs_are_left_as_they_were(network: SenseVoice) -> None:
    n_frames, language_rows, textnorm_rows = torch.tensor([[3, 9], [0, 4], TEXT_NORMS])
    inputs = (random_features(3, 9), n_frames, language_rows, textnorm_rows)
    before = [tensor.clone() for tensor in inputs]
    with torch.inference_mode():
        network(*inputs)
    assert all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True))


def test_a_short_batch_after_a_long_one_is_as_before(network: SenseVoice) -> None:
    """Positions are kept from call to call."""
    short, long = random_features(7), random_features(700)
    first, _, second = (
        logits_of(network, x, None, [0], [WITH_ITN_ROW]) for x in (short, long, short)
    )
    assert torch.equal(first, second)


def test_audio_longer_than_the_kept_positions_has_its_own(
    network: SenseVoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = random_features(50)
    expected = logits_of(network, features, None, [0], [WITH_ITN_ROW])
    monkeypatch.setattr(encoders, "KEPT_POSITIONS", 16)
    assert torch.equal(logits_of(network, features, None, [0], [WITH_ITN_ROW]), expected)


SMALL = EncoderConfig(vocab_size=299, output_size=64, linear_units=128, num_blocks=2, tp_blocks=1)


def test_with_products_in_bf16_residual_sums_and_norms_stay_in_fp32() -> None:
    torch.manual_seed(0)
    network = SenseVoice(SMALL).eval()
    network.round_products(torch.bfloat16)
    seen: dict[str, set[torch.dtype]] = {}

    def watch(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.setdefault(type(module).__name__, set()).add(inputs[0].dtype)

    for module in network.modules():
        module.register_forward_pre_hook(watch)
    logits = logits_of(network, random_features(9, 30), [9, 30], [0, 3], [WITH_ITN_ROW] * 2)
    assert logits.dtype == torch.bfloat16
    assert seen["Norm"] == seen["LayerNorm"] == seen["SanmLayer"] == {torch.float32}
    assert seen["Linear"] == seen["Conv1d"] == {torch.bfloat16}


def test_products_in_bf16_give_nearly_the_same_logits() -> None:
    torch.manual_seed(0)
    network = SenseVoice(SMALL).eval()
    call = (random_features(9, 30), [9, 30], [0, 3], [WITH_ITN_ROW] * 2)
    expected = logits_of(network, *call)
    network.round_products(torch.bfloat16)
    assert difference(logits_of(network, *call).float(), expected) < 0.02


class Calls(TorchFunctionMode):
    """Notes what is called of torch, and the types that tensors are indexed by."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.indexed_by: set[type] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.names.add(func.__name__)
        if func is Tensor.__getitem__:
            self.indexed_by.add(type(args[1]))
        return func(*args, **(kwargs or {}))


def test_the_network_takes_nothing_from_the_host() -> None:
    """What a captured graph may not do; tensors without data stand for those of a GPU."""
    with torch.device("meta"):
        network = SenseVoice(SMALL).eval()
    network.encoder.positions = network.encoder.positions.to("meta")
    network.round_products(torch.bfloat16)
    features = torch.empty(2, 9, 560, device="meta")
    rows = torch.empty(2, dtype=torch.long, device="meta")
    for n_frames in (None, rows):
        with Calls() as calls:
            assert network(features, n_frames, rows, rows).argmax(dim=-1).is_meta
        assert {"linear", "layer_norm", "argmax"} <= calls.names
        assert not calls.names & {"tensor", "new_tensor", "as_tensor", "from_numpy", "cpu", "item"}
        assert not calls.indexed_by & {list, Tensor}


@pytest.mark.parametrize("n_max_frames", [1, 8, 13])
def test_a_mask_hides_the_padding(n_max_frames: int) -> None:
    mask = PaddingMask.of(torch.tensor([n_max_frames, 1]), n_max_frames, torch.bfloat16)
    assert mask.keys is not None
    assert mask.frames is not None
    assert mask.keys.shape == (2, 1, 1, n_max_frames)
    assert mask.frames.shape == (2, n_max_frames, 1)
    assert not mask.keys[0].any()
    assert mask.keys[1].flatten().tolist() == [0.0] + [-torch.inf] * (n_max_frames - 1)
    assert mask.frames.sum(1).flatten().tolist() == [n_max_frames, 1]


def test_a_sum_over_taps_is_the_convolution() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Conv1d(6, 6, 11, padding=5, groups=6, bias=False)
    x = torch.randn(2, 30, 6)
    with torch.no_grad():
        expected = layer(x.transpose(1, 2)).transpose(1, 2)
        torch.testing.assert_close(convolve_by_taps(x, layer.weight), expected)


def test_one_kernel_for_a_layer_and_its_activation_gives_the_same() -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(6, 10), torch.randn(2, 30, 6)
    with torch.no_grad():
        torch.testing.assert_close(linear_relu(x, layer), torch.relu(layer(x)))


def test_outputs_that_widen_the_head_are_never_the_likeliest() -> None:
    torch.manual_seed(0)
    head = CtcHead(6, 13).requires_grad_(False)
    hidden = -1e4 * torch.rand(2, 30, 6)
    logits = head(hidden)
    for _ in range(2):
        head.widen(8)
        assert head(hidden).shape == (2, 30, 16)
        torch.testing.assert_close(head(hidden)[..., :13], logits)
        assert torch.equal(head(hidden).argmax(-1), logits.argmax(-1))


def test_a_norm_gives_out_the_dtype_it_is_told() -> None:
    norm, x = Norm(6), torch.randn(3, 6)
    plain = torch.nn.functional.layer_norm(x, (6,))
    torch.testing.assert_close(norm(x), plain)
    norm.out_dtype = torch.bfloat16
    assert torch.equal(norm(x), plain.bfloat16())


def test_the_dimensions_are_read_from_funasrs_configuration() -> None:
    config = {
        "encoder_conf": {
            "output_size": 64,
            "attention_heads": 2,
            "linear_units": 96,
            "num_blocks": 3,
            "tp_blocks": 1,
            "kernel_size": 5,
        },
        "frontend_conf": {"n_mels": 80, "lfr_m": 7},
    }
    assert EncoderConfig.from_yaml(config, vocab_size=300) == EncoderConfig(
        vocab_size=300,
        input_size=560,
        output_size=64,
        attention_heads=2,
        linear_units=96,
        num_blocks=3,
        tp_blocks=1,
        kernel_size=5,
    )


@pytest.mark.parametrize("other", [{"normalize_before": False}, {"sanm_shfit": 5}])
def test_a_network_of_another_kind_is_refused(small_model: Model, other: dict[str, Any]) -> None:
    config = yaml.safe_load(small_model.folder.config_yaml.read_text())
    config["encoder_conf"] |= other
    with pytest.raises(ValueError, match="pre-norm SANM with sanm_shfit 0"):
        EncoderConfig.from_yaml(config, vocab_size=300)
