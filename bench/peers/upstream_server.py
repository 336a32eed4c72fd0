"""The plain way to serve FunASR: one ``AutoModel`` behind one lock in a FastAPI application.

``python -m bench.peers.upstream_server --model DIR --threads N --port P`` serves
``POST /transcribe`` on the loopback interface; it needs nothing that the project does not need.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from threading import Lock
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, File, UploadFile

from bench.peers.funasr_model import open_auto_model
from bench.peers.worker import worker_parser


def create_app(recognise: Callable[[Any], str]) -> FastAPI:
    import soundfile

    app = FastAPI()
    lock = Lock()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/transcribe")
    def transcribe(file: Annotated[UploadFile, File()]) -> dict[str, str]:
        samples, _ = soundfile.read(io.BytesIO(file.file.read()), dtype="float32")
        with lock:
            return {"text": recognise(samples)}

    return app


def main() -> None:
    parser = worker_parser(__doc__)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    app = create_app(open_auto_model(arguments.model, arguments.threads))
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
