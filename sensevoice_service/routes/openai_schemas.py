"""The bodies of ``/v1`` as OpenAPI shows them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from sensevoice_service.routes.schemas import Answer, AudioFile

_WITHOUT_MEASURE = "Not measured: there for clients that insist on it."


class TranscriptionForm(BaseModel):
    """Describes the form; it is read by ``openai_form``."""

    file: AudioFile = Field(description="An audio file: WAV, MP3, FLAC, OGG, M4A and others.")
    model: str = Field(
        "whisper-1",
        description="Any name: there is one model, which `GET /v1/models` names.",
        examples=["whisper-1"],
    )
    language: str = Field(
        "auto",
        description="The language spoken: `zh`, `en`, `yue`, `ja`, `ko`, also as in `zh-CN` or"
        " `english`. Without it the language is detected; several between commas limit what is"
        " detected to these.",
        examples=["auto", "en"],
    )
    prompt: str = Field(
        "",
        description="Words and short phrases that are likely to be said, such as names, between"
        " commas (also `，` and `、`), semicolons (also `；`) or line ends: two to 50 of them, of"
        " up to four words and 30 characters each, none with a mark that ends a sentence. Any other"
        " text is ignored.",
        examples=["", "SenseVoice, Hangzhou, 通义"],
    )
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = Field(
        "json",
        description="`json`, the text alone; `verbose_json`, with times; `text`, `srt` or `vtt`.",
        examples=["verbose_json"],
    )
    timestamp_granularities: list[Literal["word", "segment"]] = Field(
        ["segment"],
        alias="timestamp_granularities[]",
        description="What has times in `verbose_json`, which must be asked for with it.",
        examples=[["word"]],
    )
    stream: bool = Field(
        False,
        description="Answer with server-sent events while the file is worked on; with the formats"
        " `json` and `text` alone.",
        examples=[False],
    )
    temperature: float = Field(
        0, ge=0, le=1, description="Has no effect: nothing is drawn at random.", examples=[0]
    )
    languages: list[str] = Field(
        [],
        alias="languages[]",
        description="Languages that may be spoken; what is detected is one of them.",
        examples=[[], ["zh", "en"]],
    )
    keywords: list[str] = Field(
        [],
        alias="keywords[]",
        description="As `hotwords`.",
        examples=[[], ["SenseVoice", "Hangzhou"]],
    )
    hotwords: str = Field(
        "",
        description="Words and phrases that are likely to be said, such as names: up to 100, of up"
        " to 50 characters each, between commas (also `，` and `、`) or line ends. No field of"
        " OpenAI's.",
        examples=["", "SenseVoice, Hangzhou, 通义"],
    )
    use_itn: bool = Field(
        True,
        description="Write numbers, dates and the like in digits, and punctuate. No field of"
        " OpenAI's.",
        examples=[True],
    )


class Usage(Answer):
    type: Literal["duration"] = Field(description="How use is measured.", examples=["duration"])
    seconds: float = Field(description="Length of the audio.", examples=[3.2])


class Transcription(Answer):
    text: str = Field(description="All that was said.", examples=["欢迎大家来体验。"])
    usage: Usage = Field(description="What was transcribed.")


class TranscriptionSegment(Answer):
    id: int = Field(description="Its place among the segments, from 0.", examples=[0])
    seek: int = Field(description=_WITHOUT_MEASURE, examples=[0])
    start: float = Field(description="Seconds from the start of the file.", examples=[0.09])
    end: float = Field(description="Seconds from the start of the file.", examples=[3.06])
    text: str = Field(description="What was said.", examples=["欢迎大家来体验。"])
    tokens: list[int] = Field(description=_WITHOUT_MEASURE, examples=[[]])
    temperature: float = Field(description=_WITHOUT_MEASURE, examples=[0.0])
    avg_logprob: float = Field(description=_WITHOUT_MEASURE, examples=[0.0])
    compression_ratio: float = Field(
        description="Bytes of the text by its bytes compressed.", examples=[0.774]
    )
    no_speech_prob: float = Field(description=_WITHOUT_MEASURE, examples=[0.0])
    language: str = Field(description="The code of its language.", examples=["zh"])
    emotion: str = Field(description="As in the answers of `/transcribe`.", examples=["NEUTRAL"])
    events: list[str] = Field(description="Sounds heard.", examples=[["Speech"]])


class TranscriptionWord(Answer):
    word: str = Field(
        description="With the punctuation beside it; in Chinese and Japanese a single character.",
        examples=["欢"],
    )
    start: float = Field(description="Seconds from the start of the file.", examples=[0.21])
    end: float = Field(description="Seconds from the start of the file.", examples=[0.39])


class VerboseTranscription(Answer):
    task: Literal["transcribe"] = Field(description="What was done.", examples=["transcribe"])
    language: str = Field(
        description="That of most of the speech: `chinese`, `english`, `cantonese`, `japanese` or"
        " `korean`; another by its code, as the model has it; `nospeech` where it hears none, and"
        " `unknown` where it does not tell.",
        examples=["chinese"],
    )
    duration: float = Field(description="Length of the audio, seconds.", examples=[3.2])
    text: str = Field(description="All that was said.", examples=["欢迎大家来体验。"])
    segments: list[TranscriptionSegment] | None = Field(
        None, description="Stretches of speech, in order; absent where words alone are asked for."
    )
    words: list[TranscriptionWord] | None = Field(
        None, description="All words, in order; absent unless they are asked for."
    )
    usage: Usage = Field(description="What was transcribed.")


class OpenAiModel(Answer):
    id: str = Field(description="The model's name.", examples=["SenseVoiceSmall"])
    object: Literal["model"] = Field(description="What this is.", examples=["model"])
    created: int = Field(
        description="When the service was started, seconds since 1970.", examples=[1767225600]
    )
    owned_by: str = Field(description="Always `sensevoice`.", examples=["sensevoice"])


class ModelList(Answer):
    object: Literal["list"] = Field(description="What this is.", examples=["list"])
    data: list[OpenAiModel] = Field(description="The model that is served.")


class OpenAiError(Answer):
    message: str = Field(
        description="What is wrong, for people.",
        examples=["response_format must be one of json, text, srt, vtt, verbose_json"],
    )
    type: Literal[
        "invalid_request_error", "rate_limit_error", "overloaded_error", "server_error"
    ] = Field(
        description="Whose turn it is: to send another request, to wait, or the service's.",
        examples=["invalid_request_error"],
    )
    param: str | None = Field(
        description="The form field at fault; of most 503 the reason: full, timeout, memory,"
        " loading, stopping or failed. Null where there is neither.",
        examples=["response_format"],
    )
    code: str = Field(description="Stable name of the error.", examples=["unsupported_format"])


class OpenAiErrorAnswer(Answer):
    error: OpenAiError = Field(description="Why there is no answer.")


_TEXT = "欢迎大家来体验。"
_STREAM = f"""data: {{"type":"transcript.text.delta","delta":"{_TEXT}"}}

data: {{"type":"transcript.text.done","text":"{_TEXT}","usage":{{"type":"duration","seconds":3.2}}}}

"""


def _plain(description: str, example: str) -> dict[str, Any]:
    return {"schema": {"type": "string", "description": description}, "example": example}


TRANSCRIBED: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Transcription | VerboseTranscription,
        "description": "The transcript, in the format that was asked for.",
        "content": {
            "text/plain": _plain("The text.", f"{_TEXT}\n"),
            "application/x-subrip": _plain(
                "Subtitles as SubRip.", f"1\n00:00:00,090 --> 00:00:03,060\n{_TEXT}\n"
            ),
            "text/vtt": _plain(
                "Subtitles as WebVTT.", f"WEBVTT\n\n00:00:00.090 --> 00:00:03.060\n{_TEXT}\n"
            ),
            "text/event-stream": _plain(
                "With `stream=true`. The deltas put together are the text of the last event. What"
                " fails after that has begun ends the stream with the body of an error, whose"
                " `type` is `error`. Comments in between keep the connection open.",
                _STREAM,
            ),
        },
    }
}

_DESCRIBED = {
    400: "The body is broken, a field has a wrong value, or the file is empty.",
    401: "There are API keys, and the request has none of them.",
    404: "There is no such model.",
    408: "The upload stood still for too long.",
    413: "The body is over the size limit, or the audio over the length limit.",
    415: "The body is no multipart form, or the file is not audio.",
    422: "The audio is damaged.",
    429: "The client's own rate is used up; see the header Retry-After.",
    500: "The service is at fault.",
    503: "Overloaded, short of memory, or still loading; see the header Retry-After.",
    504: "It took too long.",
    507: "There is no room for the upload.",
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"model": OpenAiErrorAnswer, "description": _DESCRIBED[status]}
        for status in statuses
    }


ERRORS = _errors(400, 401, 408, 413, 415, 422, 429, 500, 503, 504, 507)
MODEL_ERRORS = _errors(401, 404, 429, 503)
