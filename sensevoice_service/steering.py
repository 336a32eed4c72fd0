"""An engine that also does what a request asks beyond the arg-max: hot words, and languages.

Plain chunks go to the engine as they are, at its full speed. For the others the logits are read: a
chunk whose language is not among those that its request names is heard again in the one of them
that the language position finds likeliest, and hot words are looked for by beam search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from sensevoice_service.beam_search import LEAST_LOG_PROB, FrameScores, prefer
from sensevoice_service.ctc import BLANK_ID, best_path
from sensevoice_service.engine import Precision, noise_chunk
from sensevoice_service.frontend import FeatureBatch, Frontend
from sensevoice_service.hotwords import HotWords, make_hot_words
from sensevoice_service.tags import NO_SPEECH, Vocabulary
from sensevoice_service.types import (
    LANGUAGES,
    PROMPT_FRAMES,
    Chunk,
    DecodeOptions,
    Hypothesis,
)

# Tokens of each unsure frame that the search may choose from, hot words aside.
TOP_TOKENS = 8
# Lists of hot words whose automata are kept: all chunks of a file have the same one.
KEPT_LISTS = 16

T = TypeVar("T")


class AnyEngine(Protocol):
    """What the service asks of an engine; all of them are wrapped in a ``SteeredEngine``."""

    frontend: Frontend
    precision: Precision
    device: torch.device
    n_parameters: int

    def __call__(self, chunks: Sequence[Chunk]) -> list[Hypothesis]: ...

    def infer(self, batch: FeatureBatch) -> list[Hypothesis]: ...

    def warm_up(self, shapes: Sequence[tuple[int, float]]) -> None: ...

    def gpu_memory(self) -> dict[str, int] | None: ...


class Legible(AnyEngine, Protocol):
    """An engine whose logits can be read: all but a ``SteeredEngine``."""

    def read_logits(self, chunks: Sequence[Chunk], read: Callable[[int, Tensor], T]) -> list[T]: ...


@dataclass(frozen=True, eq=False)
class _Reading:
    """What is kept of a chunk's logits: the arg-max, and what its options ask for."""

    greedy: Hypothesis
    language_scores: tuple[float, ...]
    frame_scores: FrameScores | None


class SteeredEngine:
    """Chunks in, hypotheses out; threads may share it where they may share the engine within."""

    def __init__(self, engine: Legible, vocabulary: Vocabulary) -> None:
        self.frontend = engine.frontend
        self.precision: Precision = engine.precision
        self.device = engine.device
        self.n_parameters = engine.n_parameters
        self._engine = engine
        self._vocabulary = vocabulary
        self._language_ids = vocabulary.tag_ids(LANGUAGES)
        self._hot_words = lru_cache(KEPT_LISTS)(partial(make_hot_words, vocabulary=vocabulary))

    def __call__(self, chunks: Sequence[Chunk]) -> list[Hypothesis]:
        steered = [i for i, chunk in enumerate(chunks) if not chunk.options.is_plain]
        if not steered:
            return self._engine(chunks)
        plain = [i for i, chunk in enumerate(chunks) if chunk.options.is_plain]
        heard = dict(zip(steered, self._steer([chunks[i] for i in steered]), strict=True))
        if plain:
            heard.update(zip(plain, self._engine([chunks[i] for i in plain]), strict=True))
        return [heard[i] for i in range(len(chunks))]

    def infer(self, batch: FeatureBatch) -> list[Hypothesis]:
        """Greedy CTC: features do not carry their requests' wishes."""
        return self._engine.infer(batch)

    def warm_up(self, shapes: Sequence[tuple[int, float]]) -> None:
        """As the engine within, and one steered chunk of the longest duration."""
        self._engine.warm_up(shapes)
        noise = noise_chunk(max(duration_s for _, duration_s in shapes))
        among = tuple(self._language_ids)[:1]
        self([replace(noise, options=DecodeOptions(among=among, hotwords=("a",)))])

    def gpu_memory(self) -> dict[str, int] | None:
        return self._engine.gpu_memory()

    def _steer(self, chunks: Sequence[Chunk]) -> Iterator[Hypothesis]:
        readings = self._read(chunks)
        languages = {
            i: language
            for i, reading in enumerate(readings)
            if (language := self._required_language(reading, chunks[i].options))
        }
        if languages:
            again = self._read([_in_language(chunks[i], name) for i, name in languages.items()])
            for (i, name), reading in zip(languages.items(), again, strict=True):
                readings[i] = replace(reading, greedy=self._report(name, reading.greedy))
        for chunk, reading in zip(chunks, readings, strict=True):
            yield self._conclude(reading, chunk.options)

    def _read(self, chunks: Sequence[Chunk]) -> list[_Reading]:
        """The logits of a row are gone before those of the next are made."""
        lists = [self._hot_words(chunk.options.hotwords) for chunk in chunks]

        def read(row: int, logits: Tensor) -> _Reading:
            ids = logits.argmax(dim=-1).to(torch.int32)
            languages = logits[0, list(self._language_ids.values())]
            hot_ids = lists[row].token_ids
            return _Reading(
                greedy=best_path(ids.cpu().numpy()),
                language_scores=tuple(languages.tolist()),
                frame_scores=score_frames(logits, hot_ids) if hot_ids else None,
            )

        return self._engine.read_logits(chunks, read)

    def _required_language(self, reading: _Reading, options: DecodeOptions) -> str | None:
        """What to hear a chunk in, or ``None`` where what was heard is allowed, or no speech."""
        allowed = [name for name in options.among if name in self._language_ids]
        if options.language != "auto" or not allowed:
            return None
        if self._vocabulary.tags(reading.greedy.prompt_ids).language in (*allowed, NO_SPEECH):
            return None
        scores = dict(zip(self._language_ids, reading.language_scores, strict=True))
        return max(allowed, key=scores.__getitem__)

    def _report(self, language: str, heard: Hypothesis) -> Hypothesis:
        """As the prompt was, whatever the model makes of the position, unless it heard nothing."""
        if self._vocabulary.tags(heard.prompt_ids).language == NO_SPEECH:
            return heard
        return replace(heard, prompt_ids=(self._language_ids[language], *heard.prompt_ids[1:]))

    def _conclude(self, reading: _Reading, options: DecodeOptions) -> Hypothesis:
        if reading.frame_scores is None:
            return reading.greedy
        hot: HotWords = self._hot_words(options.hotwords)
        return prefer(hot, reading.frame_scores, reading.greedy)


def score_frames(logits: Tensor, wanted_ids: frozenset[int]) -> FrameScores:
    """From ``(4 + T, vocabulary)``: the likeliest tokens of unsure frames, and those wanted."""
    frames = logits[PROMPT_FRAMES:]
    total = frames.logsumexp(dim=-1, keepdim=True)
    rest = -torch.expm1(frames[:, BLANK_ID] - total[:, 0])  # the probability of all but the blank
    unsure = frames[rest > math.exp(LEAST_LOG_PROB)]
    found = unsure.topk(min(TOP_TOKENS, frames.shape[1]), dim=-1).indices.flatten()
    wanted = torch.tensor([BLANK_ID, *sorted(wanted_ids)], device=logits.device)
    ids = torch.cat((wanted, found)).unique()  # sorted, and so the blank is first
    log_probs = frames[:, ids] - total
    return FrameScores(
        token_ids=ids.to(torch.int32).cpu().numpy(),
        log_probs=log_probs.cpu().numpy().astype(np.float32),
    )


def _in_language(chunk: Chunk, language: str) -> Chunk:
    return replace(chunk, options=replace(chunk.options, language=language))
