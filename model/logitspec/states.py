"""What a drafter learnt, in a file: its arrays as NumPy's .npz, and a head in JSON. No pickle."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .errors import InputError
from .listed import Numbers

FORMAT = "logitspec state 1"
HEAD = "head"  # the name of the array of its bytes


class Saved(NamedTuple):
    """What is in a file."""

    head: dict[str, Any]  # format, method, tokenizer, and what else the writer noted
    arrays: dict[str, Numbers]  # see Drafter.state()


def write_state(
    file: BinaryIO, method: str, arrays: dict[str, Numbers], tokenizer: str | None, **noted: Any
) -> None:
    """Write a state.

    Args:
        file: open for writing, in binary.
        method: the drafter's name.
        arrays: from its state().
        tokenizer: fingerprint of the one whose ids it learnt.
        noted: what the writer wants to find in the head again.
    """
    head = {"format": FORMAT, "method": method, "tokenizer": tokenizer, **noted}
    text = np.frombuffer(json.dumps(head).encode(), np.uint8)
    found: dict[str, Any] = {HEAD: text}
    found |= {name: narrow(array) for name, array in arrays.items()}
    np.savez(file, **found)


def narrow(numbers: Numbers) -> Numbers:
    """Whole numbers in 32 bits, where all fit."""
    whole = np.issubdtype(numbers.dtype, np.integer)
    fits = whole and (not len(numbers) or -(2**31) <= numbers.min() <= numbers.max() < 2**31)
    return numbers.astype(np.int32) if fits else numbers


def read_state(path: Path, method: str, tokenizer: str | None) -> Saved:
    """Read a state for a drafter.

    Args:
        path: of the file.
        method: the drafter's name.
        tokenizer: fingerprint of the target's; None: not known.

    Raises:
        InputError: it cannot be read, or is of another method or tokenizer.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        head = {**json.loads(arrays.pop(HEAD).tobytes())}
    except OSError as error:
        raise InputError(f"cannot read the state {path}: {error.strerror or error}") from error
    except BROKEN as error:
        raise InputError(f"{path} is no state, or a torn one") from error
    if head.get("format") != FORMAT:
        raise InputError(f"{path} is a {str(head.get('format'))[:40]!r}, not a {FORMAT!r}")
    if head.get("method") != method:
        raise InputError(
            f"{path} is what the method {head.get('method')} learnt, and this is {method}"
        )
    if None not in (tokenizer, head.get("tokenizer")) and head["tokenizer"] != tokenizer:
        raise InputError(f"{path} was learnt with another tokenizer than the model's")
    return Saved(head, arrays)


BROKEN = (  # what zipfile and numpy raise of a file that is none
    *(ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's definition, or of its vocabulary if it is written in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@contextmanager
def way_out(said: str) -> Iterator[None]:
    """Add to an InputError's sentence what can be done about it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}; {said}") from error
