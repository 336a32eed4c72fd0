"""What was heard in a file, as the text of an output file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from sensevoice_service.cli.files import legible
from sensevoice_service.formats import FileOutcome, file_body, plain_body
from sensevoice_service.subtitles import SubtitleRules
from sensevoice_service.types import Transcript

SUBTITLES = ("srt", "vtt")
FORMATS = ("txt", "json", *SUBTITLES)


@dataclass(frozen=True)
class Heard:
    """A file's transcript, and the model that heard it as the API describes it."""

    transcript: Transcript
    model: dict[str, Any]
    rules: SubtitleRules = field(default_factory=SubtitleRules)


def render(heard: Heard, name: str, form: str) -> str:
    """One of ``FORMATS``, ending with a line break."""
    transcript = heard.transcript
    if form == "json":
        body = {**file_body(FileOutcome(legible(name), transcript)), "model": heard.model}
        return json.dumps(body, ensure_ascii=False, indent=2) + "\n"
    return plain_body(transcript, form, heard.rules)
