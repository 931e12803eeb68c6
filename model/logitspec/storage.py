"""The user's cache folder: what was compiled or measured once for a model and a machine."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

FINDING = threading.RLock()


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "logitspec"


def remembered(kind: str, key: Any, find: Callable[[], Any]) -> Any:
    """What `find` found for this key, now or in an earlier process.

    Where it cannot be stored a warning says so, and the next process finds it again. Of several
    threads one finds it, for measurements would disturb each other.

    Args:
        kind: begins the file's name.
        key: what the finding depends on, as JSON can hold it; stored beside it.
        find: gives the finding, as JSON can hold it.
    """
    with FINDING:
        return _remembered(kind, key, find)


def _remembered(kind: str, key: Any, find: Callable[[], Any]) -> Any:
    text = json.dumps(key, sort_keys=True)
    try:
        path = cache_folder() / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    except RuntimeError:  # no home
        return find()
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == json.loads(text):
            return stored["found"]
    except (OSError, ValueError, KeyError, TypeError):  # not there, or torn
        pass
    found = find()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder, path.name)
            part.write_text(json.dumps({"key": key, "found": found}), encoding="utf-8")
            part.replace(path)  # whole, whoever else writes it at the same time
    except OSError as error:
        warnings.warn(f"{path} cannot be stored: {error.strerror}", stacklevel=3)
    return found
