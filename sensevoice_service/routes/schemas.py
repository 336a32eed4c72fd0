"""The bodies of requests and answers as OpenAPI shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

# Both words for a file: tools of OpenAPI 3.1 go by the media type, and Swagger UI shows a list of
# files as text inputs unless it finds the older format.
AudioFile = Annotated[
    bytes,
    WithJsonSchema(
        {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
    ),
]


_LANGUAGE = "(zh|en|yue|ja|ko)"
_LANGUAGES = f"^(auto|{_LANGUAGE}(,{_LANGUAGE})*)$"


class TranscribeForm(BaseModel):  # described here, and read by forms
    """One or more files, and what is to become of them."""

    files: list[AudioFile] = Field(
        min_length=1,
        description="One or more audio files: WAV, MP3, FLAC, OGG, M4A and others.",
    )
    keys: str = Field(
        "",
        description="Names for the files in the answer, as many as there are files: between commas"
        " or, for names with commas, in a field for each. The default are the files' own names.",
        examples=["", "meeting,interview"],
    )
    lang: str = Field(
        "auto",
        pattern=_LANGUAGES,
        description="The language spoken: `auto` detects it; `zh` Mandarin, `en` English,"
        " `yue` Cantonese, `ja` Japanese, `ko` Korean. Several, between commas or in a"
        " field for each, limit what is detected to these.",
        examples=["auto", "en", "zh,en"],
    )
    use_itn: bool = Field(
        True,
        description="Write numbers, dates and the like in digits, and punctuate.",
        examples=[True],
    )
    hotwords: str = Field(
        "",
        description="Words and phrases that are likely to be said, such as names: up to 100, of up"
        " to 50 characters each, between commas (also `，` and `、`) or line ends.",
        examples=["", "SenseVoice, Hangzhou, 通义"],
    )
    response_format: Literal["json", "text", "srt", "vtt"] = Field(
        "json",
        description="`json` with all that is known; `text`, a line for each file; `srt` or `vtt`,"
        " the subtitles of one file.",
        examples=["json"],
    )
    timestamps: Literal["none", "segment", "word"] = Field(
        "segment",
        description="What has times in a `json` answer: nothing, the segments, or the segments and"
        " their words (in Chinese and Japanese, their characters).",
        examples=["word"],
    )
    stream: bool = Field(
        False,
        description="Answer with server-sent events while the files are worked on.",
        examples=[False],
    )


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Word(Answer):
    word: str = Field(
        description="With the punctuation beside it; in Chinese and Japanese a single character.",
        examples=["欢"],
    )
    start_s: float = Field(description="Seconds from the start of the file.", examples=[0.21])
    end_s: float = Field(description="Seconds from the start of the file.", examples=[0.39])


class Segment(Answer):
    start_s: float = Field(description="Seconds from the start of the file.", examples=[0.0])
    end_s: float = Field(description="Seconds from the start of the file.", examples=[3.2])
    text: str = Field(description="What was said.", examples=["欢迎大家来体验。"])
    language: str = Field(
        description="What was spoken: mostly `zh`, `en`, `yue`, `ja` or `ko`, and `nospeech` where"
        " nothing was.",
        examples=["zh"],
    )
    emotion: str = Field(
        description="`HAPPY`, `SAD`, `ANGRY`, `NEUTRAL`, `FEARFUL`, `DISGUSTED`, `SURPRISED` or"
        " `EMO_UNKNOWN`.",
        examples=["NEUTRAL"],
    )
    events: list[str] = Field(description="Sounds heard.", examples=[["Speech"]])
    words: list[Word] | None = Field(
        None, description="With `timestamps=word` alone.", examples=[None]
    )


class FileError(Answer):
    status: int = Field(
        description="The HTTP status that the file alone would get.", examples=[415]
    )
    code: str = Field(description="Stable name of the error.", examples=["unsupported_audio"])
    message: str = Field(
        description="What is wrong, for people.",
        examples=["the file is not audio that can be decoded"],
    )


class FileDetail(Answer):
    key: str = Field(
        description="From `keys`, or the file's name, or `audio1`, `audio2`, …", examples=["audio1"]
    )
    text: str = Field(description="Empty where the file failed.", examples=["欢迎大家来体验。"])
    language: str | None = Field(description="Of most of the speech.", examples=["zh"])
    emotion: str | None = Field(description="Of most of the speech.", examples=["NEUTRAL"])
    events: list[str] = Field(description="All sounds heard in the file.", examples=[["Speech"]])
    duration_s: float | None = Field(description="Length of the audio, seconds.", examples=[3.2])
    segments: list[Segment] = Field(
        description="Stretches of speech, in order; none with `timestamps=none`."
    )
    error: FileError | None = Field(
        description="Why this file failed, or null.",
        examples=[None],
    )


class Model(Answer):
    name: str = Field(description="Which model it is.", examples=["SenseVoiceSmall"])
    demo: bool = Field(
        description="True for the small model that only shows the service at work.",
        examples=[False],
    )
    device: str = Field(description="What it runs on.", examples=["cuda:0"])
    precision: str = Field(description="Of its arithmetic.", examples=["bf16"])
    parameters: int = Field(description="How many numbers it is made of.", examples=[234000000])


class TranscribeAnswer(Answer):
    message: str = Field(description="`success`, or how many files failed.", examples=["success"])
    processing_time: float = Field(
        description="Seconds from the end of the upload to the answer.", examples=[0.42]
    )
    results: list[str] = Field(
        description="The text of each file, in the order sent.", examples=[["欢迎大家来体验。"]]
    )
    details: list[FileDetail] = Field(
        description="All that is known of each file, in the order sent."
    )
    model: Model = Field(description="What answered.")


class Error(Answer):
    type: Literal[
        "invalid_request_error", "rate_limit_error", "overloaded_error", "server_error"
    ] = Field(
        description="Whose turn it is: to send another request, to wait, or the service's.",
        examples=["invalid_request_error"],
    )
    code: str = Field(description="Stable name of the error.", examples=["invalid_request"])
    message: str = Field(
        description="What is wrong, for people.",
        examples=["lang must be one of auto, zh, en, yue, ja, ko, or some of them between commas"],
    )
    param: str | None = Field(
        description="The form field at fault; of 503 the reason: full, timeout, memory, loading,"
        " stopping or failed.",
        examples=["lang"],
    )
    request_id: str = Field(
        description="Also in the header x-request-id and in the log.", examples=["2f9c1d0a"]
    )


class ErrorAnswer(Answer):
    error: Error = Field(description="Why there is no answer.")


class ProgressEvent(Answer):
    """The data of an event ``progress``."""

    file: int = Field(description="Which file it is, from 0.", examples=[0])
    key: str = Field(description="The file's name in the answer.", examples=["audio1"])
    fraction: float = Field(
        description="How much of its audio has been recognised, up to 1.", examples=[0.25]
    )
    text: str = Field(
        description="What its text has gained; all put together are its whole text.",
        examples=["欢迎大家"],
    )


class TextEvent(Answer):
    """The data of an event ``done`` where plain text or subtitles were asked for."""

    text: str = Field(
        description="The body of the answer without a stream.", examples=["欢迎大家来体验。\n"]
    )


class ErrorEvent(ErrorAnswer):
    """The data of an event ``error``."""

    status: int = Field(
        description="The HTTP status that the request would have had.", examples=[503]
    )


_TEXT = "欢迎大家来体验。\n"
_STREAM = """event: progress
data: {"file":0,"key":"audio1","fraction":1.0,"text":"欢迎大家来体验。"}

event: done
data: {"text":"欢迎大家来体验。\\n"}

"""


def _plain(description: str, example: str) -> dict[str, Any]:
    return {"schema": {"type": "string", "description": description}, "example": example}


# Beside the JSON of ``TranscribeAnswer``.
OTHER_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The transcripts, in the format that was asked for.",
        "content": {
            "text/plain": _plain("The text of each file on a line of its own.", _TEXT),
            "application/x-subrip": _plain(
                "Subtitles as SubRip.", f"1\n00:00:00,000 --> 00:00:03,200\n{_TEXT}"
            ),
            "text/vtt": _plain(
                "Subtitles as WebVTT.", f"WEBVTT\n\n00:00:00.000 --> 00:00:03.200\n{_TEXT}"
            ),
            "text/event-stream": _plain(
                "With `stream=true`. Events `progress` have an object with `file` (its place among"
                " the files, from 0), `key`, `fraction` (of its audio that has been recognised, up"
                " to 1) and `text` (what its text has gained since the last one). The last event"
                " is `done`, with the whole answer as its data, or with `text` in an object where"
                " the answer is no JSON; or `error`, with the body of an error and its `status`."
                " Comments in between keep the connection open.",
                _STREAM,
            ),
        },
    }
}

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": description}
    for status, description in {
        400: "The multipart body is broken, the only file is empty, or there is no such format.",
        401: "There are API keys, and the request has none of them.",
        408: "The upload stood still for too long.",
        413: "The body is over the size limit, or the audio over the length limit.",
        415: "The body is no multipart form, or no file is audio.",
        422: "A field has a wrong value, no file was sent, or the audio is damaged.",
        429: "The client's own rate is used up; see the header Retry-After.",
        500: "The service is at fault.",
        503: "Overloaded, short of memory, or still loading; see the header Retry-After.",
        504: "It took too long.",
        507: "There is no room for the upload.",
    }.items()
}
