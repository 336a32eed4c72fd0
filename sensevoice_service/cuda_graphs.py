"""Batches on a GPU as one launch: the network captured for some shapes, replayed for all others.

Run kernel by kernel, a batch of some seconds keeps the host busier than the device; and each kernel
gives up the interpreter's lock and has to win it back, for which it waits the longer the busier the
service is. A CUDA graph launches them all at once, but for one shape and one place in memory; so a
batch is copied into the next larger shape, where the rest is padding.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sensevoice_service.frontend import FeatureBatch
from sensevoice_service.types import PROMPT_FRAMES

# Features (B, T, n), n_frames, language rows and text-norm rows (B,) to ids (B, 4 + T).
Forward = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Replay = Callable[[], Tensor]
Capture = Callable[[Replay], Replay]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bucket:
    """A shape that is captured; ``frames`` are a row's encoder frames, prompts included."""

    rows: int
    frames: int

    @property
    def padded_frames(self) -> int:
        return self.rows * self.frames


BUCKET_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 128)
BUCKET_FRAMES = (64, 128, 176, 256, 352, 512)  # a little over 3, 7, 10, 15, 20 and 30 s
MAX_BUCKET_FRAMES = 8_448  # what a batch of the service has by default, in the next larger shape
BUCKETS = tuple(
    Bucket(rows, frames)
    for rows in BUCKET_ROWS
    for frames in BUCKET_FRAMES
    if rows * frames <= MAX_BUCKET_FRAMES
)
LEAST_ALIKE = 0.9  # ids of a replay and of its kernels run one by one


def best_bucket(buckets: Collection[Bucket], rows: int, frames: int) -> Bucket | None:
    """The least padded of those that hold ``rows`` of ``frames``, if any."""
    holding = [b for b in buckets if b.rows >= rows and b.frames >= frames]
    return min(holding, key=lambda b: (b.padded_frames, b.rows), default=None)


@dataclass(frozen=True, eq=False)
class StaticInputs:
    """Where a graph reads: the arguments of a ``Forward``, at the full size of its bucket."""

    features: Tensor
    n_frames: Tensor
    language_rows: Tensor
    textnorm_rows: Tensor

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.features, self.n_frames, self.language_rows, self.textnorm_rows

    def fill(self, batch: FeatureBatch) -> None:
        """Rows past the batch get one frame of zeros: over none, attention would be NaN.

        What was there is wiped, not masked alone, since what is not finite gets past a mask.
        """
        rows, n_frames = batch.features.shape[:2]
        self.features.zero_()
        self.features[:rows, :n_frames].copy_(batch.features)
        self.n_frames.fill_(1)
        if batch.n_frames is None:
            self.n_frames[:rows].fill_(n_frames)
        else:
            self.n_frames[:rows].copy_(batch.n_frames)
        self.language_rows[:rows].copy_(batch.language_rows)
        self.textnorm_rows[:rows].copy_(batch.textnorm_rows)


class InputMemory:
    """Makes the inputs of any of the buckets, all in the same memory: one graph runs at a time."""

    def __init__(self, buckets: Collection[Bucket], n_features: int, device: torch.device) -> None:
        most_frames = max(bucket.rows * (bucket.frames - PROMPT_FRAMES) for bucket in buckets)
        most_rows = max(bucket.rows for bucket in buckets)
        self._features = torch.zeros(most_frames, n_features, device=device)
        self._rows = torch.zeros(3, most_rows, dtype=torch.long, device=device)

    def __call__(self, bucket: Bucket) -> StaticInputs:
        n_frames = bucket.frames - PROMPT_FRAMES
        features = self._features[: bucket.rows * n_frames].view(bucket.rows, n_frames, -1)
        rows = self._rows[:, : bucket.rows]
        return StaticInputs(features, rows[0].fill_(n_frames), rows[1], rows[2])


class Graphs:
    """The captured shapes of one network on one device; threads take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._captured: dict[Bucket, tuple[StaticInputs, Replay]] = {}

    @torch.inference_mode()
    def capture(
        self,
        buckets: Collection[Bucket],
        forward: Forward,
        inputs_of: Callable[[Bucket], StaticInputs],
        capture: Capture,
        sample: FeatureBatch,
    ) -> None:
        """Capture those that are not yet, the largest first, so that others fit into its memory.

        What ``forward`` reads besides its arguments has to stay where it is. Each replay has to
        hear in ``sample``, which all buckets hold, what ``forward`` hears. After one that does not
        fit into memory those of half its frames come next; after any other failure none, since it
        may have left torch's allocator in the midst of a capture.
        """
        most_frames: float = math.inf
        for bucket in sorted(buckets, key=lambda b: -b.padded_frames):
            if bucket in self._captured or bucket.padded_frames > most_frames:
                continue
            try:
                inputs = inputs_of(bucket)
                run = partial(forward, *inputs.arguments())
                replay = capture(run)
                inputs.fill(sample)
                _require_same_ids(run(), replay(), sample)
            except RuntimeError as error:
                _log.warning("no graph of %s, so some batches run slower: %s", bucket, error)
                if not isinstance(error, torch.OutOfMemoryError):
                    break
                most_frames = bucket.padded_frames // 2
                continue
            with self._lock:
                self._captured[bucket] = inputs, replay

    @torch.inference_mode()
    def run(self, batch: FeatureBatch) -> Tensor | None:
        """Ids ``(B, 4 + T)`` on the host, or ``None`` where no captured shape holds the batch."""
        rows, frames = len(batch.lengths), PROMPT_FRAMES + batch.features.shape[1]
        with self._lock:
            bucket = best_bucket(self._captured, rows, frames)
            if bucket is None:
                return None
            inputs, replay = self._captured[bucket]
            inputs.fill(batch)
            return replay()[:rows, :frames].to("cpu", copy=True)


def _require_same_ids(wanted: Tensor, found: Tensor, sample: FeatureBatch) -> None:
    """Raises ``RuntimeError`` where ids differ; a few may, since sums need have no fixed order."""
    alike = [
        wanted[row, : PROMPT_FRAMES + length] == found[row, : PROMPT_FRAMES + length]
        for row, length in enumerate(sample.lengths)
    ]
    share = float(torch.cat(alike).float().mean())
    if share < LEAST_ALIKE:
        raise RuntimeError(f"its replay has {share:.0%} of the ids that the kernels have")


class CudaCapture:
    """Captures calls on one device, all in the same memory: no two replays may overlap."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, run: Replay) -> Replay:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            torch.cuda.synchronize()
            run()  # first calls choose kernels and take workspaces, which a capture may not
            torch.cuda.synchronize()
            # Other threads may use the device meanwhile.
            mode = "thread_local"
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode):
                output = run()
            torch.cuda.synchronize()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay
