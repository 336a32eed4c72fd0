from __future__ import annotations

import pytest

from sensevoice_service.formats import (
    MEDIA_TYPES,
    FileOutcome,
    file_body,
    model_body,
    plain_body,
    text_body,
    transcription_body,
    word_body,
)
from sensevoice_service.status import ModelInfo
from sensevoice_service.subtitles import SubtitleRules
from sensevoice_service.types import CorruptAudio, Segment, Transcript, Word

MODEL = ModelInfo("SenseVoiceSmall", False, "cuda:0", "bf16", "/private/models/sv", 234)


def spoken(text: str) -> Transcript:
    segments = (
        Segment(0.06, 1.23456, text, "en", "HAPPY", ("Speech", "BGM")),
        Segment(1.23456, 2.0, "", "nospeech", "EMO_UNKNOWN", ()),
    )
    return Transcript(text, "en", "HAPPY", ("Speech", "BGM"), 2.00049, segments)


def test_a_transcript_is_told_in_full_with_times_in_milliseconds() -> None:
    assert file_body(FileOutcome("a.wav", spoken("hello"))) == {
        "key": "a.wav",
        "text": "hello",
        "language": "en",
        "emotion": "HAPPY",
        "events": ["Speech", "BGM"],
        "duration_s": 2.0,
        "segments": [
            {
                "start_s": 0.06,
                "end_s": 1.235,
                "text": "hello",
                "language": "en",
                "emotion": "HAPPY",
                "events": ["Speech", "BGM"],
            },
            {
                "start_s": 1.235,
                "end_s": 2.0,
                "text": "",
                "language": "nospeech",
                "emotion": "EMO_UNKNOWN",
                "events": [],
            },
        ],
        "error": None,
    }


def test_a_failed_file_has_an_empty_text_and_its_error() -> None:
    body = file_body(FileOutcome("b.wav", CorruptAudio("it is cut off")))
    assert body["text"] == ""
    assert body["duration_s"] is None
    assert body["segments"] == []
    assert body["error"] == {
        "status": 422,
        "code": "corrupt_audio",
        "message": "it is cut off",
    }


def test_results_and_details_follow_the_order_of_the_files() -> None:
    outcomes = [FileOutcome("a", spoken("one")), FileOutcome("b", spoken("two"))]
    body = transcription_body(outcomes, MODEL, 0.41999)
    assert body["message"] == "success"
    assert body["processing_time"] == 0.42
    assert body["results"] == ["one", "two"]
    assert [detail["key"] for detail in body["details"]] == ["a", "b"]


def test_the_message_counts_the_files_that_failed() -> None:
    outcomes = [
        FileOutcome("a", spoken("one")),
        FileOutcome("b", CorruptAudio("cut off")),
        FileOutcome("c", spoken("")),
    ]
    body = transcription_body(outcomes, MODEL, 1.0)
    assert body["message"] == "1 of 3 files failed"
    assert body["results"] == ["one", "", ""]


def test_the_model_is_told_without_the_place_it_came_from() -> None:
    assert model_body(MODEL) == {
        "name": "SenseVoiceSmall",
        "demo": False,
        "device": "cuda:0",
        "precision": "bf16",
        "parameters": 234,
    }


def test_a_word_is_told_without_the_space_ahead_of_it() -> None:
    body = word_body(Word(0.03, 1.23456, " hello,"))
    assert body == {"word": "hello,", "start_s": 0.03, "end_s": 1.235}


def test_words_are_told_with_their_segment_or_the_segment_is_left_out() -> None:
    words = (Word(0.0, 0.5, "good"), Word(0.5, 1.0, " day"))
    segment = Segment(0.0, 1.0, "good day", "en", "HAPPY", (), words)
    outcome = FileOutcome("a", Transcript("good day", "en", "HAPPY", (), 1.0, (segment,)))
    (told,) = file_body(outcome, "word")["segments"]
    assert [word["word"] for word in told["words"]] == ["good", "day"]
    (plain,) = file_body(outcome)["segments"]
    assert plain == {name: value for name, value in told.items() if name != "words"}
    assert file_body(outcome, "none") == {**file_body(outcome), "segments": []}


@pytest.mark.parametrize(
    ("form", "body"),
    [
        ("text", "hello\n"),
        ("srt", "1\n00:00:00,060 --> 00:00:01,235\nhello\n"),
        ("vtt", "WEBVTT\n\n00:00:00.060 --> 00:00:01.235\nhello\n"),
    ],
)
def test_plain_bodies_are_those_of_their_format(form: str, body: str) -> None:
    assert plain_body(spoken("hello"), form, SubtitleRules()) == body
    assert form in MEDIA_TYPES


def test_subtitles_keep_the_rules_given() -> None:
    body = plain_body(spoken("hello"), "srt", SubtitleRules(max_line_latin=3, max_lines=2))
    assert body.endswith("\nhel\nlo\n")


def test_plain_text_ends_its_line() -> None:
    assert text_body(spoken("hello")) == "hello\n"
    assert text_body(spoken("")) == "\n"
