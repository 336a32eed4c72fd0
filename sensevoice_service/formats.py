"""Transcripts as bodies of answers: JSON, and what is plain for people and players."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sensevoice_service.status import ModelInfo
from sensevoice_service.subtitles import SubtitleRules, to_srt, to_vtt
from sensevoice_service.types import Segment, ServiceError, Transcript, Word

# In UTF-8, all of them.
MEDIA_TYPES = {
    "json": "application/json",
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",
    "vtt": "text/vtt; charset=utf-8",
}
TIMESTAMPS = ("none", "segment", "word")


@dataclass(frozen=True)
class FileOutcome:
    """What became of one file: its transcript, or the error that it ended with."""

    key: str
    result: Transcript | ServiceError


def transcription_body(
    outcomes: Sequence[FileOutcome],
    model: ModelInfo,
    processing_s: float,
    timestamps: str = "segment",
) -> dict[str, Any]:
    """The body of ``POST /transcribe``: ``results`` and ``details`` follow the order of files."""
    details = [file_body(outcome, timestamps) for outcome in outcomes]
    n_failed = sum(detail["error"] is not None for detail in details)
    return {
        "message": f"{n_failed} of {len(details)} files failed" if n_failed else "success",
        "processing_time": round(processing_s, 3),
        "results": [detail["text"] for detail in details],
        "details": details,
        "model": model_body(model),
    }


def file_body(outcome: FileOutcome, timestamps: str = "segment") -> dict[str, Any]:
    """``timestamps`` is one of ``TIMESTAMPS``: with ``none`` there are no segments either."""
    if isinstance(outcome.result, ServiceError):
        return _failed_body(outcome.key, outcome.result)
    transcript = outcome.result
    segments = () if timestamps == "none" else transcript.segments
    return {
        "key": outcome.key,
        "text": transcript.text,
        "language": transcript.language,
        "emotion": transcript.emotion,
        "events": list(transcript.events),
        "duration_s": round(transcript.duration_s, 3),
        "segments": [segment_body(one, with_words=timestamps == "word") for one in segments],
        "error": None,
    }


def segment_body(segment: Segment, *, with_words: bool = False) -> dict[str, Any]:
    body: dict[str, Any] = {
        "start_s": round(segment.start_s, 3),
        "end_s": round(segment.end_s, 3),
        "text": segment.text,
        "language": segment.language,
        "emotion": segment.emotion,
        "events": list(segment.events),
    }
    if with_words:
        body["words"] = [word_body(word) for word in segment.words]
    return body


def word_body(word: Word) -> dict[str, Any]:
    return {
        "word": word.text.strip(),
        "start_s": round(word.start_s, 3),
        "end_s": round(word.end_s, 3),
    }


def plain_body(transcript: Transcript, form: str, rules: SubtitleRules) -> str:
    """As ``srt``, as ``vtt`` or else as plain text, which ends its last line.

    An hour of subtitles takes up to a second: not on an event loop.
    """
    if form == "srt":
        return to_srt(transcript, rules)
    if form == "vtt":
        return to_vtt(transcript, rules)
    return text_body(transcript)


def text_body(transcript: Transcript) -> str:
    """Plain text, which ends its line."""
    return transcript.text + "\n"


def model_body(model: ModelInfo) -> dict[str, Any]:
    """The model as any client may see it; its source can be a path, and is left out."""
    return {
        "name": model.name,
        "demo": model.is_demo,
        "device": model.device,
        "precision": model.precision,
        "parameters": model.parameters,
    }


def _failed_body(key: str, error: ServiceError) -> dict[str, Any]:
    return {
        "key": key,
        "text": "",
        "language": None,
        "emotion": None,
        "events": [],
        "duration_s": None,
        "segments": [],
        "error": {"status": error.status, "code": error.code, "message": error.message},
    }
