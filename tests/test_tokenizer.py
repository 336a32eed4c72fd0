from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece

from bench.make_model import TAG_IDS
from sensevoice_service.tokenizer import load_vocabulary
from sensevoice_service.types import ModelError
from tests.models import Model


def test_it_holds_every_piece_of_the_file(model: Model) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model.folder.bpe_model))
    assert model.vocabulary.size == pieces.GetPieceSize()
    texts = [index for index in range(pieces.GetPieceSize()) if model.vocabulary.is_text(index)]
    assert model.vocabulary.text(texts[:300]) == pieces.DecodeIds(texts[:300]).strip()


def test_it_spells_as_the_file_does(model: Model) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model.folder.bpe_model))
    assert model.vocabulary.encode("hello 今天") == pieces.EncodeAsIds("hello 今天") != []


def test_tags_are_told_by_the_published_ids(small_model: Model) -> None:
    names = small_model.vocabulary.tag_names
    assert {name: names[token_id] for name, token_id in TAG_IDS.items()} == {
        name: name for name in TAG_IDS
    }


def test_every_model_knows_the_tags_of_the_prompts(model: Model) -> None:
    names = set(model.vocabulary.tag_names.values())
    assert {"zh", "en", "NEUTRAL", "Speech", "nospeech", "withitn", "woitn"} <= names


@pytest.mark.parametrize("content", [b"", b"\x00\xff not a model", b"<html>404</html>"])
def test_a_file_that_is_no_sentencepiece_model_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "odd.bpe.model"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"odd\.bpe\.model is no sentencepiece model"):
        load_vocabulary(path)


def test_a_sentencepiece_model_that_is_cut_off_is_refused(
    small_model: Model, tmp_path: Path
) -> None:
    whole = small_model.folder.bpe_model.read_bytes()
    path = tmp_path / "half.bpe.model"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"half\.bpe\.model"):
        load_vocabulary(path)
