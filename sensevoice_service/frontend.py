"""Waveforms to the model's features: Kaldi fbank, low frame rate, CMVN, batched.

The features are those of FunASR's ``WavFrontend`` with dither 0: 25 ms Hamming windows every
10 ms, 80 mel bands, natural log, samples on the int16 scale; then 7 frames stacked every 6 (LFR),
then the mean and scale of ``am.mvn``. Kaldi's own definition: ``src/feat/feature-fbank.cc`` and
``mel-computations.cc``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sensevoice_service.types import (
    FBANK_SHIFT_SAMPLES,
    FBANK_WINDOW_SAMPLES,
    LFR_SHIFT_FRAMES,
    LFR_STACK_FRAMES,
    SAMPLE_RATE_HZ,
    Chunk,
    fbank_frames,
    lfr_frames,
)

N_MELS = 80
FFT_SAMPLES = 512
LOW_HZ = 20.0
PREEMPHASIS = 0.97
INT16_SCALE = 32_768.0
LFR_LEFT_FRAMES = (LFR_STACK_FRAMES - 1) // 2

# What of this FunASR's ``frontend_conf`` states.
CONF = {
    "fs": SAMPLE_RATE_HZ,
    "window": "hamming",
    "n_mels": N_MELS,
    "frame_length": FBANK_WINDOW_SAMPLES * 1_000 // SAMPLE_RATE_HZ,
    "frame_shift": FBANK_SHIFT_SAMPLES * 1_000 // SAMPLE_RATE_HZ,
    "lfr_m": LFR_STACK_FRAMES,
    "lfr_n": LFR_SHIFT_FRAMES,
}

LANGUAGE_ROWS = {"auto": 0, "zh": 3, "en": 4, "yue": 7, "ja": 11, "ko": 12}
WITH_ITN_ROW, WITHOUT_ITN_ROW = 14, 15


@dataclass(frozen=True, eq=False)
class FeatureBatch:
    """What the encoder takes, on the device.

    ``features`` is float32 ``(B, T, 560)``, zero past each row's ``n_frames (B,)``, which is
    ``None`` where no row is padded; the prompt rows are ``(B,)`` and ``lengths`` is ``n_frames`` on
    the host.
    """

    features: Tensor
    n_frames: Tensor | None
    language_rows: Tensor
    textnorm_rows: Tensor
    lengths: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Cmvn:
    """``(x + shift) * scale`` over the 560 stacked bands; both float32 ``(560,)``."""

    shift: Tensor
    scale: Tensor


def read_cmvn(path: Path) -> Cmvn:
    """Read Kaldi's nnet text form: the vectors after ``<AddShift>`` and ``<Rescale>``.

    Raises ``ValueError`` where either is missing or of another length.
    """
    words = path.read_text(encoding="utf-8").split()

    def vector(tag: str) -> Tensor:
        start = words.index("[", words.index(tag)) + 1
        values = [float(word) for word in words[start : words.index("]", start)]]
        if len(values) != LFR_STACK_FRAMES * N_MELS:
            raise ValueError(f"{path.name}: {tag} has {len(values)} values")
        return torch.tensor(values)

    return Cmvn(shift=vector("<AddShift>"), scale=vector("<Rescale>"))


def require_known(frontend_conf: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` where a ``config.yaml`` asks for other features than these."""
    for name, value in CONF.items():
        if frontend_conf.get(name, value) != value:
            raise ValueError(f"only {name} {value} is known, not {frontend_conf[name]}")


def mel_banks() -> Tensor:
    """Kaldi's triangular mel filters over the power spectrum: float32 ``(257, 80)``."""

    def mel(hz: NDArray[np.float64] | float) -> NDArray[np.float64]:
        return np.asarray(1127.0 * np.log1p(np.asarray(hz) / 700.0))

    edges = np.linspace(mel(LOW_HZ), mel(SAMPLE_RATE_HZ / 2), N_MELS + 2)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = mel(np.arange(FFT_SAMPLES // 2) * SAMPLE_RATE_HZ / FFT_SAMPLES)[None, :]
    rising = (bins - left) / (centre - left)
    falling = (right - bins) / (right - centre)
    filters = np.maximum(0.0, np.minimum(rising, falling))
    with_nyquist = np.pad(filters, ((0, 0), (0, 1)))
    return torch.from_numpy(with_nyquist.T.astype(np.float32).copy())


class Frontend:
    """Chunks to a ``FeatureBatch`` on one device; holds constants only, so threads may share it."""

    def __init__(self, cmvn: Cmvn, device: torch.device) -> None:
        self.device = device
        self._shift = cmvn.shift.to(device)
        self._scale = cmvn.scale.to(device)
        self._mel = mel_banks().to(device)
        self._window = torch.hamming_window(FBANK_WINDOW_SAMPLES, periodic=False, device=device)

    @torch.inference_mode()
    def __call__(self, chunks: Sequence[Chunk]) -> FeatureBatch:
        features, lengths = self.features([chunk.samples for chunk in chunks])
        itn_rows = [WITH_ITN_ROW if c.options.use_itn else WITHOUT_ITN_ROW for c in chunks]
        padded = len(set(lengths)) > 1
        return FeatureBatch(
            features=features,
            n_frames=self._rows(lengths) if padded else None,
            language_rows=self._rows([LANGUAGE_ROWS[c.options.language] for c in chunks]),
            textnorm_rows=self._rows(itn_rows),
            lengths=tuple(lengths),
        )

    def features(self, waveforms: Sequence[NDArray[np.float32]]) -> tuple[Tensor, list[int]]:
        """LFR features with CMVN, ``(B, T, 560)``, zero-padded, and each row's frame count.

        A waveform shorter than one window is padded with silence to a window.
        """
        lengths = [lfr_frames(len(waveform)) for waveform in waveforms]
        batch = torch.zeros(len(waveforms), max(lengths), LFR_STACK_FRAMES * N_MELS)
        batch = batch.to(self.device)
        bands = self.fbank(waveforms)
        counts = [fbank_frames(len(waveform)) for waveform in waveforms]
        for row, one, length in zip(batch, bands.split(counts), lengths, strict=True):
            row[:length] = (stack_lfr(one) + self._shift) * self._scale
        return batch, lengths

    def fbank(self, waveforms: Sequence[NDArray[np.float32]]) -> Tensor:
        """Log-mel frames of all waveforms, one after another: float32 ``(sum of frames, 80)``."""
        frames = torch.cat([self._frames(waveform) for waveform in waveforms])
        frames = frames - frames.mean(dim=1, keepdim=True)
        previous = torch.cat((frames[:, :1], frames[:, :-1]), dim=1)
        frames = (frames - PREEMPHASIS * previous) * self._window
        power = torch.fft.rfft(frames, n=FFT_SAMPLES).abs().square()
        return (power @ self._mel).clamp_min(torch.finfo(torch.float32).eps).log()

    def _frames(self, waveform: NDArray[np.float32]) -> Tensor:
        samples = torch.from_numpy(waveform).to(self.device) * INT16_SCALE
        missing = FBANK_WINDOW_SAMPLES - len(samples)
        if missing > 0:
            samples = torch.nn.functional.pad(samples, (0, missing))
        return samples.unfold(0, FBANK_WINDOW_SAMPLES, FBANK_SHIFT_SAMPLES)

    def _rows(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)


def stack_lfr(frames: Tensor) -> Tensor:
    """Stack 7 frames every 6: ``(T, 80)`` to ``(ceil(T / 6), 560)``, edges repeated."""
    n_frames = len(frames)
    starts = torch.arange(math.ceil(n_frames / LFR_SHIFT_FRAMES)) * LFR_SHIFT_FRAMES
    index = starts[:, None] + torch.arange(LFR_STACK_FRAMES) - LFR_LEFT_FRAMES
    return frames[index.clamp_(0, n_frames - 1).to(frames.device)].flatten(1)
