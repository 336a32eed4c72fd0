"""``transcribe``: files and folders of audio to files of text."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from config import load_settings
from sensevoice_service.cli.bodies import FORMATS, SUBTITLES, Heard, render
from sensevoice_service.cli.files import (
    AUDIO_SUFFIXES,
    Task,
    UsageError,
    find_audio,
    plan,
    write_whole,
)
from sensevoice_service.cli.jobs import Outcome, run_jobs
from sensevoice_service.cli.progress import Progress, Workload
from sensevoice_service.subtitles import SubtitleRules
from sensevoice_service.types import LANGUAGES, DecodeOptions
from sensevoice_service.wishes import MAX_HOTWORDS, hotwords_of, languages_of

EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
TO_STDOUT = "-"
API_KEY_VARIABLE = "SENSEVOICE_API_KEY"  # an argument could be read by all users of the machine
_EXIT_STATUS = f"""
exit status: 0 all is done, {EXIT_FAILED} files failed, 2 wrong usage or settings, 3 no model or no
service, {EXIT_INTERRUPTED} interrupted (what is done is kept; the same command goes on from there)
"""

T = TypeVar("T")


class Recogniser(Protocol):
    """Hears files, several at once; ``n_jobs`` at once are a good number."""

    n_jobs: int
    description: str

    def __call__(self, path: Path) -> Heard: ...

    def hearing_s(self) -> float: ...

    def close(self) -> None: ...


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "transcribe",
        help="write the text of audio files beside them",
        description="Write the text of each audio file beside it, or below --out. Where there is a"
        " file of that name already, it is kept and the audio passed over. In folders, files"
        f" are taken by their names: {' '.join(sorted(AUDIO_SUFFIXES))}.",
        epilog=_EXIT_STATUS,
    )
    command.add_argument("paths", nargs="+", metavar="FILE|DIR", type=Path)
    command.add_argument("--format", choices=FORMATS, default="txt", help="default: txt")
    command.add_argument(
        "--lang",
        metavar="LANG[,LANG]",
        type=_wish(languages_of),
        default=("auto", ()),
        help=f"one of {', '.join(LANGUAGES)}, or some to detect one of; default: auto",
    )
    command.add_argument(
        "--hotwords",
        metavar="WORDS",
        type=_wish(hotwords_of),
        default=(),
        help=f"words and phrases that are likely to be said, between commas, up to {MAX_HOTWORDS}",
    )
    command.add_argument(
        "--no-itn", action="store_true", help="numbers in words, and no punctuation"
    )
    command.add_argument(
        "--out", metavar="DIR", help="mirror the folders there; - prints the text of one file"
    )
    command.add_argument(
        "--server",
        metavar="URL",
        help="ask a running service instead of loading the model; its API key, if it wants one, is"
        f" taken from the variable {API_KEY_VARIABLE}",
    )
    command.add_argument("--jobs", metavar="N", type=_count, help="files at once")
    command.add_argument(
        "--overwrite", action="store_true", help="also what is done already; replaces it"
    )
    command.set_defaults(run=run)


def _wish(parse: Callable[[str], T]) -> Callable[[str], T]:
    def parse_argument(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_argument


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no number from 1 on")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Raises ``UsageError``, ``ConfigError`` and ``ModelError`` before anything is written."""
    tasks = find_tasks(options.paths, options.format, options.out)
    ahead = [task for task in tasks if options.overwrite or not task.is_done]
    workload = Workload(
        n_files=len(ahead),
        n_skipped=len(tasks) - len(ahead),
        n_outdated=0 if options.overwrite else sum(task.is_outdated for task in tasks),
        size_bytes=sum(task.audio.size_bytes for task in ahead),
    )
    if not ahead:
        print(Progress(workload, sys.stderr).summary(), file=sys.stderr)
        return 0
    recogniser = _recogniser(options)
    print(recogniser.description, file=sys.stderr)
    progress = Progress(workload, sys.stderr, recogniser.hearing_s)
    try:
        _transcribe(ahead, recogniser, progress, options)
    except KeyboardInterrupt:
        # Whatever the threads are at: the end of the process is the end of them.
        progress.close()
        print(progress.summary(interrupted=True), file=sys.stderr)
        return EXIT_INTERRUPTED
    progress.close()
    recogniser.close()
    print(progress.summary(), file=sys.stderr)
    return EXIT_FAILED if progress.failures else 0


def find_tasks(paths: Sequence[Path], form: str, out: str | None) -> list[Task]:
    """Raises ``UsageError`` where there is nothing to do, or no place for what comes of it."""
    files = find_audio(paths)
    if not files:
        raise UsageError("there are no audio files in " + ", ".join(map(str, paths)))
    if out == TO_STDOUT:
        if len(files) > 1:
            raise UsageError(f"--out - takes a single file, and there are {len(files)}")
        return [Task(files[0], None)]
    if out is not None and os.path.exists(out) and not os.path.isdir(out):
        raise UsageError(f"--out {out}: it is no folder")
    return plan(files, form, None if out is None else Path(out))


def _recogniser(options: argparse.Namespace) -> Recogniser:
    language, among = options.lang
    wanted = DecodeOptions(language, not options.no_itn, among, options.hotwords)
    if options.server is not None:
        from sensevoice_service.cli.remote import RemoteRecogniser, Server

        server = Server.at(options.server, os.environ.get(API_KEY_VARIABLE, ""))
        return RemoteRecogniser(server, wanted, _subtitle_rules(options.format))
    from sensevoice_service.cli.local import LocalRecogniser
    from sensevoice_service.logs import configure_logging

    settings = load_settings()
    configure_logging("WARNING", settings.LOG_FORMAT)
    return LocalRecogniser(settings, wanted)


def _subtitle_rules(form: str) -> SubtitleRules:
    """Other forms of text need no settings, some of which may be for the service's user alone."""
    return SubtitleRules.of(load_settings()) if form in SUBTITLES else SubtitleRules()


def _transcribe(
    tasks: Sequence[Task], recogniser: Recogniser, progress: Progress, options: argparse.Namespace
) -> None:
    for outcome in run_jobs(tasks, recogniser, options.jobs or recogniser.n_jobs):
        if outcome is None:
            progress.tick()
        else:
            _conclude(outcome, progress, options.format)


def _conclude(outcome: Outcome, progress: Progress, form: str) -> None:
    task, result = outcome.task, outcome.result
    if isinstance(result, str):
        progress.failed(task, result)
        return
    text = render(result, task.audio.path.name, form)
    try:
        if task.output is None:
            progress.write(text, sys.stdout)
        else:
            write_whole(task.output, text)
    except (OSError, UnicodeError) as error:
        progress.failed(task, f"its text cannot be written: {error}")
        return
    progress.done(task, result.transcript.duration_s)
