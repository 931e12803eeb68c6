"""The repository's root, and the files that commands write."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from model.logitspec.errors import InputError

from ..traces.reading import Record

ROOT = Path(__file__).resolve().parent.parent


def is_plain(name: str) -> bool:
    """Whether a name is one component of a path, and leads nowhere else."""
    return bool(re.fullmatch(r"[\w.+=@-]+", name)) and set(name) != {"."}


HALF_PAIRS = "backslashreplace"  # halves of surrogate pairs are no UTF-8: JSON's own escape, \ud800


def write_atomically(path: Path, content: Record) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", errors=HALF_PAIRS) as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def check_writable(path: Path) -> None:
    """Raise InputError if a file cannot be written, before anything is computed for it."""
    there = path.exists()
    try:
        with path.open("a", encoding="utf-8"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another file") from error


def write_text(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors=HALF_PAIRS)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another file") from error
