from __future__ import annotations

import io
from pathlib import Path

from sensevoice_service.cli.files import AudioFile, Task
from sensevoice_service.cli.progress import Progress, Workload


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def task(name: str, size_bytes: int = 50) -> Task:
    return Task(AudioFile(Path(name), Path(name), size_bytes, 0), None)


def test_without_a_terminal_each_file_has_a_line() -> None:
    stream = io.StringIO()
    progress = Progress(Workload(2, 0, 100), stream)
    progress.tick()
    progress.done(task("a.wav"), 90.0)
    progress.failed(task("b.wav"), "it is cut off")
    progress.close()
    assert stream.getvalue().splitlines() == [
        "1/2 a.wav: 1.5 min of audio",
        "2/2 b.wav: FAILED: it is cut off",
    ]


def test_the_bar_shows_files_hours_speed_and_failures() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(Workload(4, 0, 200), stream, clock=clock)
    clock.now_s = 36.0
    progress.done(task("a.wav"), 3_600.0)
    progress.failed(task("b.wav"), "it is cut off")
    progress.close()
    shown = stream.getvalue()
    assert "2/4 files, 1.00 h of audio, 100x real time, 1 failed" in shown
    assert "50%" in shown
    assert "left" in shown
    assert "b.wav: FAILED: it is cut off" in shown
    assert "a.wav" not in shown


def test_audio_of_unfinished_files_counts_while_they_run() -> None:
    clock = Clock()
    progress = Progress(Workload(1, 0, 50), io.StringIO(), lambda: 7_200.0, clock)
    clock.now_s = 72.0
    assert progress.line() == "0/1 files, 2.00 h of audio, 100x real time"


def test_the_summary_counts_and_names_what_failed() -> None:
    clock = Clock()
    progress = Progress(Workload(4, 3, 200), io.StringIO(), clock=clock)
    progress.done(task("a.wav"), 3_600.0)
    progress.done(task("b.wav"), 3_600.0)
    progress.failed(task("c.wav"), "it is cut off")
    clock.now_s = 72.0
    head, failure = progress.summary(interrupted=True).splitlines()
    assert head == (
        "interrupted: 2 transcribed, 3 done before, 1 failed, 1 not finished;"
        " 2.00 h of audio in 1.2 min, 100x real time"
    )
    assert failure == "  failed: c.wav: it is cut off"


def test_transcripts_that_are_older_than_their_audio_are_counted_apart() -> None:
    assert Progress(Workload(0, 3, 0, 1), io.StringIO()).summary() == (
        "2 done before, 1 newer than the transcript that is there (--overwrite replaces it)"
    )


def test_a_run_with_nothing_to_do_says_so() -> None:
    assert Progress(Workload(0, 3, 0), io.StringIO()).summary() == "3 done before"
