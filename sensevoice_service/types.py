"""The values that travel through the service, and the errors that end a request.

Data goes one way: ``Upload`` → ``Block`` → ``Chunk`` → ``Hypothesis`` → ``Transcript``.
This module knows neither torch nor fastapi, so that every other module may import it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000
DECLARED_SLACK_S = 1.0  # headers round, and count what encoders pad
LANGUAGES = ("auto", "zh", "en", "yue", "ja", "ko")

FBANK_WINDOW_SAMPLES = 400  # 25 ms
FBANK_SHIFT_SAMPLES = 160  # 10 ms
LFR_STACK_FRAMES = 7
LFR_SHIFT_FRAMES = 6
FRAME_SAMPLES = FBANK_SHIFT_SAMPLES * LFR_SHIFT_FRAMES  # one encoder frame: 60 ms
PROMPT_FRAMES = 4  # language, emotion, event, text-norm: ahead of the audio in every input row


@dataclass(frozen=True, eq=False)
class Upload:
    """One file of a request: ``file`` is seekable, ``name`` the client's word and never a path."""

    file: BinaryIO
    name: str
    size_bytes: int


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive decoded samples: float32 ``(n_samples,)`` in −1…1, mono, 16 kHz.

    ``declared_samples`` are all of the file by the word of its header, 0 where that tells nothing.
    """

    samples: NDArray[np.float32]
    start_sample: int
    declared_samples: int = 0


@dataclass(frozen=True)
class DecodeOptions:
    """What a request asks of the recogniser: one of ``LANGUAGES``, and whether to write digits.

    ``among`` limits ``auto`` to some of the languages, none of them meaning all. ``hotwords`` are
    words and phrases that the client expects, to be preferred where the sound allows them.
    """

    language: str = "auto"
    use_itn: bool = True
    among: tuple[str, ...] = ()
    hotwords: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the arg-max of each frame is all that is asked for."""
        return not (self.among or self.hotwords)


@dataclass(frozen=True, eq=False)
class Chunk:
    """A stretch of one file that the model sees at once.

    ``samples`` is float32 ``(n_samples,)``, ``start_sample`` counts from the start of the file at
    16 kHz, and the first ``overlap_samples`` are also the end of the chunk before it. Behind one
    that ``has_followers`` more work comes at once: of its file or, if a queue says so, of others.
    """

    samples: NDArray[np.float32]
    start_sample: int
    index: int
    options: DecodeOptions
    overlap_samples: int = 0
    has_followers: bool = False

    @property
    def end_sample(self) -> int:
        return self.start_sample + len(self.samples)

    @property
    def n_frames(self) -> int:
        """Encoder frames, prompts included: what the chunk costs in a batch."""
        return PROMPT_FRAMES + lfr_frames(len(self.samples))


def fbank_frames(n_samples: int) -> int:
    """10 ms frames of a waveform; one shorter than a window is padded to give a single frame."""
    return max(1, 1 + (n_samples - FBANK_WINDOW_SAMPLES) // FBANK_SHIFT_SAMPLES)


def lfr_frames(n_samples: int) -> int:
    """60 ms low-frame-rate frames of a waveform, without prompts."""
    return -(-fbank_frames(n_samples) // LFR_SHIFT_FRAMES)


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """What the model heard in one chunk: repeats joined, blanks dropped.

    The tokens are those of the arg-max, or of the beam search where hot words are asked for.

    ``token_ids``, ``first_frames`` and ``last_frames`` are int32 ``(n_tokens,)``; frames are 60 ms
    long and count from the start of the chunk (prompts excluded). ``prompt_ids`` are the arg-max
    ids at the four prompt positions: language, emotion, event and text-norm tags.
    """

    token_ids: NDArray[np.int32]
    first_frames: NDArray[np.int32]
    last_frames: NDArray[np.int32]
    prompt_ids: tuple[int, ...]


@dataclass(frozen=True)
class ChunkResult:
    """A hypothesis with its place in the file: what is kept of a chunk once it is recognised."""

    start_sample: int
    end_sample: int
    overlap_samples: int
    hypothesis: Hypothesis


@dataclass(frozen=True)
class Word:
    """A word, or one Chinese or Japanese character, on the file's own clock, seconds.

    ``text`` has the marks that stand beside the word, and the space ahead of it where there is one.
    """

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True)
class Segment:
    """A stretch of speech on the file's own clock, seconds.

    The texts of ``words`` put together, with nothing between them, are ``text``: the first has no
    space ahead of it.
    """

    start_s: float
    end_s: float
    text: str
    language: str
    emotion: str
    events: tuple[str, ...]
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Transcript:
    """The answer for one file. ``language`` and ``emotion`` are those of most of the speech."""

    text: str
    language: str
    emotion: str
    events: tuple[str, ...]
    duration_s: float
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Progress:
    """How far a file is: ``fraction`` (0…1, never falling) of its audio has been recognised.

    ``text`` is what the transcript gained since the last one: put together, up to the end, the
    texts are the text of the transcript.
    """

    fraction: float
    text: str


class ModelError(Exception):
    """The model cannot be used: ends the start with exit code 3, its message says what to do."""


class DeviceOutOfMemory(Exception):
    """The batch did not fit the device: fewer padded frames may."""


class ServiceError(Exception):
    """Ends a request, or one file of it, with an HTTP status and a message for the client."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(ServiceError):
    status, code = 422, "invalid_request"


class MalformedBody(ServiceError):
    status, code = 400, "malformed_body"


class UnsupportedBody(ServiceError):
    status, code = 415, "unsupported_media_type"


class EmptyFile(ServiceError):
    status, code = 400, "empty_file"


class UnsupportedAudio(ServiceError):
    """The bytes are no audio that the service decodes."""

    status, code = 415, "unsupported_audio"


class CorruptAudio(ServiceError):
    """Audio by its header, but damaged or cut off."""

    status, code = 422, "corrupt_audio"


class UploadTooLarge(ServiceError):
    status, code = 413, "upload_too_large"


class AudioTooLong(ServiceError):
    status, code = 413, "audio_too_long"


class Overloaded(ServiceError):
    """No slot, no memory or no time left in the waiting line; worth trying again."""

    status, code = 503, "overloaded"


class NotReady(ServiceError):
    """The model is still loading or has failed, or the service is stopping."""

    status, code = 503, "not_ready"


class InferenceFailed(ServiceError):
    status, code = 500, "inference_failed"


class Unauthorized(ServiceError):
    """No API key, or one that is not known."""

    status, code = 401, "unauthorized"


class RateLimited(ServiceError):
    """A client's own quota is used up; others are served."""

    status, code = 429, "rate_limited"


class TimedOut(ServiceError):
    """The request, or the decoding of its file, took longer than it may."""

    status, code = 504, "timed_out"


class StorageFull(ServiceError):
    """There is no room for the upload."""

    status, code = 507, "storage_full"
