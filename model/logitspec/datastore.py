"""A datastore: the token ids of documents and their suffix array, memory-mapped from one file.

`python -m data.datastore` builds it; drafters/rest.py looks continuations up in it.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from .errors import InputError, brief

Ints = npt.NDArray[np.int32]

FORMAT = "logitspec datastore 1"
SEPARATOR = -1  # after every document
COMMAND = "python -m data.datastore"


class Datastore:
    """Documents in which the continuations of a context are looked up.

    Attributes:
        tokens: [n] int32, the ids of all documents, a SEPARATOR after each.
        suffixes: [n] int32, where the suffixes of `tokens` begin, in lexicographic order.
        tokenizer: fingerprint of the tokenizer whose ids these are.
        sha256: of both arrays.
        vocab_size: the ids are smaller than this.
    """

    def __init__(self, tokens: Ints, suffixes: Ints, tokenizer: str, sha256: str) -> None:
        self.tokens, self.suffixes, self.tokenizer = tokens, suffixes, tokenizer
        self.sha256 = sha256
        self.vocab_size = int(tokens.max()) + 1
        # a memoryview gives Python's own numbers, which bisect compares faster than numpy's
        self._tokens, self._suffixes = tokens.data, suffixes.data

    def continuations(self, context: Sequence[int], shortest: int, most: int, length: int) -> Ints:
        """What follows the longest suffix of a context that occurs in the documents.

        Args:
            context: as many tokens as the longest suffix that is looked up has.
            shortest: tokens of the shortest suffix.
            most: occurrences that count, the first ones in lexicographic order.
            length: tokens of a continuation.

        Returns:
            [length, occurrences]: a continuation a column, in lexicographic order. A SEPARATOR ends
            it, and what is below means nothing. Without an occurrence there is no column.
        """
        context = list(context)
        sizes = range(shortest, len(context) + 1)
        # a suffix occurs only if the shorter ones do, so that their lengths can be bisected as well
        known = bisect_left(sizes, True, key=lambda size: not self._find(context[-size:], 1))
        if not known:
            return np.empty((length, 0), np.int32)
        size = sizes[known - 1]
        found = self._find(context[-size:], most)
        starts = self.suffixes[found.start : found.stop] + size
        # what lies behind the end is clipped to the last token, a separator
        return self.tokens.take(starts + np.arange(length)[:, None], mode="clip")

    def _find(self, query: list[int], most: int) -> range:
        """The places in `suffixes` of the first that begin with a query, `most` of them or less."""
        tokens, size = self._tokens, len(query)

        def beginning(start: int) -> list[int]:
            return tokens[start : start + size].tolist()

        first = bisect_left(self._suffixes, query, key=beginning)
        end = min(first + most, len(self._suffixes))
        return range(first, bisect_right(self._suffixes, query, first, end, key=beginning))


def open_datastore(name: str) -> Datastore:
    """The datastore in a file, read once to check that it is whole.

    Raises:
        InputError: there is none, or not all of it.
    """
    path = Path(name)
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(
            f"no datastore {name}: {error.strerror}; `{COMMAND} FILE... --output {name}` builds it"
        ) from error
    return opened(path.resolve(), (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=4)  # drafters with other options share it
def opened(path: Path, version: tuple[int, int, int]) -> Datastore:
    """The datastore at a path; of another `version` it is another one."""
    try:
        with safe_open(path, "numpy") as file:  # checks the file's length
            about = file.metadata() or {}
        arrays = mapped(path)
        whole = about["format"] == FORMAT and about["sha256"] == checksum(*arrays)
        store = Datastore(*arrays, about["tokenizer"], about["sha256"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} is no datastore, or not a whole one ({brief(error)}); build it anew: "
            f"`{COMMAND}`"
        ) from error
    if not whole:
        raise InputError(
            f"{path} is a datastore that was changed or is of another version; build it anew: "
            f"`{COMMAND}`"
        )
    return store


def mapped(path: Path) -> tuple[Ints, Ints]:
    """The arrays of a datastore's file, which safetensors can read but not map for numpy."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))

    def array(name: str) -> Ints:
        begin, end = header[name]["data_offsets"]
        found = np.memmap(path, np.int32, "r", 8 + length + begin, ((end - begin) // 4,))
        return found.view(np.ndarray)

    return array("tokens"), array("suffixes")


def checksum(tokens: Ints, suffixes: Ints) -> str:
    digest = hashlib.sha256(tokens.data)
    digest.update(suffixes.data)
    return digest.hexdigest()
