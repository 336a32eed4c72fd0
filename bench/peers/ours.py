"""Ours in process: files through the pipeline, as ``bench.hour`` does it.

``python -m bench.peers.ours --model DIR --threads N [--quantize off]`` speaks as ``worker`` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from api import batch_limits, pipeline_policy
from bench.peers.worker import Recognise, one_by_one, serve, worker_parser
from config import load_settings
from sensevoice_service.batcher import Batcher
from sensevoice_service.loading import EngineOptions, open_model
from sensevoice_service.model_store import open_folder
from sensevoice_service.pipeline import Pipeline
from sensevoice_service.types import DecodeOptions, Upload


@contextmanager
def our_pipeline(folder: Path, quantize: str, n_threads: int) -> Iterator[Pipeline]:
    settings = load_settings()
    opened = open_model(open_folder(folder), EngineOptions("cpu", quantize, n_workers=n_threads))
    batcher = Batcher(opened.workers, batch_limits(settings, "cpu"))
    batcher.start()
    with ThreadPoolExecutor(2) as pool:
        policy = pipeline_policy(settings, opened.n_workers)
        yield Pipeline(batcher, pool, opened.vocabulary, policy)
    batcher.stop()


def transcribe(pipeline: Pipeline, path: Path) -> str:
    with path.open("rb") as file:
        upload = Upload(file, path.name, path.stat().st_size)
        return asyncio.run(pipeline.transcribe(upload, DecodeOptions())).transcript.text


def main() -> None:
    parser = worker_parser(__doc__)
    parser.add_argument("--quantize", choices=("auto", "off", "int8"), default="auto")
    arguments = parser.parse_args()
    with our_pipeline(arguments.model, arguments.quantize, arguments.threads) as pipeline:

        def open_ours() -> Recognise:
            return one_by_one(lambda path: transcribe(pipeline, path))

        serve(open_ours)


if __name__ == "__main__":
    main()
