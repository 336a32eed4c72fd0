"""A model's sentencepiece file as a ``Vocabulary``."""

from __future__ import annotations

from pathlib import Path

import sentencepiece

from sensevoice_service.tags import Vocabulary
from sensevoice_service.types import ModelError


def load_vocabulary(bpe_model: Path) -> Vocabulary:
    """Raises ``ModelError`` if the file is no sentencepiece model."""
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(bpe_model.read_bytes())
    except RuntimeError as error:
        raise ModelError(f"{bpe_model} is no sentencepiece model: {error}") from None
    pieces = [processor.IdToPiece(index) for index in range(processor.GetPieceSize())]
    return Vocabulary.from_pieces(pieces, processor.DecodeIds, processor.EncodeAsIds)
