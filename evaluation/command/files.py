"""The repository's root, and the files that commands write."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from model.logitspec.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
HALF_PAIRS = "backslashreplace"  # halves of surrogate pairs are no UTF-8: JSON's own escape, \ud800


def is_plain(name: str) -> bool:
    """Whether a name can be a single component of a path, and is not `.` or `..`."""
    plain = re.fullmatch(r"[\w.+=@-]+", name) and set(name) != {"."}
    return bool(plain) and len(name.encode()) <= 255  # as many bytes as file systems take


def why_not(path: Path, error: OSError) -> str:
    """Why a path cannot be written: a file where a folder is wanted, or errno's text."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        for place in (path, *path.parents):
            if place.exists() and not place.is_dir():
                return f"{place} is a file, not a folder"
    return str(error.strerror)


@contextmanager
def writing(path: Path, way_out: str = "choose another file") -> Iterator[None]:
    """Turn an OSError into an InputError that names the file, the reason and the way out."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {why_not(path, error)}; {way_out}") from error


def lock(path: Path) -> FileIO:
    """A file, open for appending and locked; it is created if it does not exist.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: it cannot be opened.
    """
    file = FileIO(path, "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    except OSError as error:  # a file system without locks
        print(
            f"{path} cannot be locked ({error.strerror}): see that nothing else writes it",
            file=sys.stderr,
        )
    return file


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once all of it is on disk; or an OSError."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:  # Ctrl-C and SIGTERM included
        part.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all; OSError if it cannot be written."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with whole_file(path) as file:
        file.write(text.encode("utf-8", HALF_PAIRS))


def write_text(path: Path, text: str) -> None:
    """Write a text file and make the folders above it; InputError if it cannot be written."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors=HALF_PAIRS)


def check_writable(path: Path) -> None:
    """Raise InputError if a file cannot be written, before anything is computed for it."""
    there = path.exists()
    with writing(path):
        path.open("a", encoding="utf-8").close()
        if not there:
            path.unlink()


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless they are there; InputError if it cannot be."""
    with writing(path, "choose another folder"):
        path.mkdir(parents=True, exist_ok=True)


def read_notes(path: Path | None, output: Path) -> str:
    """The text of --notes for the page `output`; empty without the flag."""
    if path is None:
        return ""
    if path.resolve() == output.resolve():
        raise InputError(f"--notes {path} is the --output; choose another")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the notes {path}: {error}") from error
