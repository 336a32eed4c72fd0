from __future__ import annotations

import os
from pathlib import Path

import pytest

from sensevoice_service import containers
from sensevoice_service.cli import files
from sensevoice_service.cli.files import Task, UsageError, find_audio, plan, write_whole
from tests.forbidden import forbidden

A_SECOND_NS = 10**9


def make(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"audio")


def names(root: Path, *given: Path) -> list[str]:
    return [str(file.path.relative_to(root)) for file in find_audio(given or [root])]


def outputs(paths: list[Path], out: Path | None = None, suffix: str = "txt") -> list[Path | None]:
    return [task.output for task in plan(find_audio(paths), suffix, out)]


def test_a_folder_is_walked_for_audio_in_order(tmp_path: Path) -> None:
    make(*(tmp_path / name for name in ("b/2.mp3", "b/1.WAV", "a.flac", "notes.txt", "README")))
    assert names(tmp_path) == ["a.flac", "b/1.WAV", "b/2.mp3"]


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    make(*(tmp_path / name for name in ("._a.wav", ".trash/b.wav", "c.wav")))
    (tmp_path / "pipe.wav").mkdir()
    assert names(tmp_path) == ["c.wav"]


def test_audio_that_cannot_be_looked_at_is_taken_so_that_it_fails(tmp_path: Path) -> None:
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    assert names(tmp_path) == ["gone.wav"]
    with pytest.raises(UsageError, match=r"gone\.wav: there is no such file"):
        find_audio([tmp_path / "gone.wav"])


def test_a_file_named_itself_may_have_any_name(tmp_path: Path) -> None:
    make(tmp_path / "recording")
    assert names(tmp_path, tmp_path / "recording") == ["recording"]


def test_a_file_given_twice_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a.wav")
    monkeypatch.chdir(tmp_path)
    assert len(find_audio([Path("a.wav"), Path(), tmp_path / "a.wav"])) == 1


def test_what_may_not_be_looked_into_is_wrong_usage(tmp_path: Path) -> None:
    make(tmp_path / "secret" / "a.wav")
    for path in (tmp_path / "secret" / "a.wav", tmp_path / "secret"):
        with forbidden(tmp_path / "secret"), pytest.raises(UsageError, match="secret"):
            find_audio([path])


@pytest.mark.parametrize("kind", ["missing", "pipe"])
def test_what_is_no_file_is_wrong_usage(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(UsageError, match=r"a\.wav"):
        find_audio([path])


def test_every_format_that_is_decoded_has_its_suffixes() -> None:
    assert set(files.SUFFIXES_OF) == {*containers._CHECKS, "mp3", "aac"}
    assert len(files.AUDIO_SUFFIXES) == sum(map(len, files.SUFFIXES_OF.values()))


def test_a_transcript_goes_beside_its_file_or_to_the_same_place_elsewhere(tmp_path: Path) -> None:
    audio, single, out = tmp_path / "audio", tmp_path / "b.mp3", tmp_path / "out"
    make(audio / "x" / "a.wav", single)
    assert outputs([audio, single]) == [audio / "x" / "a.txt", tmp_path / "b.txt"]
    assert outputs([audio, single], out, "srt") == [out / "x" / "a.srt", out / "b.srt"]


def test_names_that_would_fall_together_keep_their_suffix(tmp_path: Path) -> None:
    make(*(tmp_path / name for name in ("a.mp3", "a.wav", "b.wav")))
    found = [output.name for output in outputs([tmp_path]) if output]
    assert found == ["a.mp3.txt", "a.wav.txt", "b.txt"]


def test_a_namesake_that_was_not_given_counts_too(tmp_path: Path) -> None:
    """Or the transcript of the one would pass for that of the other."""
    make(*(tmp_path / name for name in ("a.mp3", "a.wav", "b.wav", ".b.mp3", "b.mp3.txt")))
    (tmp_path / "b.flac").mkdir()
    given = [tmp_path / "a.wav", tmp_path / "b.wav"]
    assert [output.name for output in outputs(given) if output] == ["a.wav.txt", "b.txt"]


def test_only_suffixes_of_audio_are_taken_off(tmp_path: Path) -> None:
    make(tmp_path / "2024.05.01", tmp_path / "notes.txt")
    found = outputs([tmp_path / "2024.05.01", tmp_path / "notes.txt"])
    assert found == [tmp_path / "2024.05.01.txt", tmp_path / "notes.txt.txt"]


def test_two_files_for_one_transcript_are_wrong_usage(tmp_path: Path) -> None:
    make(tmp_path / "x" / "a.wav", tmp_path / "y" / "a.wav")
    with pytest.raises(UsageError, match="both"):
        plan(find_audio([tmp_path / "x", tmp_path / "y"]), "txt", tmp_path / "out")


@pytest.mark.parametrize(("age_ns", "is_outdated"), [(-A_SECOND_NS, True), (A_SECOND_NS, False)])
def test_a_file_is_done_if_there_is_a_transcript_though_that_may_be_older(
    age_ns: int, is_outdated: bool, tmp_path: Path
) -> None:
    make(tmp_path / "a.wav")
    [task] = plan(find_audio([tmp_path]), "txt", None)
    assert not task.is_done
    assert not task.is_outdated
    assert task.output is not None
    task.output.write_text("heard")
    time_ns = task.audio.changed_ns + age_ns
    os.utime(task.output, ns=(time_ns, time_ns))
    assert task.is_done
    assert task.is_outdated == is_outdated


def test_what_is_printed_is_never_done_before(tmp_path: Path) -> None:
    make(tmp_path / "a.wav")
    assert not Task(find_audio([tmp_path])[0], None).is_done


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_whole(path, "早上好\n")
    assert path.read_text("utf-8") == "早上好\n"
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "half a pair: \ud800")
    assert path.read_text("utf-8") == "早上好\n"
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_name_of_the_greatest_length_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".txt")
    write_whole(path, "text")
    assert path.read_text("utf-8") == "text"
