"""The repository's root, and the files that commands write."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from model.logitspec.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
HALF_PAIRS = "backslashreplace"  # halves of surrogate pairs are no UTF-8: JSON's own escape, \ud800


def is_plain(name: str) -> bool:
    """Whether a name is one component of a path, and leads nowhere else."""
    return bool(re.fullmatch(r"[\w.+=@-]+", name)) and set(name) != {"."}


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", errors=HALF_PAIRS) as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless they are there.

    Raises:
        InputError: it cannot be made; what is in the way is named.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot make the folder {path}: {why_not(path, error)}; choose another"
        ) from error


def why_not(path: Path, error: OSError) -> str:
    """Why a path cannot be made: a file that stands in the place of a folder, or errno's text."""
    if isinstance(error, FileExistsError | NotADirectoryError):
        for place in (path, *path.parents):
            if place.exists() and not place.is_dir():
                return f"{place} is a file, not a folder"
    return str(error.strerror)


def check_writable(path: Path) -> None:
    """Raise InputError if a file cannot be written, before anything is computed for it."""
    there = path.exists()
    try:
        with path.open("a", encoding="utf-8"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        reason = why_not(path, error)
        raise InputError(f"cannot write {path}: {reason}; choose another file") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, and make the folders above it.

    Raises:
        InputError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors=HALF_PAIRS)
    except OSError as error:
        reason = why_not(path, error)
        raise InputError(f"cannot write {path}: {reason}; choose another file") from error
