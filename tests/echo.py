"""A recogniser for tests of what is around it: of the n-th chunk of a file it hears the word wn."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from sensevoice_service.audio import AudioLimits
from sensevoice_service.batch_call import Completion
from sensevoice_service.chunker import ChunkPolicy
from sensevoice_service.pipeline import PipelinePolicy
from sensevoice_service.tags import Vocabulary
from sensevoice_service.types import Chunk, Hypothesis, lfr_frames

N_WORDS = 500


def _decode(ids: list[int]) -> str:
    return " ".join(f"w{token_id - 1}" for token_id in ids)


VOCABULARY = Vocabulary.from_pieces(["<blank>", *(f"▁w{n}" for n in range(N_WORDS))], _decode)


def hear(chunk: Chunk) -> Hypothesis:
    """The word is in the middle of the chunk, where no neighbour overlaps it."""
    frame = np.array([lfr_frames(len(chunk.samples)) // 2], np.int32)
    return Hypothesis(np.array([chunk.index + 1], np.int32), frame, frame, ())


def recognise(chunks: Sequence[Chunk]) -> list[Hypothesis]:
    return [hear(chunk) for chunk in chunks]


def completion(chunk: Chunk) -> Completion:
    return Completion(hear(chunk), queue_s=0.25, infer_s=0.5, batch_size=2)


def words(n_chunks: int) -> str:
    """The text of a file of as many chunks."""
    return " ".join(f"w{n}" for n in range(n_chunks))


class EchoQueue:
    """Answers at once."""

    def submit(self, chunk: Chunk) -> Future[Completion]:
        future: Future[Completion] = Future()
        future.set_result(completion(chunk))
        return future


def policy(
    *, chunk_s: float = 2.0, in_flight: int = 4, max_audio_s: float = 7_200.0
) -> PipelinePolicy:
    return PipelinePolicy(
        audio=AudioLimits(max_audio_s=max_audio_s),
        chunks=ChunkPolicy(whole_s=chunk_s, chunk_s=chunk_s),
        large_file_bytes=2**40,
        max_chunks_in_flight=in_flight,
    )
