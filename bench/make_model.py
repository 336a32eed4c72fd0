"""Make a SenseVoiceSmall folder with random weights: ``python -m bench.make_model DIR``.

It has the files, shapes and token ids of the published model, so that whatever loads and runs
that one loads and runs this one, as fast; only what it hears is noise. Nearly every frame of it is
a token, where three of four are blank with the published one: ``--blank-share 0.75`` makes it so,
for what comes behind the model to have as much to do as behind that.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from sentencepiece import sentencepiece_model_pb2

from bench.peers.audio import read_voices, speech
from sensevoice_service.ctc import BLANK_ID
from sensevoice_service.encoder import EncoderConfig, SenseVoice
from sensevoice_service.frontend import Frontend, read_cmvn
from sensevoice_service.published import PUBLISHED_IDS
from sensevoice_service.types import PROMPT_FRAMES

BPE_MODEL_NAME = "chn_jpn_yue_eng_ko_spectok.bpe.model"
VOCAB_SIZE = 25_055
FEATURE_DIM = 560  # 80 mels × 7 stacked frames
N_PARAMETERS = 233_999_167
N_CALIBRATION_CLIPS, CALIBRATION_S = 4, 5.0

TAG_IDS = {
    "zh": 24884,
    "en": 24885,
    "yue": 24888,
    "ja": 24892,
    "ko": 24896,
    "nospeech": 24992,
    "Speech": 24993,
    "BGM": 24995,
    "Laughter": 24997,
    "Applause": 24999,
    "Event_UNK": 25000,
    "HAPPY": 25001,
    "SAD": 25002,
    "ANGRY": 25003,
    "NEUTRAL": 25004,
    "EMO_UNKNOWN": 25009,
    "withitn": 25016,
    "woitn": 25017,
}
_FIRST_TAG_ID = min(TAG_IDS.values())

_SMALL_ENCODER = {"output_size": 64, "linear_units": 128, "num_blocks": 2, "tp_blocks": 1}

CONFIG: dict[str, Any] = {
    "encoder": "SenseVoiceEncoderSmall",
    "encoder_conf": {
        "output_size": 512,
        "attention_heads": 4,
        "linear_units": 2048,
        "num_blocks": 50,
        "tp_blocks": 20,
        "dropout_rate": 0.1,
        "positional_dropout_rate": 0.1,
        "attention_dropout_rate": 0.1,
        "input_layer": "pe",
        "pos_enc_class": "SinusoidalPositionEncoder",
        "normalize_before": True,
        "kernel_size": 11,
        "sanm_shfit": 0,
        "selfattention_layer_type": "sanm",
    },
    "model": "SenseVoiceSmall",
    "model_conf": {"length_normalized_loss": True, "sos": 1, "eos": 2, "ignore_id": -1},
    "tokenizer": "SentencepiecesTokenizer",
    "tokenizer_conf": {"bpemodel": None, "unk_symbol": "<unk>", "split_with_space": True},
    "frontend": "WavFrontend",
    "frontend_conf": {
        "fs": 16000,
        "window": "hamming",
        "n_mels": 80,
        "frame_length": 25,
        "frame_shift": 10,
        "lfr_m": 7,
        "lfr_n": 6,
        "cmvn_file": None,
    },
    "dataset": "SenseVoiceCTCDataset",
    "dataset_conf": {
        "index_ds": "IndexDSJsonl",
        "batch_sampler": "EspnetStyleBatchSampler",
        "data_split_num": 32,
        "batch_type": "token",
        "batch_size": 14000,
        "max_token_length": 2000,
        "min_token_length": 60,
        "max_source_length": 2000,
        "min_source_length": 60,
        "max_target_length": 200,
        "min_target_length": 0,
        "shuffle": True,
        "num_workers": 4,
        "sos": "${model_conf.sos}",
        "eos": "${model_conf.eos}",
        "IndexDSJsonl": "IndexDSJsonl",
        "retry": 20,
    },
    "train_conf": {
        "accum_grad": 1,
        "grad_clip": 5,
        "max_epoch": 20,
        "keep_nbest_models": 10,
        "avg_nbest_model": 10,
        "log_interval": 100,
        "resume": True,
        "validate_interval": 10000,
        "save_checkpoint_interval": 10000,
    },
    "optim": "adamw",
    "optim_conf": {"lr": 0.00002},
    "scheduler": "warmuplr",
    "scheduler_conf": {"warmup_steps": 25000},
    "specaug": "SpecAugLFR",
    "specaug_conf": {
        "apply_time_warp": False,
        "time_warp_window": 5,
        "time_warp_mode": "bicubic",
        "apply_freq_mask": True,
        "freq_mask_width_range": [0, 30],
        "lfr_rate": 6,
        "num_freq_mask": 1,
        "apply_time_mask": True,
        "time_mask_width_range": [0, 12],
        "num_time_mask": 1,
    },
}


def configuration_json(bpe_model_name: str, *, ms_id: str, hf_id: str) -> str:
    """Tells FunASR which file of a model folder is what; the ids may be empty."""
    configuration = {
        "framework": "pytorch",
        "task": "auto-speech-recognition",
        "model": {"type": "funasr"},
        "pipeline": {"type": "funasr-pipeline"},
        "model_name_in_hub": {"ms": ms_id, "hf": hf_id},
        "file_path_metas": {
            "init_param": "model.pt",
            "config": "config.yaml",
            "tokenizer_conf": {"bpemodel": bpe_model_name},
            "frontend_conf": {"cmvn_file": "am.mvn"},
        },
    }
    return json.dumps(configuration, indent=2) + "\n"


def make_model(
    folder: Path, *, seed: int = 0, small: bool = False, blank_share: float | None = None
) -> int:
    """Write the five files into ``folder`` and give the number of parameters.

    ``small`` shrinks the encoder to three narrow blocks and keeps the vocabulary and features.
    Of speech about ``blank_share`` of the frames are blank, if that is given.
    """
    config = {
        **CONFIG,
        "encoder_conf": {**CONFIG["encoder_conf"], **(_SMALL_ENCODER if small else {})},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    configuration = configuration_json(
        BPE_MODEL_NAME, ms_id=PUBLISHED_IDS["ms"], hf_id=PUBLISHED_IDS["hf"]
    )
    (folder / "configuration.json").write_text(configuration, "utf-8")
    (folder / "am.mvn").write_text(_cmvn(seed), "utf-8")
    (folder / BPE_MODEL_NAME).write_bytes(_bpe_model())
    weights = random_weights(config, seed)
    if blank_share is not None:
        raise_blank(weights, config, folder / "am.mvn", blank_share)
    n_parameters = sum(tensor.numel() for tensor in weights.values())
    assert small or n_parameters == N_PARAMETERS, n_parameters
    torch.save(weights, folder / "model.pt")
    return n_parameters


def random_weights(config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """The state dict, float32, of FunASR's module as it initialises itself."""
    from funasr.models.sense_voice.model import SenseVoiceSmall

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = SenseVoiceSmall(
            encoder=config["encoder"],
            encoder_conf=config["encoder_conf"],
            input_size=FEATURE_DIM,
            vocab_size=VOCAB_SIZE,
            **config["model_conf"],
        )
    weights: dict[str, torch.Tensor] = module.state_dict()
    return weights


@torch.inference_mode()
def raise_blank(
    weights: dict[str, torch.Tensor], config: dict[str, Any], cmvn: Path, share: float
) -> None:
    """Add to the blank's bias what makes ``share`` of the frames of some speech blank."""
    with torch.device("meta"):
        network = SenseVoice(EncoderConfig.from_yaml(config, VOCAB_SIZE)).eval()
    network.load_state_dict(weights, assign=True)
    frontend = Frontend(read_cmvn(cmvn), torch.device("cpu"))
    voices = read_voices()
    clips = [speech(voices, CALIBRATION_S, number) for number in range(N_CALIBRATION_CLIPS)]
    features, _ = frontend.features(clips)
    row = torch.zeros(len(clips), dtype=torch.long)
    logits = network(features, None, row, row)[:, PROMPT_FRAMES:].flatten(0, 1)
    lacking = logits[:, BLANK_ID + 1 :].amax(dim=1) - logits[:, BLANK_ID]
    weights["ctc.ctc_lo.bias"][BLANK_ID] += lacking.quantile(share)


def _cmvn(seed: int) -> str:
    """Kaldi's nnet text: shifts and scales as log-mel energies of speech have them, the same for
    each of the seven stacked frames."""
    noise = np.random.default_rng(seed)
    mel = np.linspace(0.0, 1.0, 80)
    shift = -8.5 - 5.5 * np.sqrt(mel) + noise.normal(0.0, 0.1, 80)
    scale = 0.19 - 0.03 * mel + noise.normal(0.0, 0.001, 80)
    dims = f"{FEATURE_DIM} {FEATURE_DIM}"
    return (
        f"<Nnet> \n<Splice> {dims}\n[ 0 ]\n"
        f"<AddShift> {dims} \n<LearnRateCoef> 0 [ {_numbers(shift)} ]\n"
        f"<Rescale> {dims}\n<LearnRateCoef> 0 [ {_numbers(scale)} ]\n</Nnet> \n"
    )


def _numbers(values: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    return " ".join(f"{value:.7g}" for value in np.tile(values, FEATURE_DIM // len(values)))


def _bpe_model() -> bytes:
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    kinds = proto.SentencePiece
    tags = {token_id: f"<|{name}|>" for name, token_id in TAG_IDS.items()}
    words = _words()
    for token_id in range(VOCAB_SIZE):
        if token_id < 3:
            text = ("<unk>", "<s>", "</s>")[token_id]
            kind = kinds.CONTROL if token_id else kinds.UNKNOWN
        elif token_id < _FIRST_TAG_ID:
            text, kind = next(words), kinds.NORMAL
        else:
            text, kind = tags.get(token_id, f"<|reserved-{token_id}|>"), kinds.USER_DEFINED
        score = -float(token_id) if kind == kinds.NORMAL else 0.0
        proto.pieces.add(piece=text, score=score, type=kind)
    trainer = proto.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = VOCAB_SIZE
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
    proto.normalizer_spec.name = "identity"
    content: bytes = proto.SerializeToString()
    return content


def _words() -> Iterator[str]:
    """Pieces without end, no two alike: characters, then pairs of syllables as whole words."""
    ascii_characters = [chr(code) for code in range(33, 127)]
    yield "▁"
    yield from ascii_characters
    yield from (f"▁{character}" for character in ascii_characters)
    yield from (chr(code) for code in range(0x3041, 0x3097))  # hiragana
    yield from (chr(code) for code in range(0x30A1, 0x30FB))  # katakana
    yield from (chr(code) for code in range(0x4E00, 0x4E00 + 8000))  # CJK
    yield from (chr(code) for code in range(0xAC00, 0xAC00 + 4000))  # Hangul
    yield from "，。？！、"
    syllables = [f"{first}{vowel}" for first in "bcdfghjklmnprstvwyz" for vowel in "aeiou"]
    yield from syllables
    pairs = [first + second for first, second in itertools.product(syllables, repeat=2)]
    random.Random(0).shuffle(pairs)
    for pair in pairs:
        yield f"▁{pair}"
        yield pair


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.make_model", description=__doc__)
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="a tiny encoder, for tests")
    parser.add_argument("--blank-share", type=float, help="of the frames of speech, from 0 to 1")
    options = parser.parse_args(arguments)
    n_parameters = make_model(
        options.folder,
        seed=options.seed,
        small=options.small,
        blank_share=options.blank_share,
    )
    print(f"{options.folder}: {n_parameters:,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
