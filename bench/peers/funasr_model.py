"""FunASR's ``AutoModel`` on a folder: in process, and as every server of a peer runs it.

``python -m bench.peers.funasr_model --model DIR --threads N`` speaks as ``worker`` says. FunASR is
among the project's requirements.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from bench.peers.worker import Recognise, one_by_one, serve, worker_parser


def link_folder(folder: Path, into: Path, threads: int) -> Path:
    """The same model in ``into``, with the number of threads in its configuration.

    FunASR takes 4 unless told, and its server has no option to tell it.
    """
    into.mkdir(parents=True)
    for path in folder.iterdir():
        if path.name != "config.yaml":
            (into / path.name).symlink_to(path.resolve())
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    text = yaml.safe_dump({**config, "ncpu": threads}, allow_unicode=True, sort_keys=False)
    (into / "config.yaml").write_text(text, "utf-8")
    return into


def open_auto_model(folder: Path, threads: int) -> Callable[[Any], str]:
    """Gives the text, tags included, of a path or of float32 samples at 16 kHz."""
    from funasr import AutoModel

    model: Any = AutoModel(
        model=str(folder),
        device="cpu",
        ncpu=threads,
        disable_update=True,
        disable_pbar=True,
        log_level="ERROR",
    )

    def recognise(audio: Any) -> str:
        (answer,) = model.generate(input=audio, cache={}, language="auto", use_itn=True)
        return str(answer["text"])

    return recognise


def main() -> None:
    arguments = worker_parser(__doc__).parse_args()

    def open_model() -> Recognise:
        recognise = open_auto_model(arguments.model, arguments.threads)
        return one_by_one(lambda path: recognise(str(path)))

    serve(open_model)


if __name__ == "__main__":
    main()
