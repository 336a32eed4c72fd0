from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from sensevoice_service.cli.bodies import Heard, render
from sensevoice_service.subtitles import SubtitleRules
from sensevoice_service.types import Segment, Transcript

SEGMENTS = (
    Segment(0.12, 1.44, "hello world", "en", "NEUTRAL", ("Speech",)),
    Segment(61.5, 63.25, "今天天气", "zh", "HAPPY", ("Speech", "BGM")),
)
HEARD = Heard(
    Transcript("hello world今天天气", "en", "NEUTRAL", ("Speech", "BGM"), 64.0, SEGMENTS),
    {"name": "demo", "demo": True},
)
CUE_TIMES = re.compile(r"(?:(\d+):)?(\d\d):(\d\d)[,.](\d{3})")


def cues(body: str) -> list[tuple[float, float, str]]:
    """Start, end and text of the cues of an SRT or VTT file."""
    found = []
    for block in body.strip().split("\n\n"):
        head, arrow, rest = block.partition(" --> ")
        if arrow:
            end, _, text = rest.partition("\n")
            found.append((seconds(head.splitlines()[-1]), seconds(end), text))
    return found


def seconds(time: str) -> float:
    match = CUE_TIMES.fullmatch(time.strip())
    assert match, time
    hours, minutes, whole, thousandths = (int(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + whole + thousandths / 1000


def test_text_is_the_text_and_a_line_break() -> None:
    assert render(HEARD, "a.wav", "txt") == "hello world今天天气\n"


def test_json_is_the_file_of_the_api_s_answer_and_its_model() -> None:
    body = render(HEARD, "a.wav", "json")
    found = json.loads(body)
    assert (found["key"], found["model"]["name"], found["error"]) == ("a.wav", "demo", None)
    assert [segment["text"] for segment in found["segments"]] == ["hello world", "今天天气"]
    assert "今天天气" in body
    assert body.endswith("}\n")


def test_a_name_that_is_no_utf_8_is_shown_as_far_as_it_is() -> None:
    body = render(HEARD, "caf\udce9.wav", "json")
    assert json.loads(body.encode())["key"] == "caf?.wav"


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles_have_the_words_and_lie_within_the_segments(form: str) -> None:
    body = render(HEARD, "a.wav", form)
    assert body.startswith("WEBVTT\n" if form == "vtt" else "1\n")
    found = cues(body)
    assert "".join(text for *_, text in found).split() == ["hello", "world今天天气"]
    for start_s, end_s, text in found:
        segment = SEGMENTS[0] if "hello" in text else SEGMENTS[1]
        assert segment.start_s <= start_s < end_s


def test_subtitles_keep_the_rules_of_their_hearer() -> None:
    heard = replace(HEARD, rules=SubtitleRules(max_line_latin=5, max_lines=1))
    assert [text for *_, text in cues(render(heard, "a.wav", "srt"))][:2] == ["hello", "world"]
