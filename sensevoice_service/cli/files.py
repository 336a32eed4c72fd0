"""Which files are to be transcribed, and where their transcripts go."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

# The names under which each demuxer's files go. A file that is named itself may have any name,
# since files are recognised by their content.
SUFFIXES_OF = {
    "wav": (".wav", ".wave", ".bwf"),
    "aiff": (".aiff", ".aif", ".aifc"),
    "caf": (".caf",),
    "au": (".au", ".snd"),
    "flac": (".flac",),
    "ogg": (".ogg", ".oga", ".ogv", ".opus"),
    "mp3": (".mp3", ".mp2", ".mpga"),
    "aac": (".aac",),
    "mov": (".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2"),
    "matroska": (".mka", ".mkv", ".webm", ".weba"),
    "avi": (".avi",),
    "amr": (".amr", ".awb"),
}
AUDIO_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES_OF.values() for suffix in suffixes)


class UsageError(Exception):
    """The command asks for what cannot be: it ends, with exit status 2, before it has begun."""


@dataclass(frozen=True)
class AudioFile:
    """``place`` is its path below the folder that was given, or its name where it was itself."""

    path: Path
    place: Path
    size_bytes: int
    changed_ns: int


@dataclass(frozen=True)
class Task:
    """One file and where its transcript goes: a path, or None for the standard output."""

    audio: AudioFile
    output: Path | None

    @property
    def is_done(self) -> bool:
        """Whether a file has the transcript's name, be it somebody's own notes."""
        return self._written_ns() is not None

    @property
    def is_outdated(self) -> bool:
        """Whether that file is older than the audio."""
        written_ns = self._written_ns()
        return written_ns is not None and written_ns < self.audio.changed_ns

    def _written_ns(self) -> int | None:
        try:
            return None if self.output is None else self.output.stat().st_mtime_ns
        except OSError:
            return None


def find_audio(given: Sequence[Path]) -> list[AudioFile]:
    """The files given, and those below the folders given whose names are of audio; each once.

    Hidden files and folders are passed over, links to folders are not followed. Raises
    ``UsageError`` for what is not there or cannot be looked into.
    """
    found: dict[str, AudioFile] = {}
    for path in given:
        # Path.is_dir raises where it may not look.
        for file in _walk(path) if os.path.isdir(path) else [_given(path)]:
            found.setdefault(os.path.abspath(file.path), file)
    return list(found.values())


def _given(path: Path) -> AudioFile:
    file = None
    with suppress(OSError):
        file = _audio_file(path, Path(path.name))
    if file is None:
        raise UsageError(f"{path}: there is no such file or folder that may be looked into")
    return file


def _walk(root: Path) -> Iterator[AudioFile]:
    for folder, folders, names in os.walk(root, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if not _is_looked_for(path):
                continue
            try:
                file = _audio_file(path, path.relative_to(root))
            except OSError:  # it fails, and says why, when its turn comes
                file = AudioFile(path, path.relative_to(root), 0, 0)
            if file is not None:
                yield file


def _refuse(error: OSError) -> None:
    raise UsageError(f"{error.filename}: {error.strerror}")


def _audio_file(path: Path, place: Path) -> AudioFile | None:
    """``None`` for a device and the like; raises ``OSError``."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        return None
    return AudioFile(path, place, found.st_size, found.st_mtime_ns)


def plan(files: Sequence[AudioFile], suffix: str, out: Path | None) -> list[Task]:
    """A task for each file: its transcript goes beside it, or to the same place below ``out``.

    ``talk.mp3`` becomes ``talk.txt``, unless ``talk.wav`` would too, were it given or not: then
    both keep their suffix, as ``talk.mp3.txt``. Raises ``UsageError`` where two transcripts would
    still have one name.
    """
    short = [_output(file, _without_suffix(file.place), suffix, out) for file in files]
    claims = Counter(map(os.path.abspath, short))
    stems = {folder: _stems(folder) for folder in {file.path.parent for file in files}}
    outputs = [
        output
        if claims[os.path.abspath(output)] == 1 and not _has_namesake(file, stems)
        else _output(file, file.place.name, suffix, out)
        for file, output in zip(files, short, strict=True)
    ]
    takers: dict[str, Path] = {}
    for file, output in zip(files, outputs, strict=True):
        first = takers.setdefault(os.path.abspath(output), file.path)
        if first != file.path:
            raise UsageError(f"{first} and {file.path} would both be written to {output}")
    return [Task(file, output) for file, output in zip(files, outputs, strict=True)]


def _output(file: AudioFile, name: str, suffix: str, out: Path | None) -> Path:
    folder = file.path.parent if out is None else out / file.place.parent
    return folder / f"{name}.{suffix}"


def _stems(folder: Path) -> Counter[str]:
    """How many files of a folder have each name, by their suffixes of audio."""
    try:
        with os.scandir(folder) as entries:
            names = [Path(entry.name) for entry in entries if entry.is_file()]
    except OSError:
        names = []
    return Counter(name.stem for name in names if _is_looked_for(name))


def _has_namesake(file: AudioFile, stems: Mapping[Path, Counter[str]]) -> bool:
    n_of_this_name = stems[file.path.parent][_without_suffix(file.path)]
    return n_of_this_name > (1 if _is_audio(file.path) else 0)


def _is_looked_for(path: Path) -> bool:
    """By its name: in folders, hidden files and others than audio are passed over."""
    return not path.name.startswith(".") and _is_audio(path)


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in AUDIO_SUFFIXES


def _without_suffix(place: Path) -> str:
    return place.stem if _is_audio(place) else place.name


def legible(name: str) -> str:
    """Bytes of it that are no UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode()


def write_whole(path: Path, text: str) -> None:
    """All of the text is there under this name, or nothing new is. Raises ``OSError``.

    Processes of many machines may write into one folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{token_hex(8)}.part")  # short: the name itself may just fit
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
