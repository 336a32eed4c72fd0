"""How far a run has come: a bar on a terminal, a line a file elsewhere; and its last words."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from sensevoice_service.cli.files import Task

if TYPE_CHECKING:
    from tqdm import tqdm

# The bar itself and the time left go by bytes, which are known of every file beforehand.
BAR = "{desc} |{bar}| {percentage:3.0f}% {elapsed}, {remaining} left"


@dataclass(frozen=True)
class Workload:
    """Of the ``n_skipped``, which have a transcript, that of ``n_outdated`` is older than they."""

    n_files: int
    n_skipped: int
    size_bytes: int
    n_outdated: int = 0


class Progress:
    """``hearing_s`` tells how much audio has been heard by now, unfinished files included."""

    def __init__(
        self,
        workload: Workload,
        stream: TextIO,
        hearing_s: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._workload = workload
        self._stream = stream
        self._hearing_s = hearing_s
        self._clock = clock
        self._began_s = clock()
        self._n_done = 0
        self._audio_s = 0.0
        self.failures: list[tuple[Task, str]] = []
        self._bar = _open_bar(workload.size_bytes, stream) if stream.isatty() else None
        self.tick()

    def done(self, task: Task, audio_s: float) -> None:
        self._n_done += 1
        self._audio_s += audio_s
        self._advance(task)
        if self._bar is None:
            self._print(f"{self._count()} {task.audio.path}: {_length(audio_s)} of audio")

    def failed(self, task: Task, reason: str) -> None:
        self.failures.append((task, reason))
        self._advance(task)
        self._print(f"{self._count()} {task.audio.path}: FAILED: {reason}")

    def tick(self) -> None:
        if self._bar is not None:
            self._bar.set_description_str(self.line(), refresh=False)
            self._bar.refresh()

    def write(self, text: str, stream: TextIO) -> None:
        """Elsewhere, which may be the same terminal: the bar makes room for it."""
        room = nullcontext() if self._bar is None else self._bar.external_write_mode(file=stream)
        with room:
            print(text, end="", file=stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def line(self) -> str:
        audio_s = max(self._audio_s, self._hearing_s())
        line = f"{self._count()} files, {_length(audio_s)} of audio, {self._rtfx(audio_s)}"
        return f"{line}, {len(self.failures)} failed" if self.failures else line

    def summary(self, *, interrupted: bool = False) -> str:
        """Counts and speed, and each file that failed with its reason."""
        n_left = self._workload.n_files - self._n_done - len(self.failures)
        n_outdated = self._workload.n_outdated
        counts = [
            (self._n_done, "transcribed"),
            (self._workload.n_skipped - n_outdated, "done before"),
            (n_outdated, "newer than the transcript that is there (--overwrite replaces it)"),
            (len(self.failures), "failed"),
            (n_left, "not finished"),
        ]
        head = ", ".join(f"{count} {what}" for count, what in counts if count) or "nothing to do"
        if self._n_done:
            elapsed = _length(self._clock() - self._began_s)
            head += f"; {_length(self._audio_s)} of audio in {elapsed}, {self._rtfx(self._audio_s)}"
        lines = [f"interrupted: {head}" if interrupted else head]
        lines += [f"  failed: {task.audio.path}: {reason}" for task, reason in self.failures]
        return "\n".join(lines)

    def _rtfx(self, audio_s: float) -> str:
        return f"{audio_s / max(self._clock() - self._began_s, 1e-3):.0f}x real time"

    def _count(self) -> str:
        return f"{self._n_done + len(self.failures)}/{self._workload.n_files}"

    def _advance(self, task: Task) -> None:
        if self._bar is not None:
            self._bar.update(task.audio.size_bytes)
            self.tick()

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)


def _length(time_s: float) -> str:
    if time_s < 60:
        return f"{time_s:.1f} s"
    return f"{time_s / 60:.1f} min" if time_s < 3600 else f"{time_s / 3600:.2f} h"


def _open_bar(size_bytes: int, stream: TextIO) -> tqdm:
    from tqdm import tqdm

    return tqdm(total=max(1, size_bytes), file=stream, bar_format=BAR, dynamic_ncols=True)
