"""The encoder and CTC head as an ONNX graph of the kernels that are fastest on a CPU.

Built node by node from the weights, not traced, so that each choice can be read here: queries,
keys and values share one quantisation of their input, the FSMN memory is a depthwise convolution
whose residual is part of its centre tap, and attention is onnxruntime's fused kernel. Operators of
the domain ``com.microsoft`` are described in onnxruntime's ``docs/ContribOperators.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from sensevoice_service.encoder import EncoderConfig

CONTRIB = "com.microsoft"
OPSET, IR_VERSION = 18, 10
NORM_EPSILON = 1e-5
Array = NDArray[Any]


@dataclass(frozen=True)
class Int8:
    """Signed weights up to ±``limit``, one scale a column; activations unsigned, measured per call.

    127 is the whole range. Where a CPU adds pairs of products in 16 bits (x86 without VNNI), 63 is
    what cannot overflow.
    """

    limit: int = 127


def quantize_columns(weight: Array, limit: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """``(n_out, n_in)`` float to int8 ``(n_in, n_out)`` and its scales ``(n_out,)``."""
    scales = np.abs(weight).max(axis=1).astype(np.float32) / limit
    scales[scales == 0] = 1.0
    rounded = np.rint(weight / scales[:, None])
    return np.ascontiguousarray(rounded.astype(np.int8).T), scales


def build_graph(weights: Mapping[str, Array], config: EncoderConfig, int8: Int8 | None) -> bytes:
    """A serialised ONNX model; ``weights`` are float32 under the names of the checkpoint.

    Input ``x`` is float32 ``(B, T, input_size)``: prompts and features, scaled, with positions.
    Outputs are ``ids``, int64 ``(B, T)``, the arg-max, ``hidden``, ``(B, T, output_size)``, and
    ``logits``, ``(B, T, vocab_size)``.
    """
    return _EncoderGraph(weights, config, int8).build()


class _EncoderGraph:
    def __init__(
        self, weights: Mapping[str, Array], config: EncoderConfig, int8: Int8 | None
    ) -> None:
        self._weights = weights
        self._config = config
        self._int8 = int8
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[TensorProto] = []
        self._n_names = 0

    def build(self) -> bytes:
        x = self._block("x", "encoder.encoders0.0", residual=False)
        for index in range(self._config.num_blocks - 1):
            x = self._block(x, f"encoder.encoders.{index}")
        x = self._norm(x, "encoder.after_norm")
        for index in range(self._config.tp_blocks):
            x = self._block(x, f"encoder.tp_encoders.{index}")
        hidden = self._norm(x, "encoder.tp_norm")
        self._linear(hidden, "ctc.ctc_lo")
        logits = self._name_last("logits")
        self._name_output("ids", self._node("ArgMax", [logits], axis=-1, keepdims=0))
        self._name_output("hidden", hidden)
        return bytes(self._model().SerializeToString())

    def _block(self, x: str, name: str, *, residual: bool = True) -> str:
        """Pre-norm attention and feed-forward; the first block changes the width."""
        attended = self._attention(self._norm(x, f"{name}.norm1"), f"{name}.self_attn")
        x = self._node("Add", [x, attended]) if residual else attended
        hidden = self._linear(self._norm(x, f"{name}.norm2"), f"{name}.feed_forward.w_1")
        hidden = self._node("Relu", [hidden])
        return self._node("Add", [x, self._linear(hidden, f"{name}.feed_forward.w_2")])

    def _attention(self, x: str, name: str) -> str:
        query, key, value = self._query_key_value(x, f"{name}.linear_q_k_v")
        context = self._node(
            "MultiHeadAttention",
            [query, key, value],
            domain=CONTRIB,
            num_heads=self._config.attention_heads,
        )
        memory = self._memory(value, f"{name}.fsmn_block.weight")
        return self._node("Add", [self._linear(context, f"{name}.linear_out"), memory])

    def _query_key_value(self, x: str, name: str) -> list[str]:
        """Three products of one input: a product of all three would have to be copied apart."""
        size = self._config.output_size
        parts = [slice(start, start + size) for start in (0, size, 2 * size)]
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        if self._int8 is None:
            return [self._product(x, weight[part], bias[part]) for part in parts]
        levels, scale, zero = self._nodes_of("DynamicQuantizeLinear", [x], n_outputs=3)
        outputs = []
        for part in parts:
            columns, scales = quantize_columns(weight[part], self._int8.limit)
            inputs = [levels, self._constant(columns), scale, self._constant(scales), zero, ""]
            inputs.append(self._constant(bias[part]))
            outputs.append(self._node("MatMulIntegerToFloat", inputs, domain=CONTRIB))
        return outputs

    def _linear(self, x: str, name: str) -> str:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        if self._int8 is None:
            return self._product(x, weight, bias)
        columns, scales = quantize_columns(weight, self._int8.limit)
        inputs = [x, self._constant(columns), self._constant(scales), "", self._constant(bias)]
        return self._node("DynamicQuantizeMatMul", inputs, domain=CONTRIB)

    def _product(self, x: str, weight: Array, bias: Array) -> str:
        product = self._node("MatMul", [x, self._constant(weight.T)])
        return self._node("Add", [product, self._constant(bias)])

    def _memory(self, value: str, name: str) -> str:
        """As an image one wide: onnxruntime has a blocked depthwise kernel for images alone."""
        taps = self._weights[name].copy()
        channels, _, kernel_size = taps.shape
        taps[:, 0, kernel_size // 2] += 1.0
        axis = self._constant(np.array([2]))
        image = self._node("Unsqueeze", [value, axis])
        image = self._node("Transpose", [image], perm=[0, 3, 1, 2])
        image = self._node(
            "Conv",
            [image, self._constant(taps[..., None])],
            group=channels,
            kernel_shape=[kernel_size, 1],
            pads=[kernel_size // 2, 0, kernel_size // 2, 0],
        )
        image = self._node("Transpose", [image], perm=[0, 2, 3, 1])
        return self._node("Squeeze", [image, axis])

    def _norm(self, x: str, name: str) -> str:
        scale, shift = (
            self._constant(self._weights[f"{name}.{part}"]) for part in ("weight", "bias")
        )
        return self._node("LayerNormalization", [x, scale, shift], axis=-1, epsilon=NORM_EPSILON)

    def _constant(self, values: Array) -> str:
        name = self._new_name("constant")
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _node(self, operator: str, inputs: list[str], **attributes: Any) -> str:
        return self._nodes_of(operator, inputs, n_outputs=1, **attributes)[0]

    def _nodes_of(
        self, operator: str, inputs: list[str], n_outputs: int, **attributes: Any
    ) -> list[str]:
        outputs = [self._new_name(operator) for _ in range(n_outputs)]
        self._nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        return outputs

    def _name_output(self, name: str, value: str) -> None:
        self._nodes.append(helper.make_node("Identity", [value], [name]))

    def _name_last(self, name: str) -> str:
        """Make the last node's value an output without a copy of it; to be used by this name."""
        self._nodes[-1].output[0] = name
        return name

    def _new_name(self, kind: str) -> str:
        self._n_names += 1
        return f"{kind}_{self._n_names}"

    def _model(self) -> onnx.ModelProto:
        config, value = self._config, helper.make_tensor_value_info
        inputs = [value("x", TensorProto.FLOAT, ["B", "T", config.input_size])]
        outputs = [
            value("ids", TensorProto.INT64, ["B", "T"]),
            value("hidden", TensorProto.FLOAT, ["B", "T", config.output_size]),
            value("logits", TensorProto.FLOAT, ["B", "T", config.vocab_size]),
        ]
        graph = helper.make_graph(self._nodes, "sensevoice", inputs, outputs, self._constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
