"""Train the demo model: ``python -m training.train [--out DIR]``, or ``make demo-model``.

The loss is upstream's (CTC over the audio positions, cross-entropy over the four prompt positions)
plus a cross-entropy that ties each token to frames of its word, so that the demo's CTC alignment
tells true times. Every choice is drawn from fixed seeds.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.make_model import CONFIG, configuration_json
from sensevoice_service.encoder import EncoderConfig, SenseVoice
from sensevoice_service.frontend import Cmvn, read_cmvn, stack_lfr
from sensevoice_service.types import LFR_SHIFT_FRAMES, PROMPT_FRAMES
from training.corpus import (
    Joining,
    Utterance,
    compute_cmvn,
    make_corpus,
    make_noises,
    takes,
    write_cmvn,
)
from training.lexicon import BLANK_ID, Language, pieces, sentencepiece_model, spell

DEMO_FOLDER = Path(__file__).parents[1] / "sensevoice_service" / "demo_model"
BPE_MODEL_NAME = "demo.bpe.model"
IGNORE = -100
LANGUAGE_PROMPTS = {"auto": 0, "zh": 3, "en": 4}
# The demo knows no Cantonese, Japanese or Korean: their prompts are taught to mean "auto".
FOREIGN_PROMPTS = (7, 11, 12, 13)
ITN_ROWS = {True: 14, False: 15}
FrameTargets = Literal["word", "onset"]


@dataclass(frozen=True)
class Stage:
    """A corpus of its own, gone through ``epochs`` times in one cycle of the learning rate."""

    seed: int
    n_utterances: int
    epochs: int
    peak_learning_rate: float
    frame_loss_weight: float
    frame_targets: FrameTargets
    joining: Joining


@dataclass(frozen=True)
class Recipe:
    """Everything the result depends on, besides the machine's arithmetic.

    The first stage ties tokens to all frames of their words, which is quick to learn. It leaves
    frames where words meet undecided, and the arg-max there stutters or joins a word said twice; so
    the second leans on CTC and asks for a token in the one frame where its word begins. The
    finishes are about speech without pauses, where the sounds of a word's ends are cut: each goes
    on from the second stage by itself, and the model is the mean of their weights, which errs less
    than any of them (Wortsman et al., 2022, "Model soups", https://arxiv.org/abs/2203.05482).
    """

    stages: tuple[Stage, ...] = (
        Stage(20_260, 40_000, 6, 2e-3, 0.3, "word", Joining(joined=0.15, trimmed=0.0)),
        Stage(120_260, 50_000, 5, 1e-3, 0.1, "onset", Joining(joined=0.25, trimmed=0.4)),
    )
    finishes: tuple[Stage, ...] = (
        Stage(220_260, 18_000, 2, 4e-4, 0.1, "onset", Joining(joined=0.5, trimmed=0.75)),
        Stage(220_260, 30_000, 2, 4e-4, 0.1, "onset", Joining(joined=0.6, trimmed=0.8)),
        Stage(320_260, 20_000, 2, 4e-4, 0.1, "onset", Joining(joined=0.6, trimmed=0.8)),
    )
    n_noises: int = 1_500
    batch_frames: int = 2_400
    weight_decay: float = 0.01
    output_size: int = 160
    attention_heads: int = 4
    linear_units: int = 640
    num_blocks: int = 5
    tp_blocks: int = 2


@dataclass(frozen=True, eq=False)
class Example:
    """One take, ready for the network; ``frame_targets (T,)`` is −100 where nothing is known."""

    features: Tensor
    language_row: int
    itn_row: int
    prompt_targets: tuple[int, int, int, int]
    tokens: tuple[int, ...]
    frame_targets: NDArray[np.int64]


class ExampleMaker:
    """Turns takes into examples: prompts drawn, masks laid, targets spelled."""

    def __init__(self, cmvn: Cmvn, rng: np.random.Generator, frame_targets: FrameTargets) -> None:
        self._cmvn = cmvn
        self._rng = rng
        self._lay = lay_words if frame_targets == "word" else lay_onsets
        self._ids = {piece: index for index, piece in enumerate(pieces())}

    def __call__(self, take: Sequence[Utterance]) -> Example:
        use_itn = bool(self._rng.random() < 0.5)
        skip = int(self._rng.integers(LFR_SHIFT_FRAMES))  # so that no LFR phase is preferred
        frames = np.concatenate([u.frames for u in take])[skip:].astype(np.float32)
        features = stack_lfr(torch.from_numpy(self._mask(frames)))
        tokens, targets = self._spell(take, use_itn, len(features), skip)
        return Example(
            features=(features + self._cmvn.shift) * self._cmvn.scale,
            language_row=self._language_row(take),
            itn_row=ITN_ROWS[use_itn],
            prompt_targets=self._prompt_targets(take, use_itn),
            tokens=tuple(tokens),
            frame_targets=targets,
        )

    def _spell(
        self, take: Sequence[Utterance], use_itn: bool, n_frames: int, skip: int
    ) -> tuple[list[int], NDArray[np.int64]]:
        tokens: list[int] = []
        targets = np.full(n_frames, BLANK_ID, np.int64)
        offset = -skip
        for utterance in take:
            spelled = spell(utterance.words, utterance.language, use_itn=use_itn)
            bounds = [*utterance.starts.tolist(), utterance.end]
            for word, start, end in zip(spelled, bounds, bounds[1:], strict=False):
                ids = [self._ids[piece] for piece in word]
                tokens += ids
                self._lay(targets, ids, (offset + start) / 6, (offset + end) / 6)
            offset += len(utterance.frames)
        return tokens, targets

    def _mask(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """SpecAugment (Park et al., 2019): bands set to their mean, and short stretches of time."""
        frames = frames.copy()
        mean = -self._cmvn.shift[:80].numpy()
        for _ in range(2):
            width = int(self._rng.integers(0, 13))
            low = int(self._rng.integers(0, 80 - width))
            frames[:, low : low + width] = mean[low : low + width]
        if self._rng.random() < 0.3:
            width = int(self._rng.integers(1, 8))
            start = int(self._rng.integers(0, max(1, len(frames) - width)))
            frames[start : start + width] = mean
        return frames

    def _language_row(self, take: Sequence[Utterance]) -> int:
        choice = self._rng.random()
        languages = {u.language for u in take if u.words}
        if choice < 0.1:
            return int(self._rng.choice(FOREIGN_PROMPTS))
        if choice < 0.55 or len(languages) > 1:
            return LANGUAGE_PROMPTS["auto"]
        language = languages.pop() if languages else self._rng.choice(("zh", "en"))
        return LANGUAGE_PROMPTS[language]

    def _prompt_targets(
        self, take: Sequence[Utterance], use_itn: bool
    ) -> tuple[int, int, int, int]:
        spoken: dict[Language, int] = {}
        for utterance in take:
            if utterance.words:
                seen = spoken.get(utterance.language, 0)
                spoken[utterance.language] = seen + len(utterance.frames)
        itn = "<|withitn|>" if use_itn else "<|woitn|>"
        if spoken:
            main = max(spoken, key=lambda language: spoken[language])
            tags = (f"<|{main}|>", "<|NEUTRAL|>", "<|Speech|>", itn)
        else:
            tags = ("<|nospeech|>", "<|EMO_UNKNOWN|>", "<|Event_UNK|>", itn)
        language, emotion, event, textnorm = (self._ids[tag] for tag in tags)
        return language, emotion, event, textnorm


def lay_words(targets: NDArray[np.int64], ids: Sequence[int], start: float, end: float) -> None:
    """Write a word's tokens over its frames, in equal parts; the frame at a joint is left open.

    Like tokens that meet keep a blank between them, or CTC would join them.
    """
    if not ids:
        return
    bounds = np.linspace(start, end, len(ids) + 1)
    for token, low, high in zip(ids, bounds, bounds[1:], strict=False):
        first, last = max(0, math.ceil(low - 0.3)), min(len(targets) - 1, math.floor(high - 0.5))
        if first > last:
            continue
        if first > 0 and targets[first - 1] == token:
            targets[first - 1] = BLANK_ID
        targets[first : last + 1] = token
        if high - math.floor(high) > 0.2 and last + 1 < len(targets):
            targets[last + 1] = IGNORE


def lay_onsets(targets: NDArray[np.int64], ids: Sequence[int], start: float, end: float) -> None:
    """Write a word's tokens where each begins, its word in equal parts; the frames beside are open.

    A token whose frame is taken goes to the next one, or CTC could not tell both.
    """
    for token, onset in zip(ids, np.linspace(start, end, len(ids), endpoint=False), strict=True):
        frame = max(0, round(float(onset)))
        if frame < len(targets) and targets[frame] > BLANK_ID:
            frame += 1
        beside = targets[max(0, frame - 1) : frame + 2]
        beside[beside == BLANK_ID] = IGNORE
        targets[frame : frame + 1] = token


@dataclass(frozen=True, eq=False)
class Batch:
    features: Tensor
    n_frames: Tensor
    language_rows: Tensor
    textnorm_rows: Tensor
    prompt_targets: Tensor
    tokens: Tensor
    n_tokens: Tensor
    frame_targets: Tensor


def collate(examples: Sequence[Example]) -> Batch:
    pad = torch.nn.utils.rnn.pad_sequence
    frame_targets = [torch.from_numpy(e.frame_targets) for e in examples]
    return Batch(
        features=pad([e.features for e in examples], batch_first=True),
        n_frames=torch.tensor([len(e.features) for e in examples]),
        language_rows=torch.tensor([e.language_row for e in examples]),
        textnorm_rows=torch.tensor([e.itn_row for e in examples]),
        prompt_targets=torch.tensor([e.prompt_targets for e in examples]),
        tokens=torch.tensor([token for e in examples for token in e.tokens], dtype=torch.long),
        n_tokens=torch.tensor([len(e.tokens) for e in examples]),
        frame_targets=pad(frame_targets, batch_first=True, padding_value=IGNORE),
    )


def group(
    rng: np.random.Generator, takes_of_epoch: Sequence[list[Utterance]], batch_frames: int
) -> list[list[int]]:
    """Takes of like length together, at most ``batch_frames`` padded frames, in random order."""
    lengths = np.array([sum(len(u.frames) for u in take) // 6 + 1 for take in takes_of_epoch])
    order = np.argsort(lengths + rng.uniform(0, 8, len(lengths)), kind="stable")
    groups: list[list[int]] = [[]]
    for index in order.tolist():
        if groups[-1] and (len(groups[-1]) + 1) * lengths[index] > batch_frames:
            groups.append([])
        groups[-1].append(index)
    return [groups[position] for position in rng.permutation(len(groups))]


def loss_of(model: SenseVoice, batch: Batch, frame_loss_weight: float) -> Tensor:
    # bf16 is twice as fast where the CPU has it; fused attention is slow backwards on a CPU.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        logits = model(batch.features, batch.n_frames, batch.language_rows, batch.textnorm_rows)
    log_probs = logits.float().log_softmax(dim=-1)
    prompts, audio = log_probs[:, :PROMPT_FRAMES], log_probs[:, PROMPT_FRAMES:]
    ctc = F.ctc_loss(
        audio.transpose(0, 1), batch.tokens, batch.n_frames, batch.n_tokens,
        blank=BLANK_ID, reduction="sum", zero_infinity=True,
    )  # fmt: skip
    prompt = F.nll_loss(prompts.flatten(0, 1), batch.prompt_targets.flatten(), reduction="sum")
    frame = F.nll_loss(
        audio.flatten(0, 1), batch.frame_targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return (ctc + 0.5 * prompt + frame_loss_weight * frame) / batch.n_frames.sum()


def train(recipe: Recipe, out: Path, n_threads: int, first_stage: int) -> None:
    """Run the stages from ``first_stage`` on, the ones before it being those of ``out``."""
    torch.manual_seed(recipe.stages[0].seed)
    model = SenseVoice(encoder_config(recipe)).train()
    cmvn = None
    if first_stage:
        model.load_state_dict(torch.load(out / "model.pt", weights_only=True))
        cmvn = read_cmvn(out / "am.mvn")
    for stage in recipe.stages[first_stage:]:
        cmvn = run_stage(model, recipe, stage, cmvn, out, n_threads)
    start, ends = copy.deepcopy(model.state_dict()), []
    for stage in recipe.finishes:
        model.load_state_dict(start)
        cmvn = run_stage(model, recipe, stage, cmvn, out, n_threads)
        ends.append(copy.deepcopy(model.state_dict()))
    if cmvn and ends:
        model.load_state_dict(mean_of(ends))
        write_folder(out, recipe, cmvn, model)


def run_stage(
    model: SenseVoice, recipe: Recipe, stage: Stage, cmvn: Cmvn | None, out: Path, n_threads: int
) -> Cmvn:
    """Speak the corpus and fit the model to it; what there is after each pass is written down."""
    began_s = time.monotonic()
    corpus = make_corpus(stage.seed, stage.n_utterances, os.cpu_count() or 1)
    noises = make_noises(stage.seed - 1, recipe.n_noises)
    hours = sum(len(u.frames) for u in corpus) / 360_000
    spent_s = time.monotonic() - began_s
    print(f"{len(corpus)} utterances, {hours:.1f} h, {spent_s:.0f} s", flush=True)
    cmvn = cmvn or compute_cmvn(corpus)
    torch.set_num_threads(n_threads)
    # Of autocast's bf16, attention in plain steps would make fp32 again, at three times the cost.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    for _ in fit(model, recipe, stage, cmvn, corpus, noises):
        write_folder(out, recipe, cmvn, model)
    return cmvn


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}


def fit(
    model: SenseVoice,
    recipe: Recipe,
    stage: Stage,
    cmvn: Cmvn,
    corpus: Sequence[Utterance],
    noises: Sequence[Utterance],
) -> Iterator[int]:
    """AdamW with one cycle of the learning rate over the whole stage; yields after each epoch."""
    began_s = time.monotonic()
    rng = np.random.default_rng(stage.seed)
    make = ExampleMaker(cmvn, rng, stage.frame_targets)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=recipe.weight_decay)
    for epoch in range(stage.epochs):
        takes_of_epoch = list(takes(rng, corpus, noises, stage.joining))
        groups, losses = group(rng, takes_of_epoch, recipe.batch_frames), list[float]()
        for step, indices in enumerate(groups):
            batch = collate([make(takes_of_epoch[index]) for index in indices])
            loss = loss_of(model, batch, stage.frame_loss_weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            done = (epoch + step / len(groups)) / stage.epochs
            for parameters in optimizer.param_groups:
                parameters["lr"] = stage.peak_learning_rate * one_cycle(done)
            optimizer.step()
            losses.append(loss.item())
            if step % 50 == 49:
                passed_s = time.monotonic() - began_s
                recent = np.mean(losses[-50:])
                where = f"epoch {epoch + 1} step {step + 1}/{len(groups)}"
                print(f"{where}: loss {recent:.4f}, {passed_s:.0f} s", flush=True)
        yield epoch


def one_cycle(done: float, warm_up: float = 0.1) -> float:
    """Share of the peak rate when ``done`` of the run has passed: up and down by cosines.

    Smith and Topin, 2017, "Super-Convergence", https://arxiv.org/abs/1708.07120.
    """
    if done < warm_up:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * done / warm_up)) / 2
    return 1e-4 + (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up))) / 2


def encoder_config(recipe: Recipe) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=len(pieces()),
        output_size=recipe.output_size,
        attention_heads=recipe.attention_heads,
        linear_units=recipe.linear_units,
        num_blocks=recipe.num_blocks,
        tp_blocks=recipe.tp_blocks,
    )


def write_folder(out: Path, recipe: Recipe, cmvn: Cmvn, model: SenseVoice) -> None:
    """Lay the model out as the published folder; weights are rounded to fp16, half the size."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "am.mvn").write_text(write_cmvn(cmvn), encoding="utf-8")
    (out / BPE_MODEL_NAME).write_bytes(sentencepiece_model())
    (out / "config.yaml").write_text(yaml.safe_dump(folder_config(recipe), sort_keys=False))
    configuration = configuration_json(BPE_MODEL_NAME, ms_id="", hf_id="")
    (out / "configuration.json").write_text(configuration)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=2) + "\n")
    weights = {name: value.to(torch.float16) for name, value in model.state_dict().items()}
    torch.save(weights, out / "model.pt")


def folder_config(recipe: Recipe) -> dict[str, object]:
    """``config.yaml`` as FunASR reads it: the published one in other dimensions."""
    parts = ("encoder", "model", "tokenizer", "frontend")
    kept = {key: CONFIG[key] for part in parts for key in (part, f"{part}_conf")}
    dimensions = {
        "output_size": recipe.output_size,
        "attention_heads": recipe.attention_heads,
        "linear_units": recipe.linear_units,
        "num_blocks": recipe.num_blocks,
        "tp_blocks": recipe.tp_blocks,
    }
    return {**kept, "encoder_conf": {**CONFIG["encoder_conf"], **dimensions}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DEMO_FOLDER, help="folder to write")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument(
        "--stage", type=int, default=0, help="go on from here with what is in --out"
    )
    arguments = parser.parse_args()
    train(Recipe(), arguments.out, arguments.threads, arguments.stage)


if __name__ == "__main__":
    main()
