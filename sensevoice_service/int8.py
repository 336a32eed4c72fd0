"""Dynamic int8 for the CPU: weights per output channel once, activations per call."""

from __future__ import annotations

import warnings

from torch import nn


def quantize_linears(model: nn.Module) -> None:
    """Replace every ``nn.Linear`` below ``model`` by its int8 twin, in place."""
    with warnings.catch_warnings():
        # torch.ao announces its move to a package of its own; the kernels stay in torch.
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        quantize_dynamic(model, {nn.Linear: per_channel_dynamic_qconfig}, inplace=True)
