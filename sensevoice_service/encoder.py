"""SenseVoiceSmall's network: four prompts, a SANM encoder and a CTC head.

SANM is self-attention with a depthwise convolution (an FSMN memory block) over the values beside
it: Gao et al., "SAN-M: Memory Equipped Self-Attention for End-to-End Speech Recognition",
https://arxiv.org/abs/2006.01713. Parameters carry the names and shapes of FunASR's
``funasr/models/sense_voice/model.py``, so that a published checkpoint loads as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensevoice_service.types import PROMPT_FRAMES

PROMPT_ROWS = 16
# By the tag that comes out there; FunASR asks for them together, the other way round.
EMOTION_ROW, EVENT_ROW = 1, 2
KEPT_POSITIONS = 2_048  # just over two minutes


@dataclass(frozen=True)
class EncoderConfig:
    """The dimensions of a SenseVoiceSmall; ``input_size`` is the width of an LFR feature."""

    vocab_size: int
    input_size: int = 560
    output_size: int = 512
    attention_heads: int = 4
    linear_units: int = 2048
    num_blocks: int = 50
    tp_blocks: int = 20
    kernel_size: int = 11

    @classmethod
    def from_yaml(cls, config: Mapping[str, Any], vocab_size: int) -> EncoderConfig:
        """Read ``encoder_conf`` and ``frontend_conf`` of FunASR's ``config.yaml``.

        Raises ``ValueError`` where the configuration asks for a network that this is not.
        """
        encoder, frontend = config["encoder_conf"], config["frontend_conf"]
        if not encoder.get("normalize_before", True) or encoder.get("sanm_shfit", 0):
            raise ValueError("only pre-norm SANM with sanm_shfit 0 is known")
        return cls(
            vocab_size=vocab_size,
            input_size=frontend["n_mels"] * frontend["lfr_m"],
            output_size=encoder["output_size"],
            attention_heads=encoder["attention_heads"],
            linear_units=encoder["linear_units"],
            num_blocks=encoder["num_blocks"],
            tp_blocks=encoder["tp_blocks"],
            kernel_size=encoder["kernel_size"],
        )


def sinusoidal_positions(n_frames: int, depth: int) -> Tensor:
    """Float32 ``(n_frames, depth)``, counted from 1: sines in the first half, cosines after.

    Made in fp32 on the CPU: past 256 the frame number itself is inexact in bf16.
    """
    half = depth // 2
    step = math.log(10_000) / (half - 1)
    rates = torch.exp(torch.arange(half, dtype=torch.float32, device="cpu") * -step)
    frames = torch.arange(1, n_frames + 1, dtype=torch.float32, device="cpu")
    angles = frames[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1)


@dataclass(frozen=True)
class PaddingMask:
    """Which frames of a padded batch are real; all are ``None`` when none is padding."""

    keys: Tensor | None = None  # (B, 1, 1, T), added to the scores: 0, or -inf where it is padding
    frames: Tensor | None = None  # (B, T, 1), 1 or 0, for the convolution
    n_frames: Tensor | None = None  # (B,), how many are real: the first of each row

    @classmethod
    def of(cls, n_frames: Tensor, n_max_frames: int, dtype: torch.dtype) -> PaddingMask:
        """In the dtype that layers add and multiply: made once, and not anew by each of them."""
        real = torch.arange(n_max_frames, device=n_frames.device) < n_frames[:, None]
        keys = torch.zeros_like(real, dtype=dtype).masked_fill(~real, -math.inf)
        return cls(keys[:, None, None, :], real[:, :, None].to(dtype), n_frames)


class Norm(nn.LayerNorm):
    """Statistics in the dtype of the input, and the result in that of the products it goes to."""

    out_dtype = torch.float32

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).to(self.out_dtype)


@dataclass(frozen=True, eq=False)
class FsmnMemory:
    """What an FSMN memory is made of: values ``(B, T, n)`` and their depthwise convolution."""

    value: Tensor
    convolution: nn.Conv1d
    mask: PaddingMask

    def __call__(self) -> Tensor:
        """``(B, T, n)``; padding is zeroed before the convolution, so that no row feels another."""
        value = self.value if self.mask.frames is None else self.value * self.mask.frames
        if torch.compiler.is_dynamo_compiling():
            return value + convolve_by_taps(value, self.convolution.weight)
        return value + self.convolution(value.transpose(1, 2)).transpose(1, 2)


class Sums(Protocol):
    """What a layer does between its products; all are ``(B, T, n)``, ``x`` is the residual sum."""

    def add_norm(self, x: Tensor, added: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        """``x`` and what is added, and the norm of that."""

    def add_memory_norm(
        self, x: Tensor, added: Tensor, memory: FsmnMemory, norm: Norm
    ) -> tuple[Tensor, Tensor]:
        """The same with the memory added too; without ``x`` where that is of another width."""


class PlainSums:
    """``Sums`` in torch's operators, on any device."""

    def add_norm(self, x: Tensor, added: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        x = x + added
        return x, norm(x)

    def add_memory_norm(
        self, x: Tensor, added: Tensor, memory: FsmnMemory, norm: Norm
    ) -> tuple[Tensor, Tensor]:
        added = added + memory()
        x = x + added if x.shape == added.shape else added.to(x.dtype)
        return x, norm(x)


def convolve_by_taps(x: Tensor, weight: Tensor) -> Tensor:
    """A depthwise convolution of ``(B, T, n)`` with ``(n, 1, k)``, as a sum that compilers fuse."""
    n_frames, n_taps = x.shape[1], weight.shape[-1]
    side = (n_taps - 1) // 2
    padded, taps = F.pad(x, (0, 0, side, side)).float(), weight[:, 0].float()
    shifted = [padded[:, tap : tap + n_frames] * taps[:, tap] for tap in range(n_taps)]
    return sum(shifted[1:], shifted[0]).to(x.dtype)


class SanmAttention(nn.Module):
    """Self-attention over ``(B, T, n_in)``, and the values that its FSMN memory is made of."""

    def __init__(self, n_in: int, n_out: int, n_heads: int, kernel_size: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.linear_q_k_v = nn.Linear(n_in, 3 * n_out)
        self.linear_out = nn.Linear(n_out, n_out)
        self.fsmn_block = nn.Conv1d(
            n_out, n_out, kernel_size, padding=(kernel_size - 1) // 2, groups=n_out, bias=False
        )

    def forward(self, x: Tensor, mask: PaddingMask) -> tuple[Tensor, Tensor]:
        """What is attended to and the values, both ``(B, T, n_out)``."""
        batch, n_frames, _ = x.shape
        query, key, value = self.linear_q_k_v(x).chunk(3, dim=-1)
        q, k, v = (
            x.view(batch, n_frames, self.n_heads, -1).transpose(1, 2) for x in (query, key, value)
        )
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.keys)
        context = context.transpose(1, 2).reshape(batch, n_frames, -1)
        return self.linear_out(context), value


class FeedForward(nn.Module):
    def __init__(self, size: int, hidden_units: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(size, hidden_units)
        self.w_2 = nn.Linear(hidden_units, size)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and not torch.is_grad_enabled():
            return self.w_2(linear_relu(x, self.w_1))
        return self.w_2(F.relu(self.w_1(x)))


def linear_relu(x: Tensor, layer: nn.Linear) -> Tensor:
    """In one kernel: the widest tensor of the network is not read and written a second time."""
    flat = torch._addmm_activation(layer.bias, x.flatten(0, -2), layer.weight.t())
    return flat.view(*x.shape[:-1], -1)


class SanmLayer(nn.Module):
    """Pre-norm attention and feed-forward; no residual round the attention if the width changes.

    Residual sums keep the dtype of the first input, whatever that of the products.
    """

    def __init__(self, n_in: int, config: EncoderConfig) -> None:
        super().__init__()
        n_out = config.output_size
        self.self_attn = SanmAttention(n_in, n_out, config.attention_heads, config.kernel_size)
        self.feed_forward = FeedForward(n_out, config.linear_units)
        self.norm1 = Norm(n_in)
        self.norm2 = Norm(n_out)

    def forward(
        self, x: Tensor, added: Tensor | None, mask: PaddingMask, sums: Sums
    ) -> tuple[Tensor, Tensor]:
        """``x`` and what the layer before has not added to it yet; the same of this layer."""
        x, normed = (x, self.norm1(x)) if added is None else sums.add_norm(x, added, self.norm1)
        attended, value = self.self_attn(normed, mask)
        memory = FsmnMemory(value, self.self_attn.fsmn_block, mask)
        x, normed = sums.add_memory_norm(x, attended, memory, self.norm2)
        return x, self.feed_forward(normed)


class SanmEncoder(nn.Module):
    """``num_blocks`` layers, a norm, ``tp_blocks`` layers more, a norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        size = config.output_size
        self.scale = math.sqrt(size)
        self.encoders0 = nn.ModuleList([SanmLayer(config.input_size, config)])
        self.encoders = nn.ModuleList(SanmLayer(size, config) for _ in range(config.num_blocks - 1))
        self.tp_encoders = nn.ModuleList(SanmLayer(size, config) for _ in range(config.tp_blocks))
        self.after_norm = nn.LayerNorm(size)
        self.tp_norm = Norm(size)
        self.positions: Tensor
        positions = sinusoidal_positions(KEPT_POSITIONS, config.input_size)
        self.register_buffer("positions", positions, persistent=False)
        self.sums: Sums = PlainSums()

    def forward(self, x: Tensor, n_frames: Tensor | None) -> Tensor:
        """``(B, T, input_size)`` to ``(B, T, output_size)``; ``n_frames (B,)`` if rows are padded.

        Every row needs at least one real frame: attention over none is NaN.
        """
        x = x * self.scale + self._positions(x)
        if n_frames is None:
            mask = PaddingMask()
        else:
            mask = PaddingMask.of(n_frames, x.shape[1], self.tp_norm.out_dtype)
        return self.blocks(x, mask)

    def blocks(self, x: Tensor, mask: PaddingMask) -> Tensor:
        """All but what comes ahead of the first layer; shapes as for ``forward``."""
        x = self.after_norm(self._through((*self.encoders0, *self.encoders), x, mask))
        return self.tp_norm(self._through(self.tp_encoders, x, mask))

    def _through(self, layers: Iterable[nn.Module], x: Tensor, mask: PaddingMask) -> Tensor:
        added: Tensor | None = None
        for layer in layers:
            x, added = layer(x, added, mask, self.sums)
        return x if added is None else x + added

    def _positions(self, x: Tensor) -> Tensor:
        """Never replaced once made: captured graphs read them where they are."""
        n_frames, depth = x.shape[1:]
        if n_frames > KEPT_POSITIONS:
            return sinusoidal_positions(n_frames, depth).to(x)
        return self.positions[:n_frames].to(x.dtype)


class CtcHead(nn.Module):
    def __init__(self, size: int, vocab_size: int) -> None:
        super().__init__()
        self.ctc_lo = nn.Linear(size, vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.ctc_lo(hidden)

    def widen(self, multiple: int) -> None:
        """Add logits of minus infinity, for a GPU: it is slow at rows of an odd width."""
        missing = -len(self.ctc_lo.weight) % multiple
        weight = F.pad(self.ctc_lo.weight.detach(), (0, 0, 0, missing))
        bias = F.pad(self.ctc_lo.bias.detach(), (0, missing), value=-math.inf)
        self.ctc_lo.weight, self.ctc_lo.bias = nn.Parameter(weight), nn.Parameter(bias)


class SenseVoice(nn.Module):
    """The whole network, from LFR features to CTC logits; blank is token 0."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = SanmEncoder(config)
        self.ctc = CtcHead(config.output_size, config.vocab_size)
        # As nn.Embedding draws it, which for a model without memory would import torch's compiler:
        # more than a second, and no start for a user whom the system has no name for.
        prompts = torch.randn(PROMPT_ROWS, config.input_size)
        self.embed = nn.Embedding.from_pretrained(prompts, freeze=False)

    def round_products(self, dtype: torch.dtype) -> None:
        """Keep the weights of products in ``dtype`` and feed them so; sums and norms stay as is."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                module.to(dtype)
            elif isinstance(module, Norm):
                module.out_dtype = dtype

    def encode(
        self,
        features: Tensor,
        n_frames: Tensor | None,
        language_rows: Tensor,
        textnorm_rows: Tensor,
    ) -> Tensor:
        """Put the prompts ahead of the features and run the encoder.

        ``features`` is ``(B, T, input_size)``, ``n_frames (B,)`` counts each row's real frames
        (``None``: all of them), the two rows ``(B,)`` index the prompt embedding. Returns
        ``(B, 4 + T, output_size)``. ``features`` is left as it was.
        """
        fixed = self.embed.weight[EMOTION_ROW : EVENT_ROW + 1].expand(len(features), -1, -1)
        languages, textnorms = self.embed(language_rows), self.embed(textnorm_rows)
        x = torch.cat((languages[:, None], fixed, textnorms[:, None], features), dim=1)
        return self.encoder(x, None if n_frames is None else n_frames + PROMPT_FRAMES)

    def forward(
        self,
        features: Tensor,
        n_frames: Tensor | None,
        language_rows: Tensor,
        textnorm_rows: Tensor,
    ) -> Tensor:
        """Logits ``(B, 4 + T, vocab_size)``; arguments as for ``encode``."""
        return self.ctc(self.encode(features, n_frames, language_rows, textnorm_rows))
