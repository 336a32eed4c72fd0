"""The command ``transcribe`` as it is run: with the demo model, and against a service."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

from config import Settings
from sensevoice_service.cli.command import main
from tests.http_service import House, house, serving
from tests.test_cli_bodies import cues

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "samples"
HELLO = "hello world good morning"
NIHAO = "今天天气"
PATIENT_S = 120.0  # only a hang takes that long


def environment() -> dict[str, str]:
    inherited = {
        name: text for name, text in os.environ.items() if name not in Settings.model_fields
    }
    return {**inherited, "MODEL": "demo"}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sensevoice_service", "transcribe", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENT_S,
    )


def heed_interrupts() -> None:
    """In the child: a shell has its background jobs ignore Ctrl-C, and their children with them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt_after(mark: str, *arguments: object) -> tuple[int, str]:
    """Exit status and messages of a child that gets Ctrl-C once it has said ``mark``."""
    with subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    ) as child:
        assert child.stderr is not None
        said = []
        watchdog = threading.Timer(PATIENT_S, child.kill)
        watchdog.start()
        try:
            for line in child.stderr:
                said.append(line)
                if mark in line:
                    child.send_signal(signal.SIGINT)
                    mark = "\0"
            return child.wait(PATIENT_S), "".join(said)
        finally:
            watchdog.cancel()
            child.kill()


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """A tree of audio with a bad file between good ones."""
    folder = tmp_path / "talks"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.wav").write_bytes((SAMPLES / "hello.wav").read_bytes())
    (folder / "b.wav").write_bytes(b"RIFF of nothing")
    (folder / "deep" / "c.wav").write_bytes((SAMPLES / "nihao.wav").read_bytes())
    (folder / "readme.txt").write_text("no audio")
    return folder


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """What the fake service hears: the bytes of the files."""
    folder = tmp_path / "words"
    folder.mkdir()
    for name, content in {"a": "morning", "b": "noise", "c": "evening"}.items():
        (folder / f"{name}.wav").write_text(content)
    return folder


@pytest.fixture
def parts() -> House:
    return house()


@pytest.fixture
def url(parts: House) -> Iterator[str]:
    with serving(parts.app()) as port:
        yield f"http://127.0.0.1:{port}"


def silence_for_hours(path: Path) -> None:
    """Five hours of zeros, which take no room on the disk and far longer than a word."""
    n_bytes = 5 * 3_600 * 16_000 * 2
    with wave.open(str(path), "wb") as header:
        header.setparams((1, 2, 16_000, n_bytes // 2, "NONE", "not compressed"))
        header.writeframesraw(b"")
    with path.open("r+b") as file:
        header_bytes = file.seek(0, 2)
        file.truncate(header_bytes + n_bytes)
        for at, size in ((4, header_bytes - 8 + n_bytes), (header_bytes - 4, n_bytes)):
            file.seek(at)
            file.write(size.to_bytes(4, "little"))


def tree(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_text("utf-8") for path in files}


def test_a_bad_file_fails_alone_and_what_is_done_is_passed_over(
    talks: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = run(talks, "--out", out, "--jobs", 1)
    assert first.returncode == 1, first.stderr
    assert first.stdout == ""
    assert tree(out) == {"a.txt": f"{HELLO}\n", "deep/c.txt": f"{NIHAO}\n"}
    assert "demo on cpu in" in first.stderr
    assert "2 transcribed, 1 failed; 4.4 s of audio in " in first.stderr
    last = first.stderr.splitlines()[-1]
    assert last.startswith(f"  failed: {talks / 'b.wav'}: ")

    (talks / "b.wav").write_bytes((SAMPLES / "nihao.wav").read_bytes())
    second = run(talks, "--out", out)
    assert second.returncode == 0, second.stderr
    assert "1 transcribed, 2 done before; " in second.stderr
    assert tree(out)["b.txt"] == f"{NIHAO}\n"


def test_one_file_can_be_printed() -> None:
    result = run(SAMPLES / "hello.wav", "--out", "-", "--format", "json")
    assert result.returncode == 0, result.stderr
    body = json.loads(result.stdout)
    assert (body["key"], body["text"], body["model"]["demo"]) == ("hello.wav", HELLO, True)
    assert not (SAMPLES / "hello.json").exists()


def test_ctrl_c_ends_at_once_and_keeps_what_is_done(talks: Path) -> None:
    silence_for_hours(talks / "b.wav")
    (talks / "deep" / "c.wav").unlink()
    status, said = interrupt_after("a.wav: ", talks, "--format", "srt", "--jobs", 2)
    assert status == 130
    assert "interrupted: 1 transcribed, 1 not finished" in said
    assert "Traceback" not in said
    [(start_s, end_s, text)] = cues((talks / "a.srt").read_text())
    assert text == HELLO
    assert 0 <= start_s < end_s < 2
    assert sorted(os.listdir(talks)) == ["a.srt", "a.wav", "b.wav", "deep", "readme.txt"]


def test_a_service_is_asked_in_place_of_a_model(
    words: Path, url: str, parts: House, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["transcribe", str(words), "--server", url, "--lang", "en", "--no-itn"])
    assert status == 1
    assert (words / "a.txt").read_text() == "morning\n"
    assert (words / "c.txt").read_text() == "evening\n"
    assert not (words / "b.txt").exists()
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == f"  failed: {words / 'b.wav'}: not audio"
    assert {(options.language, options.use_itn) for _, options in parts.pipeline.calls} == {
        ("en", False)
    }


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles_are_made_of_what_the_service_answers(form: str, words: Path, url: str) -> None:
    path = words / "a.wav"
    assert main(["transcribe", str(path), "--server", url, "--format", form]) == 0
    assert cues(path.with_suffix(f".{form}").read_text()) == [(0.0, 0.8, "morning")]


def test_subtitles_follow_the_settings_whoever_hears_the_file(
    words: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBTITLE_MIN_SEC", "1.2")
    assert main(["transcribe", str(words / "a.wav"), "--server", url, "--format", "srt"]) == 0
    assert cues((words / "a.srt").read_text()) == [(0.0, 1.2, "morning")]


def test_what_is_done_is_done_again_only_on_demand(words: Path, url: str, parts: House) -> None:
    (words / "b.wav").unlink()
    arguments = ["transcribe", str(words), "--server", url]
    assert main(arguments) == 0
    assert main(arguments) == 0
    assert len(parts.pipeline.calls) == 2
    assert main([*arguments, "--overwrite"]) == 0
    assert len(parts.pipeline.calls) == 4


def test_notes_of_the_transcripts_name_are_kept(
    words: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = words / "a.txt"
    notes.write_text("my own\n")
    os.utime(notes, (0, 0))
    arguments = ["transcribe", str(words / "a.wav"), "--server", url]
    assert main(arguments) == 0
    assert notes.read_text() == "my own\n"
    assert "1 newer than the transcript that is there" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert notes.read_text() == "morning\n"


def test_with_nothing_left_to_do_no_model_is_wanted(words: Path, url: str) -> None:
    (words / "b.wav").unlink()
    assert main(["transcribe", str(words), "--server", url]) == 0
    assert main(["transcribe", str(words), "--server", "http://127.0.0.1:1"]) == 0


def test_ctrl_c_does_not_wait_for_the_service(words: Path, url: str, parts: House) -> None:
    (words / "b.wav").write_text("wait")
    status, said = interrupt_after("2/3", words, "--server", url)
    assert status == 130
    assert "interrupted: 2 transcribed, 1 not finished" in said
    assert sorted(path.name for path in words.glob("*.txt")) == ["a.txt", "c.txt"]


def test_what_an_output_has_no_letters_for_fails_its_file(
    words: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (words / "a.wav").write_text("早上好")
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert main(["transcribe", str(words / "a.wav"), "--server", url, "--out", "-"]) == 1
    assert "a.wav: its text cannot be written" in capsys.readouterr().err


def test_a_transcript_that_cannot_be_written_fails_its_file_alone(
    words: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (words / "b.wav").unlink()
    (words / "a.txt" / "in the way").mkdir(parents=True)
    assert main(["transcribe", str(words), "--server", url, "--overwrite"]) == 1
    assert "a.wav: its text cannot be written" in capsys.readouterr().err
    assert (words / "c.txt").read_text() == "evening\n"


def test_without_a_service_the_exit_status_is_3(
    words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["transcribe", str(words), "--server", "http://127.0.0.1:1"]) == 3
    assert "no service at 127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nowhere.wav"], "nowhere.wav"),
        (["n" * 300], "no such file"),
        (["empty"], "no audio files in empty"),
        (["words", "--out", "-"], "--out - takes a single file"),
        (["words", "--out", "words/a.wav"], "no folder"),
        (["words", "--server", "here"], "--server here"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_done(
    arguments: list[str],
    reason: str,
    words: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(words.parent)
    Path("empty").mkdir()
    assert main(["transcribe", *arguments]) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "the following arguments are required"),
        (["a", "--jobs", "0"], "--jobs: 0 is no number from 1 on"),
        (["a", "--format", "pdf"], "--format: invalid choice: 'pdf'"),
        (["a", "--lang", "xx"], "--lang: must be one of auto, zh, en"),
        (["a", "--lang", "zh,auto"], "--lang: must be auto or a list of languages"),
        (["a", "--hotwords", "x" * 51], "--hotwords: has a word or phrase of over 50"),
    ],
)
def test_options_are_checked(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["transcribe", *arguments])
    assert reason in capsys.readouterr().err


def test_languages_and_hot_words_are_asked_for(words: Path, url: str, parts: House) -> None:
    arguments = ["--lang", "zh,en", "--hotwords", "new  york, 北京大学"]
    assert main(["transcribe", str(words / "a.wav"), "--server", url, *arguments]) == 0
    [(_, options)] = parts.pipeline.calls
    assert (options.language, options.among) == ("auto", ("zh", "en"))
    assert options.hotwords == ("new york", "北京大学")
