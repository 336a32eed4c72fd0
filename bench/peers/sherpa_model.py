"""A model folder in the form that sherpa-onnx reads: ``model.int8.onnx`` and ``tokens.txt``.

The inputs, the metadata and the quantisation are those of sherpa-onnx's own
``scripts/sense-voice/export-onnx.py``: weights of ``MatMul`` in unsigned 8 bits with one scale a
tensor, activations quantised as they come. ``pip install onnx onnxruntime`` is what this needs.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sentencepiece
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from sensevoice_service import encoder
from sensevoice_service.encoder import EMOTION_ROW, EVENT_ROW, EncoderConfig, SenseVoice
from sensevoice_service.frontend import LANGUAGE_ROWS, WITH_ITN_ROW, WITHOUT_ITN_ROW, read_cmvn
from sensevoice_service.model_store import ModelFolder, open_folder
from sensevoice_service.types import LFR_SHIFT_FRAMES, LFR_STACK_FRAMES, PROMPT_FRAMES

OPSET = 17


class _Graph(nn.Module):
    """The network with the lengths and prompts that sherpa-onnx passes, int32 ``(N,)`` each.

    ``SenseVoice.encode`` reads the batch's size as a number, which tracing would write down. Of
    the positions, tracing keeps those that the encoder keeps: enough for two minutes.
    """

    def __init__(self, network: SenseVoice) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, x_length: Tensor, language: Tensor, text_norm: Tensor) -> Tensor:
        one = torch.ones_like(language)
        rows = torch.stack((language, one * EMOTION_ROW, one * EVENT_ROW, text_norm), dim=1)
        x = torch.cat((self.network.embed(rows), x), dim=1)
        return self.network.ctc(self.network.encoder(x, x_length + PROMPT_FRAMES))


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor) -> Tensor:
    """Step by step, as FunASR writes it: torch's own is exported with a search for NaN."""
    is_padding = attn_mask < 0
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    weights = scores.masked_fill(is_padding, -torch.inf).softmax(dim=-1)
    return weights.masked_fill(is_padding, 0.0) @ value


def sherpa_files(folder: Path, cache: Path) -> tuple[Path, Path]:
    """The model and its tokens, made once for a folder; takes a minute at full size."""
    made = cache / f"sherpa-{_fingerprint(folder)}"
    if not made.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            ready = Path(scratch) / "ready"
            ready.mkdir()
            _make(open_folder(folder), Path(scratch), ready)
            ready.rename(made)
    return made / "model.int8.onnx", made / "tokens.txt"


def _fingerprint(folder: Path) -> str:
    """Of the weights, by size and time, and of the sources that the graph is made from."""
    checkpoint = open_folder(folder).checkpoint.stat()
    identity = f"{folder.resolve()} {checkpoint.st_size} {checkpoint.st_mtime_ns}"
    sources = [Path(__file__).read_bytes(), Path(encoder.__file__).read_bytes()]
    return hashlib.sha256(b"".join([identity.encode(), *sources])).hexdigest()[:16]


def _make(folder: ModelFolder, scratch: Path, ready: Path) -> None:
    pieces = _pieces(folder.bpe_model)
    lines = [f"{piece} {index}\n" for index, piece in enumerate(pieces)]
    (ready / "tokens.txt").write_text("".join(lines), "utf-8")
    whole = scratch / "model.onnx"
    export_graph(_read_network(folder, len(pieces)), whole)
    _quantise(whole, ready / "model.int8.onnx", _metadata(folder, len(pieces)))


def _pieces(bpe_model: Path) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(bpe_model))
    return [processor.IdToPiece(index) for index in range(processor.GetPieceSize())]


def _read_network(folder: ModelFolder, vocab_size: int) -> SenseVoice:
    config = yaml.safe_load(folder.config_yaml.read_text("utf-8"))
    network = SenseVoice(EncoderConfig.from_yaml(config, vocab_size)).eval()
    state = torch.load(folder.checkpoint, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    network.load_state_dict({name: state[name].float() for name in network.state_dict()})
    return network


@torch.no_grad()
def export_graph(network: SenseVoice, path: Path) -> None:
    """Logits ``(N, 4 + T, vocab_size)`` of features ``(N, T, 560)``, for any ``N`` and ``T``."""
    lengths, prompts = torch.tensor([80, 100]), torch.tensor([[0, 3], [WITH_ITN_ROW] * 2])
    example = (
        torch.randn(2, 100, network.config.input_size),
        lengths.int(),
        prompts[0].int(),
        prompts[1].int(),
    )
    names = ["x", "x_length", "language", "text_norm"]
    with (
        patch.object(F, "scaled_dot_product_attention", _plain_attention),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of branches, which do not depend on the input
        torch.onnx.export(
            _Graph(network),
            example,
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=names,
            output_names=["logits"],
            dynamic_axes={name: {0: "N"} for name in names[1:]}
            | {name: {0: "N", 1: "T"} for name in ("x", "logits")},
        )


def _quantise(whole: Path, quantised: Path, metadata: dict[str, str]) -> None:
    onnx: Any = import_module("onnx")
    quantization: Any = import_module("onnxruntime.quantization")
    quantization.quantize_dynamic(
        str(whole),
        str(quantised),
        op_types_to_quantize=["MatMul"],
        weight_type=quantization.QuantType.QUInt8,
    )
    model = onnx.load(str(quantised))
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, str(quantised))


def _metadata(folder: ModelFolder, vocab_size: int) -> dict[str, str]:
    cmvn = read_cmvn(folder.cmvn)
    values: dict[str, object] = {
        "model_type": "sense_voice_ctc",
        "version": 2,
        "comment": "SenseVoiceSmall",
        "vocab_size": vocab_size,
        "lfr_window_size": LFR_STACK_FRAMES,
        "lfr_window_shift": LFR_SHIFT_FRAMES,
        "normalize_samples": 0,  # samples on the int16 scale
        "with_itn": WITH_ITN_ROW,
        "without_itn": WITHOUT_ITN_ROW,
        "neg_mean": ",".join(map(str, cmvn.shift.tolist())),
        "inv_stddev": ",".join(map(str, cmvn.scale.tolist())),
    }
    values |= {f"lang_{language}": row for language, row in LANGUAGE_ROWS.items()}
    return {key: str(value) for key, value in values.items()}
