"""The encoder and CTC head as an ONNX graph of the kernels that are fastest on a CPU.

Built node by node from the weights, not traced, so that each choice can be read here: queries,
keys and values share one quantisation of their input, the FSMN memory is a depthwise convolution
whose residual is part of its centre tap, attention's products read heads where they lie, and the
rectifier is what quantising without negative levels does. Operators of the domain ``com.microsoft``
are described in onnxruntime's ``docs/ContribOperators.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
HIGHEST_LEVEL = 255  # of activations
PIECE = 128  # tokens whose best is found at once
LEAST_PEAK = 1e-6  # so that what is nowhere positive has a scale
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
    scales = column_scales(weight, limit)
    return np.ascontiguousarray(round_columns(weight, scales).T), scales


def column_scales(weight: Array, limit: int) -> NDArray[np.float32]:
    """What one level stands for in each row of ``(n_out, n_in)``, the highest being ``limit``."""
    scales = np.abs(weight).max(axis=1).astype(np.float32) / limit
    scales[scales == 0] = 1.0
    return np.asarray(scales, np.float32)


def round_columns(weight: Array, scales: NDArray[np.float32]) -> NDArray[np.int8]:
    return np.rint(weight / scales[:, None]).astype(np.int8)


def pad_outputs(weight: Array, bias: Array) -> tuple[Array, Array]:
    """The same layer with outputs of −inf behind its own, up to a whole number of pieces."""
    n_more = -len(weight) % PIECE
    return np.pad(weight, ((0, n_more), (0, 0))), np.pad(bias, (0, n_more), constant_values=-np.inf)


def build_graph(weights: Mapping[str, Array], config: EncoderConfig, int8: Int8 | None) -> bytes:
    """A serialised ONNX model; ``weights`` are float32 under the names of the checkpoint.

    Input ``x`` is float32 ``(1, T, input_size)``: prompts and features, scaled, with positions.
    Outputs are ``ids``, int64 ``(1, T)``, the arg-max, ``hidden``, ``(1, T, output_size)``, and
    ``logits``, ``(1, T, n)``, of which those behind ``vocab_size`` are −inf.
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
        self._affine(hidden, *pad_outputs(*self._layer("ctc.ctc_lo")))
        logits = self._name_last("logits")
        self._name_output("ids", self._best(logits))
        self._name_output("hidden", hidden)
        return bytes(self._model().SerializeToString())

    def _best(self, logits: str) -> str:
        """First the piece, then the token in it: onnxruntime is ten times as fast at maxima."""
        pieces = self._node("Reshape", [logits, self._constant(np.array([0, 0, -1, PIECE]))])
        tops = self._node("ReduceMax", [pieces, self._constant(np.array([3]))], keepdims=0)
        piece = self._node("ArgMax", [tops], axis=2, keepdims=1)
        tokens = self._node("GatherND", [pieces, piece], batch_dims=2)
        within = self._node("ArgMax", [tokens], axis=2, keepdims=0)
        before = self._node("Mul", [piece, self._constant(np.array(PIECE))])
        before = self._node("Squeeze", [before, self._constant(np.array([2]))])
        return self._node("Add", [before, within])

    def _block(self, x: str, name: str, *, residual: bool = True) -> str:
        """Pre-norm attention and feed-forward; the first block changes the width."""
        attended = self._attention(self._norm(x, f"{name}.norm1"), f"{name}.self_attn")
        x = self._node("Add", [x, attended]) if residual else attended
        forward = f"{name}.feed_forward"
        hidden = self._linear(self._norm(x, f"{name}.norm2"), f"{forward}.w_1")
        return self._node("Add", [x, self._rectified_linear(hidden, f"{forward}.w_2")])

    def _attention(self, x: str, name: str) -> str:
        query, key, value = self._query_key_value(x, f"{name}.linear_q_k_v")
        context = self._attended(query, key, value)
        memory = self._memory(value, f"{name}.fsmn_block.weight")
        return self._node("Add", [self._linear(context, f"{name}.linear_out"), memory])

    def _attended(self, query: str, key: str, value: str) -> str:
        """Without the copies of heads that the fused kernel begins with; at 60 s it is as fast."""
        n_heads, size = self._config.attention_heads, self._config.output_size
        in_heads = self._constant(np.array([-1, n_heads, size // n_heads]))
        query, key, value = (self._node("Reshape", [one, in_heads]) for one in (query, key, value))
        scores = self._node(
            "FusedMatMul",
            [query, key],
            domain=CONTRIB,
            alpha=(size // n_heads) ** -0.5,
            transB=1,
            transBatchA=1,
            transBatchB=1,
        )
        shares = self._node("Softmax", [scores], axis=-1)
        context = self._node("FusedMatMul", [shares, value], domain=CONTRIB, transBatchB=1)
        context = self._node("Transpose", [context], perm=[1, 0, 2])
        return self._node("Reshape", [context, self._constant(np.array([1, -1, size]))])

    def _query_key_value(self, x: str, name: str) -> list[str]:
        """Three products of one input: a product of all three would have to be copied apart."""
        size = self._config.output_size
        parts = [slice(start, start + size) for start in (0, size, 2 * size)]
        weight, bias = self._layer(name)
        if self._int8 is None:
            return [self._product(x, weight[part], bias[part]) for part in parts]
        quantized = self._nodes_of("DynamicQuantizeLinear", [x], n_outputs=3)
        return [
            self._int8_product(quantized, weight[part], bias[part], self._int8) for part in parts
        ]

    def _layer(self, name: str) -> tuple[Array, Array]:
        return self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]

    def _linear(self, x: str, name: str) -> str:
        return self._affine(x, *self._layer(name))

    def _affine(self, x: str, weight: Array, bias: Array) -> str:
        if self._int8 is None:
            return self._product(x, weight, bias)
        columns, scales = quantize_columns(weight, self._int8.limit)
        inputs = [x, self._constant(columns), self._constant(scales), "", self._constant(bias)]
        return self._node("DynamicQuantizeMatMul", inputs, domain=CONTRIB)

    def _rectified_linear(self, x: str, name: str) -> str:
        """Of the positive parts of ``x``: zero is the lowest level, and takes all that is below."""
        if self._int8 is None:
            return self._linear(self._node("Relu", [x]), name)
        peak = self._node("ReduceMax", [x], keepdims=0)
        peak = self._node("Max", [peak, self._constant(np.float32(LEAST_PEAK))])
        scale = self._node("Div", [peak, self._constant(np.float32(HIGHEST_LEVEL))])
        zero = self._constant(np.uint8(0))
        levels = self._node("QuantizeLinear", [x, scale, zero])
        return self._int8_product([levels, scale, zero], *self._layer(name), self._int8)

    def _int8_product(
        self, quantized: Sequence[str], weight: Array, bias: Array, int8: Int8
    ) -> str:
        """``quantized`` are the levels of the input, their scale and the level of zero."""
        levels, scale, zero = quantized
        columns, scales = (self._constant(one) for one in quantize_columns(weight, int8.limit))
        inputs = [levels, columns, scale, scales, zero, "", self._constant(bias)]
        return self._node("MatMulIntegerToFloat", inputs, domain=CONTRIB)

    def _product(self, x: str, weight: Array, bias: Array) -> str:
        product = self._node("MatMul", [x, self._constant(weight.T)])
        return self._node("Add", [product, self._constant(bias)])

    def _memory(self, value: str, name: str) -> str:
        """As an image one high: onnxruntime has a blocked depthwise kernel for images alone."""
        taps = self._weights[name].copy()
        channels, _, kernel_size = taps.shape
        taps[:, 0, kernel_size // 2] += 1.0
        axis = self._constant(np.array([1]))
        image = self._node("Unsqueeze", [value, axis])
        image = self._node("Transpose", [image], perm=[0, 3, 1, 2])
        image = self._node(
            "Conv",
            [image, self._constant(taps[:, :, None])],
            group=channels,
            kernel_shape=[1, kernel_size],
            pads=[0, kernel_size // 2, 0, kernel_size // 2],
        )
        image = self._node("Transpose", [image], perm=[0, 2, 3, 1])
        return self._node("Squeeze", [image, axis])

    def _norm(self, x: str, name: str) -> str:
        scale, shift = (self._constant(values) for values in self._layer(name))
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
        inputs = [value("x", TensorProto.FLOAT, [1, "T", config.input_size])]
        outputs = [
            value("ids", TensorProto.INT64, [1, "T"]),
            value("hidden", TensorProto.FLOAT, [1, "T", config.output_size]),
            value("logits", TensorProto.FLOAT, [1, "T", None]),
        ]
        graph = helper.make_graph(self._nodes, "sensevoice", inputs, outputs, self._constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
