"""Print how far our front end, network and texts are from FunASR's, in fp32 on the CPU.

``python -m bench.parity [--model DIR]``, or ``make parity``; a full-size folder can be made by
``python -m bench.make_model DIR``. The bound that the tests hold noise, tones and the
logits to is printed too; here nothing is held to it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.reference import FunAsr
from sensevoice_service.encoder import SenseVoice
from sensevoice_service.engine import EngineFiles, load_engine
from sensevoice_service.frontend import LANGUAGE_ROWS, WITH_ITN_ROW, WITHOUT_ITN_ROW
from sensevoice_service.loading import EngineOptions, OpenModel, open_model
from sensevoice_service.model_store import open_folder
from sensevoice_service.types import PROMPT_FRAMES, SAMPLE_RATE_HZ, Chunk, DecodeOptions
from training.corpus import draw_script, speak
from training.lexicon import WIDE
from training.speech import Espeak, random_noise
from training.train import DEMO_FOLDER

BOUND = 1e-4
SEED = 9_000_000
LENGTHS_FRAMES = (1, 2, 3, 7, 20, 50, 100, 333, 500, 1_000)
N_UTTERANCES = 24


def make_waveforms(n: int) -> list[NDArray[np.float32]]:
    """Synthetic speech in both languages, every third under noise."""
    rng, espeak = np.random.default_rng(SEED), Espeak()
    waveforms = []
    for index in range(n):
        samples, _ = speak(rng, espeak, draw_script(rng, WIDE, "zh" if index % 2 else "en"))
        if index % 3 == 0:
            samples = samples + random_noise(rng, len(samples), -30)
        waveforms.append(samples.astype(np.float32))
    return waveforms


def random_features(lengths: Sequence[int]) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    rows = [torch.randn(length, 560, generator=generator) for length in lengths]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@torch.inference_mode()
def logits_difference(network: SenseVoice, funasr: FunAsr, lengths: Sequence[int]) -> float:
    """Largest difference over largest logit, of the real frames of one batch of mixed prompts."""
    features = random_features(lengths)
    rows = list(LANGUAGE_ROWS.values())
    languages = [rows[i % len(rows)] for i in range(len(lengths))]
    norms = [(WITH_ITN_ROW, WITHOUT_ITN_ROW)[i % 2] for i in range(len(lengths))]
    n_frames = torch.tensor(lengths)
    ours = network(features, n_frames, torch.tensor(languages), torch.tensor(norms))
    theirs = funasr.logits(features, lengths, languages, norms)
    pairs = [
        (mine[: PROMPT_FRAMES + length], other[: PROMPT_FRAMES + length])
        for mine, other, length in zip(ours, theirs, lengths, strict=True)
    ]
    return max(float((mine - other).abs().max() / other.abs().max()) for mine, other in pairs)


def count_same_texts(
    served: OpenModel, funasr: FunAsr, waveforms: Sequence[NDArray[np.float32]]
) -> tuple[int, int]:
    """How many texts, tags included, are to the letter those of ``AutoModel.generate``."""
    same = total = 0
    for language in ("auto", "zh", "en"):
        for use_itn in (False, True):
            options = DecodeOptions(language, use_itn)
            for waveform in waveforms:
                (heard,) = served.engine([Chunk(waveform, 0, 0, options)])
                first_frame = int(heard.first_frames[0]) if len(heard.first_frames) else 0
                ours = served.vocabulary.raw(
                    heard.prompt_ids, heard.token_ids, first_frame=first_frame
                )
                same += ours == funasr.text(waveform, language, use_itn)
                total += 1
    return same, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO_FOLDER)
    parser.add_argument("--utterances", type=int, default=N_UTTERANCES)
    arguments = parser.parse_args()
    folder = open_folder(arguments.model)
    served = open_model(folder, EngineOptions("cpu", "off"))
    files = EngineFiles(folder.config_yaml, folder.checkpoint, folder.cmvn)
    engine = load_engine(files, served.vocabulary.size, torch.device("cpu"), "fp32")
    funasr = FunAsr(arguments.model)
    print(f"{arguments.model.name}: {engine.n_parameters:,} parameters; bound {BOUND:g}")

    waveforms = make_waveforms(arguments.utterances)
    features, lengths = engine.frontend.features(waveforms)
    theirs = [funasr.features(waveform) for waveform in waveforms]
    worst = max(
        float((mine[:n] - other).abs().max())
        for mine, other, n in zip(features, theirs, lengths, strict=True)
    )
    duration_s = sum(map(len, waveforms)) / SAMPLE_RATE_HZ
    print(f"features, {len(waveforms)} utterances ({duration_s:.0f} s): {worst:.1e} at most")

    for n_frames in LENGTHS_FRAMES:
        difference = logits_difference(engine.model, funasr, [n_frames])
        print(f"logits, {n_frames} frames alone: {difference:.1e} of the largest")
    mixed = LENGTHS_FRAMES[:-1]
    difference = logits_difference(engine.model, funasr, mixed)
    print(f"logits, a batch of {', '.join(map(str, mixed))} frames: {difference:.1e}")

    same, total = count_same_texts(served, funasr, waveforms)
    print(f"texts with tags, auto, zh and en, with and without ITN: {same} of {total} the same")


if __name__ == "__main__":
    main()
