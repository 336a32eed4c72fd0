"""FunASR beside us: its front end, its network and its texts, as the measure of ours."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Samples = NDArray[np.float32]


class FunAsr:
    """The same folder in FunASR: its front end without dither, its network, and the whole of it."""

    def __init__(self, folder: Path) -> None:
        with _silence():
            from funasr import AutoModel

            self._model: Any = AutoModel(
                model=str(folder),
                device="cpu",
                ncpu=torch.get_num_threads(),
                disable_update=True,
                disable_pbar=True,
                log_level="ERROR",
                frontend_conf={"dither": 0.0},
            )
        self._frontend: Any = self._model.kwargs["frontend"]
        assert self._frontend.dither == 0.0

    @property
    def language_rows(self) -> dict[str, int]:
        return dict(self._model.model.lid_dict)

    @property
    def textnorm_rows(self) -> dict[str, int]:
        return dict(self._model.model.textnorm_dict)

    def features(self, samples: Samples) -> Tensor:
        """``(T, 560)``."""
        features, _ = self._frontend(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
        return features[0]

    @torch.no_grad()
    def logits(
        self,
        features: Tensor,
        n_frames: Sequence[int],
        language_rows: Sequence[int],
        textnorm_rows: Sequence[int],
    ) -> Tensor:
        """``(B, 4 + T, vocab_size)``, as its ``inference`` computes them, with rows of their own
        for each item."""
        module = self._model.model
        pairs = zip(language_rows, textnorm_rows, strict=True)
        rows = [[language, 1, 2, norm] for language, norm in pairs]
        x = torch.cat((module.embed(torch.tensor(rows)), features), dim=1)
        hidden, _ = module.encoder(x, torch.tensor(n_frames) + 4)
        return module.ctc.ctc_lo(hidden)

    def text(self, samples: Samples, language: str, use_itn: bool) -> str:
        with _silence():
            (answer,) = self._model.generate(samples, language=language, use_itn=use_itn)
        return str(answer["text"])


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    nowhere = io.StringIO()
    with (
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield
