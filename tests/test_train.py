"""The demo model's training: its pure parts, and a very small recipe as a whole."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from sensevoice_service.check_utterance import check_chunk
from sensevoice_service.frontend import Cmvn
from sensevoice_service.loading import EngineOptions, open_model
from sensevoice_service.model_store import open_folder
from training.corpus import MAX_WORDS, Joining, Utterance, draw_training_script, trim
from training.lexicon import BLANK_ID
from training.speech import random_noise
from training.train import (
    IGNORE,
    ExampleMaker,
    FrameTargets,
    Recipe,
    Stage,
    collate,
    group,
    lay_onsets,
    lay_words,
    mean_of,
    one_cycle,
    train,
)


def utterance(words: tuple[str, ...], starts: list[int], end: int, n_frames: int) -> Utterance:
    frames = np.random.default_rng(0).normal(size=(n_frames, 80)).astype(np.float16)
    return Utterance(words, "en", frames, np.array(starts), starts[0] if starts else 0, end)


def maker(frame_targets: FrameTargets = "onset") -> ExampleMaker:
    cmvn = Cmvn(torch.zeros(560), torch.ones(560))
    return ExampleMaker(cmvn, np.random.default_rng(0), frame_targets)


def onsets(*words: tuple[list[int], float, float], n_frames: int = 10) -> list[int]:
    targets = np.full(n_frames, BLANK_ID, np.int64)
    for ids, start, end in words:
        lay_onsets(targets, ids, start, end)
    return targets.tolist()


def test_a_token_is_wanted_in_the_frame_where_its_word_begins() -> None:
    assert onsets(([5], 3.2, 9.0)) == [0, 0, IGNORE, 5, IGNORE, 0, 0, 0, 0, 0]
    assert onsets(([5], 3.6, 9.0)) == [0, 0, 0, IGNORE, 5, IGNORE, 0, 0, 0, 0]


def test_tokens_of_a_word_share_it_in_equal_parts() -> None:
    found = onsets(([5, 6], 2.0, 8.0))
    assert [found.index(5), found.index(6)] == [2, 5]


def test_a_token_whose_frame_is_taken_goes_to_the_next() -> None:
    assert onsets(([5], 3.1, 3.4), ([6], 3.4, 8.0))[2:6] == [IGNORE, 5, 6, IGNORE]


def test_what_begins_outside_the_take_is_left_out() -> None:
    assert onsets(([5], -0.4, 3.0), n_frames=3) == [5, IGNORE, 0]
    assert onsets(([5], 2.9, 3.0), n_frames=3) == [0, 0, IGNORE]
    assert onsets(([], 0.0, 3.0), n_frames=3) == [0, 0, 0]


def test_a_word_fills_its_frames_in_the_first_stage() -> None:
    targets = np.full(8, BLANK_ID, np.int64)
    lay_words(targets, [5], 1.0, 4.0)
    lay_words(targets, [5], 4.0, 7.0)
    assert targets.tolist() == [0, 5, 5, 0, 5, 5, 5, 0]


@pytest.mark.parametrize("frame_targets", ["word", "onset"])
def test_an_example_carries_its_tokens_where_they_are_spoken(frame_targets: FrameTargets) -> None:
    take = [utterance((), [], 0, 60), utterance(("hello", "world"), [12, 60], 100, 120)]
    example = maker(frame_targets)(take)
    assert example.features.shape == (len(example.frame_targets), 560)
    wanted = example.frame_targets[example.frame_targets > BLANK_ID]
    assert tuple(dict.fromkeys(wanted.tolist())) == example.tokens
    assert len(example.tokens) == 2
    first = int(np.flatnonzero(example.frame_targets > BLANK_ID)[0])
    assert abs(first - (60 + 12) / 6) <= 1.5


def test_a_batch_pads_with_frames_of_which_nothing_is_known() -> None:
    make = maker()
    short, long = (make([utterance(("hello",), [0], 50, n_frames)]) for n_frames in (60, 200))
    batch = collate([short, long])
    assert batch.frame_targets.shape == batch.features.shape[:2]
    assert (batch.frame_targets[0, len(short.features) :] == IGNORE).all()
    assert batch.n_frames.tolist() == [len(short.features), len(long.features)]


def test_groups_hold_every_take_once_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    takes = [[utterance((), [], 0, int(rng.integers(30, 900)))] for _ in range(60)]
    groups = group(rng, takes, batch_frames=400)
    assert sorted(index for indices in groups for index in indices) == list(range(60))
    for indices in groups:
        longest = max(len(takes[index][0].frames) // 6 + 1 for index in indices)
        assert longest * len(indices) <= 400


def test_the_learning_rate_goes_up_and_down_once() -> None:
    rates = [one_cycle(done / 100) for done in range(101)]
    peak = int(np.argmax(rates))
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) == pytest.approx(1.0, abs=1e-3)
    assert rates[-1] < 1e-3


def test_a_trimmed_utterance_keeps_its_words_where_they_are() -> None:
    whole = utterance(("hello", "world"), [12, 60], 100, 120)
    trimmed = trim(whole)
    assert len(trimmed.frames) == trimmed.end + 1 == 89
    for before, after in zip(whole.starts, trimmed.starts, strict=True):
        assert np.array_equal(whole.frames[before], trimmed.frames[after])


def test_a_share_of_the_sequences_says_a_word_twice_running() -> None:
    rng = np.random.default_rng(0)
    scripts = [draw_training_script(rng) for _ in range(2_000)]
    doubled = [any(a == b for a, b in pairwise(script.words)) for script in scripts]
    assert 0.2 < np.mean(doubled) < 0.4
    assert all(1 <= len(script.words) <= MAX_WORDS for script in scripts)


@pytest.mark.parametrize("n_samples", [1, 400, 15_991, 65_536])
def test_noise_has_the_length_and_the_level_that_are_asked_for(n_samples: int) -> None:
    noise = random_noise(np.random.default_rng(0), n_samples, -40)
    assert noise.shape == (n_samples,)
    assert 10 * np.log10(np.mean(noise.astype(np.float64) ** 2)) == pytest.approx(-40, abs=0.01)


def test_the_mean_of_weights_is_that_of_each() -> None:
    states = [{"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, 6.0])}]
    assert mean_of(states)["a"].tolist() == [2.0, 4.0]


@pytest.mark.usefixtures("espeak")  # which speaks in processes of the corpus' own
def test_a_recipe_leaves_a_folder_that_can_be_served(tmp_path: Path) -> None:
    joining = Joining(joined=0.0, trimmed=0.5)
    first = Stage(1, 8, 1, 1e-3, 0.3, "word", joining)
    ends = (replace(first, seed=2, frame_targets="onset"), replace(first, seed=3))
    small = {"output_size": 32, "linear_units": 32, "num_blocks": 2, "tp_blocks": 1}
    recipe = Recipe(stages=(first,), finishes=ends, n_noises=2, **small)
    train(recipe, tmp_path, n_threads=1, first_stage=0)
    assert len(json.loads((tmp_path / "recipe.json").read_text())["finishes"]) == 2
    opened = open_model(open_folder(tmp_path), EngineOptions("cpu", "off"))
    assert len(opened.engine([check_chunk()])) == 1
