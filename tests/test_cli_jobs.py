from __future__ import annotations

import threading
from pathlib import Path

from sensevoice_service.cli.bodies import Heard
from sensevoice_service.cli.files import AudioFile, Task
from sensevoice_service.cli.jobs import FileFailed, Hear, Outcome, run_jobs
from sensevoice_service.types import CorruptAudio, Transcript

PATIENCE_S = 10.0


def task(name: str) -> Task:
    return Task(AudioFile(Path(name), Path(name), 1, 0), None)


def heard(text: str) -> Heard:
    return Heard(Transcript(text, "en", "NEUTRAL", (), 1.0, ()), {})


def outcomes(names: str, hear: Hear, n_jobs: int = 2) -> dict[str, Heard | str]:
    tasks = [task(name) for name in names]
    found = [one for one in run_jobs(tasks, hear, n_jobs) if one is not None]
    assert len(found) == len(tasks)
    return {str(one.task.audio.path): one.result for one in found}


def test_each_file_has_its_own_outcome() -> None:
    found = outcomes("abc", lambda path: heard(path.name))
    assert found == {name: heard(name) for name in "abc"}


def test_a_file_that_fails_gives_its_reason_and_the_others_go_on() -> None:
    errors = {
        "b": CorruptAudio("the file is cut off"),
        "c": FileFailed("the service is busy"),
        "d": FileNotFoundError(2, "No such file or directory", "d"),
    }

    def hear(path: Path) -> Heard:
        if path.name in errors:
            raise errors[path.name]
        return heard(path.name)

    assert outcomes("abcde", hear) == {
        "a": heard("a"),
        "b": "the file is cut off",
        "c": "the service is busy",
        "d": "No such file or directory",
        "e": heard("e"),
    }


def test_an_unexpected_error_is_one_file_s_too() -> None:
    def hear(path: Path) -> Heard:
        return heard("a" if path.name == "a" else str(1 // 0))

    found = outcomes("ab", hear)
    assert found["a"] == heard("a")
    assert "ZeroDivisionError" in str(found["b"])


def test_as_many_files_as_jobs_are_worked_on_at_once() -> None:
    both = threading.Barrier(2, timeout=PATIENCE_S)

    def hear(path: Path) -> Heard:
        both.wait()
        return heard(path.name)

    assert set(outcomes("abcd", hear)) == set("abcd")


def test_while_nothing_ends_it_ticks() -> None:
    ticked = threading.Event()

    def hear(_path: Path) -> Heard:
        assert ticked.wait(PATIENCE_S)
        return heard("at last")

    running = run_jobs([task("a")], hear, 1, tick_s=0.01)
    assert next(running) is None
    ticked.set()
    assert [one for one in running if one] == [Outcome(task("a"), heard("at last"))]


def test_once_closed_no_more_files_are_begun() -> None:
    begun: list[str] = []
    go_on = threading.Event()

    def hear(path: Path) -> Heard:
        begun.append(path.name)
        if path.name == "b":
            assert go_on.wait(PATIENCE_S)
        return heard(path.name)

    running = run_jobs([task(name) for name in "abc"], hear, 1)
    assert next(running) == Outcome(task("a"), heard("a"))
    [worker] = [thread for thread in threading.enumerate() if thread.name == "file-0"]
    running.close()  # type: ignore[attr-defined]
    go_on.set()
    worker.join(PATIENCE_S)
    assert "c" not in begun
    assert not worker.is_alive()
