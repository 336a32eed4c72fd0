"""``python -m fuzz.multipart [-max_total_time=60 …]``: whatever the body, a form or a refusal.

The first bytes of an input say where the rest is cut into the pieces that arrive one by one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging

import atheris

with atheris.instrument_imports(
    include=["sensevoice_service.routes.forms", "python_multipart", "starlette.formparsers"]
):
    from sensevoice_service.routes import forms

from starlette.datastructures import Headers
from starlette.types import Message

from fuzz import seeds
from fuzz.loop import run
from sensevoice_service.routes.client import Client
from sensevoice_service.types import ServiceError

HEADERS = {"content-type": "multipart/form-data; boundary=edge"}
LIMITS = forms.FormLimits(max_files=3, spool_bytes=64)
N_CUTS = 4


def read_one(data: bytes) -> None:
    asyncio.run(_read(data))


async def _read(data: bytes) -> None:
    cuts, body = data[:N_CUTS], data[N_CUTS:]
    places = sorted(cut * len(body) // 256 for cut in cuts)
    edges = [0, *places, len(body)]
    pieces = [body[a:b] for a, b in itertools.pairwise(edges)]

    async def receive() -> Message:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    client = Client({"type": "http", "headers": []}, receive)
    try:
        form = await forms.read_form(Headers(HEADERS), client, LIMITS)
    except ServiceError:
        return
    try:
        files = forms.uploads(form, LIMITS)
        forms.keys(form, files)
        forms.decode_options(form)
        assert all(not set(file.name) & set("/\\\r\n\0\x1b") for file in files)
    except ServiceError:
        return
    finally:
        await form.close()


def main() -> None:
    logging.disable()  # the parser's warnings, hundreds a second
    run(read_one, (b"\x40\x80\xc0\xff" + seed for seed in seeds.forms()))


if __name__ == "__main__":
    main()
