"""Speech with known word times, from the espeak-ng library, and the noise laid over it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr
from numpy.typing import NDArray

from sensevoice_service.types import SAMPLE_RATE_HZ
from training.lexicon import Language

FloatArray = NDArray[np.float32]

# "gmw/en" is en-gb: its own name is an alias that the library, unlike the program, does not know.
ENGLISH_VOICES = ("en-us", "gmw/en", "en-gb-x-rp", "en-gb-scotland")
CHINESE_VOICES = ("cmn",)
VARIANTS = ("", "+m1", "+m2", "+m3", "+m4", "+m5", "+f1", "+f2", "+f3", "+f4")

# espeak-ng/speak_lib.h: the parts of its interface that are used here.
AUDIO_OUTPUT_SYNCHRONOUS = 2
EVENT_END_OF_LIST, EVENT_WORD = 0, 1
RATE, PITCH = 1, 3
POSITION_CHARACTER = 1
CHARS_UTF8, END_PAUSE = 1, 0x1000


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclass(frozen=True)
class Voice:
    """A voice name such as ``en-us+f2``, words a minute, and pitch 0–99."""

    name: str
    rate_wpm: int
    pitch: int


@dataclass(frozen=True, eq=False)
class Speech:
    """Float32 ``(n_samples,)`` at 16 kHz and where each word starts: ``(n_words,)`` samples."""

    samples: FloatArray
    starts: NDArray[np.int64]


class Espeak:
    """One espeak-ng engine; the library has global state, so one a process."""

    def __init__(self, library: str = "libespeak-ng.so.1") -> None:
        self._lib = ctypes.CDLL(library)
        self.rate_hz = int(self._lib.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, None, 0))
        if self.rate_hz <= 0:
            raise RuntimeError("espeak-ng could not be initialised")
        self._audio: list[NDArray[np.int16]] = []
        self._starts: dict[int, int] = {}
        self._callback = _Callback(self._receive)
        self._lib.espeak_SetSynthCallback(self._callback)

    def _receive(
        self, wav: ctypes.Array[ctypes.c_short], n_samples: int, events: ctypes.Array[_Event]
    ) -> int:
        if n_samples > 0 and wav:
            self._audio.append(np.ctypeslib.as_array(wav, shape=(n_samples,)).copy())
        index = 0
        while events[index].type != EVENT_END_OF_LIST:
            if events[index].type == EVENT_WORD:
                self._starts.setdefault(events[index].text_position, events[index].sample)
            index += 1
        return 0

    def speak(self, words: Sequence[str], voice: Voice, separator: str = " ") -> Speech:
        """Say the words; raises ``RuntimeError`` if the engine does not report each one's start."""
        self._audio, self._starts = [], {}
        if self._lib.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise RuntimeError(f"no voice {voice.name}")
        self._lib.espeak_SetParameter(RATE, voice.rate_wpm, 0)
        self._lib.espeak_SetParameter(PITCH, voice.pitch, 0)
        text = separator.join(words).encode()
        self._lib.espeak_Synth(
            text, len(text) + 1, 0, POSITION_CHARACTER, 0, CHARS_UTF8 | END_PAUSE, None, None
        )
        self._lib.espeak_Synchronize()
        samples = np.concatenate(self._audio).astype(np.float32) / 32_768
        resampled = soxr.resample(samples, self.rate_hz, SAMPLE_RATE_HZ)
        return Speech(resampled, self._word_starts(words, len(separator)))

    def _word_starts(self, words: Sequence[str], n_between: int) -> NDArray[np.int64]:
        """Word events carry 1-based character positions.

        Pairs that the engine runs into one ("on the") have one event: the second word is put
        halfway to the next.
        """
        first = np.cumsum([1, *(len(word) + n_between for word in words)])
        known = [position for position in first.tolist() if position in self._starts]
        end = sum(len(part) for part in self._audio)
        at = [self._starts[position] for position in known]
        starts = np.interp(first[:-1], [*known, int(first[-1])], [*at, end])
        return (starts * SAMPLE_RATE_HZ / self.rate_hz).astype(np.int64)


def random_voice(rng: np.random.Generator, language: Language) -> Voice:
    accents = ENGLISH_VOICES if language == "en" else CHINESE_VOICES
    name = str(rng.choice(accents)) + str(rng.choice(VARIANTS))
    return Voice(name, int(rng.integers(115, 210)), int(rng.integers(20, 81)))


def random_noise(rng: np.random.Generator, n_samples: int, level_db: float) -> FloatArray:
    """Noise of one RMS level (dB of full scale) and a random colour between white and pink."""
    n_drawn = 1 << n_samples.bit_length()  # a power of 2: one of a large prime takes far longer
    spectrum = np.fft.rfft(rng.standard_normal(n_drawn))
    tilt = rng.uniform(0.0, 0.5)
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** tilt
    noise = np.fft.irfft(spectrum, n_drawn)[:n_samples]
    scale = 10 ** (level_db / 20) / max(float(np.sqrt(np.mean(noise**2))), 1e-9)
    return np.asarray(noise * scale, dtype=np.float32)


def soil(rng: np.random.Generator, samples: FloatArray) -> FloatArray:
    """A random level with clipping, noise at -30 dB or lower, and at times a narrow band."""
    gained = samples * 10 ** (rng.uniform(-14, 4) / 20)
    if rng.random() < 0.1:
        narrow_hz = int(rng.choice((8_000, 11_025, 12_000)))
        narrow = soxr.resample(gained, SAMPLE_RATE_HZ, narrow_hz)
        gained = np.resize(soxr.resample(narrow, narrow_hz, SAMPLE_RATE_HZ), len(samples))
    if rng.random() < 0.85:
        gained = gained + random_noise(rng, len(samples), rng.uniform(-80, -30))
    return np.clip(gained, -1, 1).astype(np.float32)
