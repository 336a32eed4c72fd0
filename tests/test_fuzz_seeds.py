"""Whether the fuzzers start from inputs that get somewhere; from others they would find nothing."""

from __future__ import annotations

import io

import pytest
from starlette.datastructures import Headers
from starlette.types import Message

from fuzz import seeds
from sensevoice_service.audio import AudioLimits, decode
from sensevoice_service.routes import forms
from sensevoice_service.routes.client import Client
from sensevoice_service.types import UnsupportedAudio, Upload

LIMITS = AudioLimits(max_audio_s=30.0)
AUDIO = list(seeds.audio())


@pytest.mark.parametrize("data", AUDIO[:-1], ids=range(len(AUDIO) - 1))
def test_each_file_but_the_last_is_audio(data: bytes) -> None:
    assert sum(len(block.samples) for block in decode(Upload(io.BytesIO(data), "", 0), LIMITS))


def test_the_last_file_points_elsewhere() -> None:
    with pytest.raises(UnsupportedAudio):
        list(decode(Upload(io.BytesIO(AUDIO[-1]), "", 0), LIMITS))


@pytest.mark.parametrize("body", list(seeds.forms()))
async def test_each_body_is_a_form(body: bytes) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = Headers({"content-type": "multipart/form-data; boundary=edge"})
    limits = forms.FormLimits(max_files=3, spool_bytes=64)
    form = await forms.read_form(headers, Client({"type": "http", "headers": []}, receive), limits)
    assert form.multi_items()
    await form.close()
