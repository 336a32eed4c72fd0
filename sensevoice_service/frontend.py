"""Waveforms to the model's features: Kaldi fbank, low frame rate, CMVN, batched.

The features are those of FunASR's ``WavFrontend`` with dither 0: 25 ms Hamming windows every
10 ms, 80 mel bands, natural log, samples on the int16 scale; then 7 frames stacked every 6 (LFR),
then the mean and scale of ``am.mvn``. Kaldi's own definition: ``src/feat/feature-fbank.cc`` and
``mel-computations.cc``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
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
LOG_FLOOR = torch.finfo(torch.float32).eps
INT16_SCALE = 32_768.0
# A CPU's caches hold every intermediate value of so many windows; of a whole clip they do not, and
# that takes more than twice as long.
CACHED_WINDOWS = 256
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

Waveform = NDArray[np.float32] | NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class FeatureBatch:
    """What the encoder takes, on the device.

    ``features`` is float32 ``(B, T, 560)``, zero past each row's ``n_frames (B,)``, which is
    ``None`` where no row is padded; the prompt rows are ``(B,)`` and ``lengths`` is ``n_frames`` on
    the host. It ``has_followers`` where one of its chunks has.
    """

    features: Tensor
    n_frames: Tensor | None
    language_rows: Tensor
    textnorm_rows: Tensor
    lengths: tuple[int, ...]
    has_followers: bool = False


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


def hamming_window() -> Tensor:
    return torch.hamming_window(FBANK_WINDOW_SAMPLES, periodic=False)


class Frontend:
    """Chunks to a ``FeatureBatch`` on one device; holds constants only, so threads may share it."""

    def __init__(self, cmvn: Cmvn, device: torch.device) -> None:
        self.device = device
        self.cmvn = cmvn
        self._is_gpu = device.type == "cuda"
        self._shift = cmvn.shift.to(device)
        self._scale = cmvn.scale.to(device)
        self._mel = mel_banks().to(device)
        self._window = hamming_window().to(device)

    @torch.inference_mode()
    def __call__(self, chunks: Sequence[Chunk]) -> FeatureBatch:
        features, lengths = self.features([chunk.samples for chunk in chunks])
        languages = [LANGUAGE_ROWS[c.options.language] for c in chunks]
        itns = [WITH_ITN_ROW if c.options.use_itn else WITHOUT_ITN_ROW for c in chunks]
        language_rows, textnorm_rows, n_frames = self._send((languages, itns, lengths))
        padded = len(set(lengths)) > 1
        return FeatureBatch(
            features=features,
            n_frames=n_frames if padded else None,
            language_rows=language_rows,
            textnorm_rows=textnorm_rows,
            lengths=tuple(lengths),
            has_followers=any(chunk.has_followers for chunk in chunks),
        )

    def features(self, waveforms: Sequence[Waveform]) -> tuple[Tensor, list[int]]:
        """LFR features with CMVN, ``(B, T, 560)``, zero-padded, and each row's frame count.

        Samples are float32 in −1…1, or int16. A waveform shorter than one window is padded with
        silence to a window.
        """
        lengths = [lfr_frames(len(waveform)) for waveform in waveforms]
        counts = [fbank_frames(len(waveform)) for waveform in waveforms]
        starts = first_windows(waveforms)
        first, n_own, n_frames = self._send((starts[:-1], counts, lengths))
        bands = self._log_mel(self._join(waveforms, starts))
        index = lfr_index(first, n_own, max(lengths))
        stacked = bands.index_select(0, index.flatten()).view(*index.shape[:2], -1)
        features = stacked.add_(self._shift).mul_(self._scale)
        if len(set(lengths)) > 1:
            steps = torch.arange(max(lengths), device=self.device)
            features.masked_fill_((steps >= n_frames[:, None])[:, :, None], 0.0)
        return features, lengths

    def fbank(self, waveforms: Sequence[Waveform]) -> Tensor:
        """Log-mel frames of all waveforms, one after another: float32 ``(sum of frames, 80)``."""
        starts = first_windows(waveforms)
        bands = self._log_mel(self._join(waveforms, starts))
        counts = [fbank_frames(len(waveform)) for waveform in waveforms]
        own = zip(starts[:-1], counts, strict=True)
        return torch.cat([bands[first : first + count] for first, count in own])

    def _log_mel(self, samples: Tensor) -> Tensor:
        """The 80 bands of every window of ``samples (n,)``: float32 ``(n_windows, 80)``."""
        frames = samples.unfold(0, FBANK_WINDOW_SAMPLES, FBANK_SHIFT_SAMPLES)
        if self._is_gpu:
            return self._bands(frames)
        return torch.cat([self._bands(part) for part in frames.split(CACHED_WINDOWS)])

    def _bands(self, frames: Tensor) -> Tensor:
        centred = frames - frames.mean(dim=1, keepdim=True)
        emphasised = torch.empty_like(centred)
        torch.sub(centred[:, 1:], centred[:, :-1], alpha=PREEMPHASIS, out=emphasised[:, 1:])
        torch.mul(centred[:, 0], 1 - PREEMPHASIS, out=emphasised[:, 0])  # it follows upon itself
        spectrum = torch.fft.rfft(emphasised.mul_(self._window), n=FFT_SAMPLES)
        squares = torch.view_as_real(spectrum).square_()
        power = squares[..., 0] + squares[..., 1]
        return (power @ self._mel).clamp_min_(LOG_FLOOR).log_()

    def _join(self, waveforms: Sequence[Waveform], starts: Sequence[int]) -> Tensor:
        """All waveforms on the device in one copy, float32 on the int16 scale.

        Each begins with the window of ``starts``, and silence fills what it leaves. The few windows
        that lie across two waveforms belong to none: that is cheaper than to cut them out.
        """
        is_int16 = all(waveform.dtype == np.int16 for waveform in waveforms)
        n_shifts = few_sizes(starts[-1]) if self._is_gpu else starts[-1]
        host = torch.empty(
            n_shifts * FBANK_SHIFT_SAMPLES,
            dtype=torch.int16 if is_int16 else torch.float32,
            pin_memory=self._is_gpu,
        )
        ends = [start * FBANK_SHIFT_SAMPLES for start in (*starts[1:-1], n_shifts)]
        for waveform, start, end in zip(waveforms, starts[:-1], ends, strict=True):
            begin = start * FBANK_SHIFT_SAMPLES
            if waveform.dtype == np.int16 and not is_int16:
                waveform = waveform / np.float32(INT16_SCALE)
            host[begin : begin + len(waveform)] = torch.from_numpy(waveform)
            host[begin + len(waveform) : end] = 0
        samples = host.to(self.device, non_blocking=True)
        return samples.float() if is_int16 else samples.mul_(INT16_SCALE)

    def _send(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
        """Integers to the device, all rows in one copy."""
        host = torch.tensor(rows, dtype=torch.long, pin_memory=self._is_gpu)
        return host.to(self.device, non_blocking=True).unbind()


def first_windows(waveforms: Sequence[Waveform]) -> list[int]:
    """Where each waveform's windows begin if all are laid end to end, and where the last ends.

    Counted in shifts of 160 samples, so that the windows of one waveform are those of the whole.
    """
    sizes = (max(len(waveform), FBANK_WINDOW_SAMPLES) for waveform in waveforms)
    return [0, *accumulate(-(-size // FBANK_SHIFT_SAMPLES) for size in sizes)]


def few_sizes(n: int) -> int:
    """Round up, by an eighth at most past 512, so that there are eight sizes from ``n`` to ``2n``.

    cuFFT makes and keeps a plan for each number of windows that it meets.
    """
    step = max(64, 1 << max(0, n.bit_length() - 4))
    return -(-n // step) * step


def lfr_index(first: Tensor, n_own: Tensor, n_frames: int) -> Tensor:
    """Which fbank frames each low-rate frame stacks: ``(B, n_frames, 7)``.

    Row ``b`` has ``n_own[b]`` frames from ``first[b]`` on, both ``(B,)``; past its edges it repeats
    its own first and last.
    """
    starts = torch.arange(n_frames, device=first.device)[:, None] * LFR_SHIFT_FRAMES
    steps = starts + torch.arange(LFR_STACK_FRAMES, device=first.device) - LFR_LEFT_FRAMES
    last = n_own[:, None, None] - 1
    return torch.minimum(steps.clamp_min_(0), last) + first[:, None, None]


def stack_lfr(frames: Tensor) -> Tensor:
    """Stack 7 frames every 6: ``(T, 80)`` to ``(ceil(T / 6), 560)``, edges repeated."""
    n_own = torch.tensor([len(frames)], device=frames.device)
    n_frames = -(-len(frames) // LFR_SHIFT_FRAMES)
    return frames[lfr_index(torch.zeros_like(n_own), n_own, n_frames)[0]].flatten(1)
