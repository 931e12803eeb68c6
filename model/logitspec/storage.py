"""The user's cache folder: what was compiled, measured or read once."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "logitspec"


def path_of(kind: str, text: str) -> Path:
    return cache_folder() / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def recall(kind: str, key: Any) -> Any:
    """What remember() stored for this key, in this process or another; None: nothing.

    Args:
        kind: begins the file's name.
        key: what the finding depends on, as JSON can hold it; stored beside it.
    """
    text = json.dumps(key, sort_keys=True)
    try:
        stored = json.loads(path_of(kind, text).read_text(encoding="utf-8"))
        return stored["found"] if stored["key"] == json.loads(text) else None
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):  # not there, torn, no home
        return None


SLOW = 0.5  # seconds from which on found_once() remembers


def found_once(kind: str, key: Any, find: Callable[[], Any]) -> Any:
    """What was found for this key before, or what is found now; remembered if that is slow."""
    known = recall(kind, key)
    if known is None:
        start = time.perf_counter()
        known = find()
        if time.perf_counter() - start > SLOW:
            remember(kind, key, known)
    return known


def remember(kind: str, key: Any, found: Any) -> None:
    """Store a finding, as JSON can hold it; where that cannot be done a warning says so."""
    text = json.dumps(key, sort_keys=True)
    try:
        path = path_of(kind, text)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder, path.name)
            part.write_text(json.dumps({"key": key, "found": found}), encoding="utf-8")
            part.replace(path)  # whole, whoever else writes it at the same time
    except (OSError, RuntimeError) as error:
        warnings.warn(f"what was found of {kind} cannot be stored: {error}", stacklevel=2)
