"""Transcripts as OpenAI's API words them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

from sensevoice_service.routes.streaming import Event
from sensevoice_service.types import Progress, Segment, Transcript

_LANGUAGE_NAMES = {
    "zh": "chinese",
    "en": "english",
    "yue": "cantonese",
    "ja": "japanese",
    "ko": "korean",
}
# Fields of Whisper's that clients insist on. None of them is measured here: each has a value that
# no client takes for a failed segment.
_NOT_MEASURED = {
    "seek": 0,
    "tokens": [],
    "temperature": 0.0,
    "avg_logprob": 0.0,
    "no_speech_prob": 0.0,
}


def json_body(transcript: Transcript) -> dict[str, Any]:
    return {"text": transcript.text, "usage": _usage(transcript)}


def verbose_body(transcript: Transcript, granularities: Iterable[str]) -> dict[str, Any]:
    """Of ``segment`` and ``word`` what was asked for; segments have fields of our own."""
    body: dict[str, Any] = {
        "task": "transcribe",
        "language": _LANGUAGE_NAMES.get(transcript.language, transcript.language),
        "duration": round(transcript.duration_s, 3),
        "text": transcript.text,
    }
    if "segment" in granularities:
        body["segments"] = [_segment(k, one) for k, one in enumerate(transcript.segments)]
    if "word" in granularities:
        body["words"] = [
            {
                "word": word.text.strip(),
                "start": round(word.start_s, 3),
                "end": round(word.end_s, 3),
            }
            for segment in transcript.segments
            for word in segment.words
        ]
    return {**body, "usage": _usage(transcript)}


def delta_events(progress: Progress) -> list[Event]:
    """None where nothing was said."""
    if not progress.text:
        return []
    return [Event.of({"type": "transcript.text.delta", "delta": progress.text})]


def done_event(transcript: Transcript) -> Event:
    return Event.of({"type": "transcript.text.done", **json_body(transcript)})


def _usage(transcript: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": round(transcript.duration_s, 3)}


def _segment(index: int, segment: Segment) -> dict[str, Any]:
    return {
        "id": index,
        **_NOT_MEASURED,
        "start": round(segment.start_s, 3),
        "end": round(segment.end_s, 3),
        "text": segment.text,
        "compression_ratio": _compression_ratio(segment.text),
        "language": segment.language,
        "emotion": segment.emotion,
        "events": list(segment.events),
    }


def _compression_ratio(text: str) -> float:
    """As Whisper has it: bytes by compressed bytes, high where text repeats itself."""
    raw = text.encode()
    return round(len(raw) / len(zlib.compress(raw)), 3)
