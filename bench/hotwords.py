"""How many more of the words that a client expects are heard in noise, and how many are made up?

``python -m bench.hotwords [--model DIR] [--utterances N] [--seed S]``. Each sentence of the demo's
words is heard three times in strong noise: with no hot words, with a list that holds one phrase of
it, and with a list of as many phrases that it does not hold. A model of other words has no meaning
here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sensevoice_service.loading import EngineOptions, OpenModel, open_model
from sensevoice_service.model_store import open_folder
from sensevoice_service.types import Chunk, DecodeOptions, Hypothesis
from training.lexicon import WIDE, Language
from training.scoring import edit_distance, tokens_of
from training.speech import Espeak, FloatArray, random_noise, random_voice
from training.train import DEMO_FOLDER

SEED = 8_000_000  # the boost was chosen with 8,500,000
LIST_PHRASES = 5
SENTENCE_WORDS = (4, 8)
BATCH = 32

Phrase = tuple[str, ...]


@dataclass(frozen=True)
class Condition:
    """One row of the table; noise is in dB of full scale, speech is not far below 0."""

    language: Language
    phrase_words: int
    noise_db: float

    def write(self, phrase: Phrase) -> str:
        return (" " if self.language == "en" else "").join(phrase)


KINDS: tuple[tuple[Language, int], ...] = (("en", 1), ("en", 2), ("zh", 2), ("zh", 3))
CONDITIONS = tuple(
    Condition(language, phrase_words, noise_db)
    for noise_db in (-24.0, -18.0)
    for language, phrase_words in KINDS
)


@dataclass(frozen=True, eq=False)
class Sentence:
    """``held`` is a list of phrases of which the first is said, ``strange`` one of others."""

    samples: FloatArray
    words: Phrase
    held: tuple[Phrase, ...]
    strange: tuple[Phrase, ...]


@dataclass(frozen=True)
class Score:
    """Shares of the sentences, each without hot words and with them, and the errors of words.

    ``recall`` is where the phrase that was said is heard, ``false`` where one is that was not.
    """

    recall: tuple[float, float]
    false: tuple[float, float]
    word_error: tuple[float, float]


def draw(condition: Condition, espeak: Espeak, seed: int, n: int) -> list[Sentence]:
    """Sentences of 4 to 8 words of the wide list, in any voice, under noise of one level."""
    rng = np.random.default_rng(seed)
    known = WIDE.of(condition.language)
    sentences = []
    for _ in range(n):
        n_words = int(rng.integers(SENTENCE_WORDS[0], SENTENCE_WORDS[1] + 1))
        words = tuple(rng.choice(known, n_words).tolist())
        separator = " " if condition.language == "en" else ""
        speech = espeak.speak(words, random_voice(rng, condition.language), separator)
        noise = random_noise(rng, len(speech.samples), condition.noise_db)
        start = int(rng.integers(0, n_words - condition.phrase_words + 1))
        said = words[start : start + condition.phrase_words]
        strange = _draw_strange(rng, words, known, condition.phrase_words)
        samples = np.clip(speech.samples + noise, -1, 1).astype(np.float32)
        sentences.append(Sentence(samples, words, (said, *strange[1:]), tuple(strange)))
    return sentences


def _draw_strange(
    rng: np.random.Generator, words: Phrase, known: Sequence[str], n_words: int
) -> list[Phrase]:
    found: list[Phrase] = []
    while len(found) < LIST_PHRASES:
        phrase = tuple(rng.choice(known, n_words).tolist())
        if not count(phrase, words):
            found.append(phrase)
    return found


def count(phrase: Phrase, words: Sequence[str]) -> int:
    """How often a phrase is in a sentence, word by word."""
    n = len(phrase)
    return sum(tuple(words[i : i + n]) == phrase for i in range(len(words) - n + 1))


def score(opened: OpenModel, condition: Condition, sentences: Sequence[Sentence]) -> Score:
    def lists(phrases: Sequence[tuple[Phrase, ...]]) -> list[tuple[str, ...]]:
        return [tuple(map(condition.write, of_sentence)) for of_sentence in phrases]

    plain = hear(opened, sentences, [()] * len(sentences))
    helped = hear(opened, sentences, lists([sentence.held for sentence in sentences]))
    misled = hear(opened, sentences, lists([sentence.strange for sentence in sentences]))
    said = [sentence.held[:1] for sentence in sentences]
    strange = [sentence.strange for sentence in sentences]
    return Score(
        recall=(share_of(said, plain), share_of(said, helped)),
        false=(share_of(strange, plain), share_of(strange, misled)),
        word_error=(word_error(sentences, plain), word_error(sentences, helped)),
    )


def share_of(phrases: Sequence[tuple[Phrase, ...]], heard: Sequence[Sequence[str]]) -> float:
    """In how many of the sentences any of its phrases is."""
    pairs = zip(phrases, heard, strict=True)
    return float(np.mean([any(count(phrase, words) for phrase in own) for own, words in pairs]))


def word_error(sentences: Sequence[Sentence], heard: Sequence[Sequence[str]]) -> float:
    pairs = zip(sentences, heard, strict=True)
    n_errors = sum(edit_distance(sentence.words, words) for sentence, words in pairs)
    return n_errors / sum(len(sentence.words) for sentence in sentences)


def hear(
    opened: OpenModel, sentences: Sequence[Sentence], lists: Sequence[tuple[str, ...]]
) -> list[list[str]]:
    """The words of each sentence, as they are heard with its hot words."""
    chunks = [
        Chunk(sentence.samples, 0, 0, DecodeOptions(use_itn=False, hotwords=words))
        for sentence, words in zip(sentences, lists, strict=True)
    ]
    heard: list[Hypothesis] = []
    for start in range(0, len(chunks), BATCH):
        heard += opened.engine(chunks[start : start + BATCH])
    return [tokens_of(opened.vocabulary.text(one.token_ids.tolist())) for one in heard]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO_FOLDER)
    parser.add_argument("--utterances", type=int, default=500, help="of each row")
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    opened = open_model(open_folder(arguments.model), EngineOptions("cpu"))
    espeak = Espeak()
    print(f"seed {arguments.seed}, {arguments.utterances} sentences a row, {LIST_PHRASES} phrases")
    print("a list; noise in dB of full scale; each without hot words → with them\n")
    print("| language | words a phrase | noise | word error | recall | false phrase |")
    print("|---|---|---|---|---|---|")
    for condition in CONDITIONS:
        sentences = draw(condition, espeak, arguments.seed, arguments.utterances)
        found = score(opened, condition, sentences)
        cells = (
            f"{without:.1%} → {with_them:.1%}"
            for without, with_them in (found.word_error, found.recall, found.false)
        )
        condition_cells = (condition.language, condition.phrase_words, condition.noise_db)
        print(f"| {' | '.join([*map(str, condition_cells), *cells])} |", flush=True)


if __name__ == "__main__":
    main()
