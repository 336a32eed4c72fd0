"""The front end in the C of ``native/``: a third of the time that torch takes on a CPU."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int64, c_void_p
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sensevoice_service.frontend import (
    FFT_SAMPLES,
    INT16_SCALE,
    LOG_FLOOR,
    N_MELS,
    PREEMPHASIS,
    Frontend,
    Waveform,
    hamming_window,
    mel_banks,
)
from sensevoice_service.types import FBANK_WINDOW_SAMPLES, LFR_STACK_FRAMES, lfr_frames

POINTERS = ("window", "cosines", "sines", "first_bins", "n_bins", "weights", "shift", "scale")


class Fbank(ctypes.Structure):
    """As in ``fbank.h``."""

    _fields_ = (
        *((name, c_void_p) for name in POINTERS),
        *((name, c_float) for name in ("gain", "preemphasis", "floor")),
    )


class NativeFrontend(Frontend):
    """As a ``Frontend`` on the CPU with the same CMVN."""

    def __init__(self, plain: Frontend, library: ctypes.CDLL) -> None:
        super().__init__(plain.cmvn, torch.device("cpu"))
        first_bins, n_bins, weights = triangles(mel_banks().numpy())
        angles = np.arange(FFT_SAMPLES // 2) * (2 * np.pi / FFT_SAMPLES)
        floats = {
            "window": hamming_window().numpy(),
            "cosines": np.cos(angles),
            "sines": np.sin(angles),
            "weights": weights,
            "shift": plain.cmvn.shift.numpy(),
            "scale": plain.cmvn.scale.numpy(),
        }
        self._kept: dict[str, NDArray[Any]] = {
            **{name: np.ascontiguousarray(one, np.float32) for name, one in floats.items()},
            "first_bins": first_bins,
            "n_bins": n_bins,
        }
        addresses = {name: one.ctypes.data for name, one in self._kept.items()}
        self._fbank = Fbank(**addresses, gain=INT16_SCALE, preemphasis=PREEMPHASIS, floor=LOG_FLOOR)
        self._features = library.sensevoice_features

    def features(self, waveforms: Sequence[Waveform]) -> tuple[Tensor, list[int]]:
        """As ``Frontend.features``. Raises ``MemoryError``."""
        lengths = [lfr_frames(len(waveform)) for waveform in waveforms]
        features = np.empty((len(lengths), max(lengths), LFR_STACK_FRAMES * N_MELS), np.float32)
        for row, waveform, length in zip(features, waveforms, lengths, strict=True):
            samples = as_floats(waveform)
            is_done = self._features(
                ctypes.byref(self._fbank),
                c_void_p(samples.ctypes.data),
                c_int64(len(samples)),
                c_void_p(row.ctypes.data),
            )
            if not is_done:
                raise MemoryError(f"no memory for the features of {len(samples)} samples")
            row[length:] = 0.0
        return torch.from_numpy(features), lengths


def as_floats(waveform: Waveform) -> NDArray[np.float32]:
    """In −1…1, one behind the other, and at least a window of them."""
    samples = np.asarray(waveform, np.float32)
    if waveform.dtype == np.int16:
        samples = samples / np.float32(INT16_SCALE)
    missing = FBANK_WINDOW_SAMPLES - len(samples)
    return np.ascontiguousarray(np.pad(samples, (0, missing)) if missing > 0 else samples)


def triangles(
    banks: NDArray[np.float32],
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """Of ``(bins, bands)`` each band's first bin, how many it has, and all their weights."""
    present = banks.T > 0
    first_bins = present.argmax(axis=1).astype(np.int32)
    n_bins = present.sum(axis=1).astype(np.int32)
    weights = [
        band[first : first + n] for band, first, n in zip(banks.T, first_bins, n_bins, strict=True)
    ]
    return first_bins, n_bins, np.concatenate(weights)
