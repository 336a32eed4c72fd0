"""sherpa-onnx in process, on the chunks that ours would make of a file.

``python -m bench.peers.sherpa --model DIR --threads N --cache DIR`` speaks as ``worker`` says and
needs ``pip install sherpa-onnx onnx onnxruntime``. Each chunk is a stream; decoding the file and
cutting it are not counted, computing features from the samples is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from api import pipeline_policy
from bench.peers.sherpa_model import sherpa_files
from bench.peers.worker import Recognise, Run, serve, worker_parser
from config import load_settings
from sensevoice_service.audio import decode
from sensevoice_service.chunker import cut
from sensevoice_service.tags import join_texts
from sensevoice_service.types import SAMPLE_RATE_HZ, Chunk, DecodeOptions, Upload


def our_chunks(path: Path) -> list[Chunk]:
    policy = pipeline_policy(load_settings())
    size_bytes = path.stat().st_size
    is_large = size_bytes > policy.large_file_bytes
    with path.open("rb") as file:
        blocks = decode(Upload(file, path.name, size_bytes), policy.audio)
        return list(cut(blocks, DecodeOptions(), policy.chunks, is_large=is_large))


def open_recognizer(folder: Path, threads: int, cache: Path, batch: int) -> Recognise:
    model, tokens = sherpa_files(folder, cache)
    sherpa_onnx: Any = import_module("sherpa_onnx")
    recognizer = sherpa_onnx.OfflineRecognizer.from_sense_voice(
        model=str(model), tokens=str(tokens), num_threads=threads, language="auto", use_itn=True
    )

    def transcribe(path: Path) -> tuple[float, str]:
        chunks = our_chunks(path)
        began_s = time.perf_counter()
        streams = []
        for chunk in chunks:
            stream = recognizer.create_stream()
            stream.accept_waveform(SAMPLE_RATE_HZ, chunk.samples)
            streams.append(stream)
        for start in range(0, len(streams), batch):
            recognizer.decode_streams(streams[start : start + batch])
        results = [stream.result for stream in streams]
        wall_s = time.perf_counter() - began_s
        # It logs an error of the network and goes on; a model that ran has named a language.
        if not all(result.lang or result.text for result in results):
            raise RuntimeError("no result for a chunk")
        return wall_s, join_texts(result.text for result in results)

    def recognise(paths: Sequence[Path]) -> Run:
        results = [transcribe(path) for path in paths]
        return Run(sum(wall_s for wall_s, _ in results), [text for _, text in results])

    return recognise


def main() -> None:
    parser = worker_parser(__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument(
        "--batch", type=int, default=1, help="streams decoded together; on CPUs one is fastest"
    )
    arguments = parser.parse_args()
    serve(
        lambda: open_recognizer(
            arguments.model, arguments.threads, arguments.cache, arguments.batch
        )
    )


if __name__ == "__main__":
    main()
