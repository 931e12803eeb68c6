"""Documents: whole text files, and texts in lines of *.jsonl, as of corpora, chats and traces."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from model.logitspec.errors import InputError, is_whole
from model.logitspec.listed import MOST_TOKENS

from ..traces.reading import validate
from ..traces.sidecars import Sidecar

BATCH = 1 << 20  # characters that are tokenized together, on all cores
LINE = (
    'a line has a "text" or "content", a list of texts "turns" or "data", a chat "messages" or '
    '"conversations", or is of a trace'
)

Document = str | list[int]  # a text, or the token ids of one
Ints = npt.NDArray[np.int32]


def tokenized(documents: Iterable[Document], tokenizer: Any) -> Iterator[Ints]:
    """The token ids of every document that has some."""
    texts: list[str] = []
    characters = 0
    for document in chain(documents, [None]):
        if isinstance(document, str):
            texts.append(document)
            characters += len(document)
        elif document:
            yield np.array(document, np.int32)
        if texts and (document is None or characters > BATCH):
            found = tokenizer(texts, add_special_tokens=False, verbose=False).input_ids
            yield from (np.array(ids, np.int32) for ids in found if ids)
            texts, characters = [], 0


def documents(files: Sequence[Path], tokenizer: str) -> Iterator[Document]:
    """The documents in some files; a progress bar shows how much is read.

    An answer of a trace is given as its token ids, if those are of the tokenizer with this
    fingerprint, and else as its text.
    """
    total = sum(file.stat().st_size for file in files)
    with tqdm(total=total, unit="B", unit_scale=True) as bar:
        for file in files:
            try:
                if file.suffix == ".jsonl":
                    same = Sidecar.read(file).settings.get("tokenizer_fingerprint") == tokenizer
                    with file.open("rb") as lines:
                        for number, line in enumerate(lines, start=1):
                            yield from in_line(line, f"{file}:{number}", with_ids=same)
                            bar.update(len(line))
                else:
                    yield file.read_text(encoding="utf-8")
                    bar.update(file.stat().st_size)
            except UnicodeDecodeError as error:
                raise InputError(f"{file} is not UTF-8 text") from error
            except OSError as error:
                raise InputError(f"cannot read {file}: {error.strerror}") from error


def in_line(line: bytes, place: str, *, with_ids: bool) -> Iterator[Document]:
    """The documents in a line of JSON; `with_ids`: a trace's answers as their token ids."""
    if not line.strip():
        return
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON; {LINE}") from error
    found = texts_of(entry)
    if isinstance(entry, dict) and ("choices" in entry or "error" in entry):
        if (problem := validate(entry)) is not None:
            raise InputError(f"{place} {problem}; it is no trace line")
        choices = entry.get("choices", [])
        found = [text for choice in choices for text in choice["turns"]]
        if with_ids and all("output_ids" in choice for choice in choices):
            yield from answers(choices, place)
            return
    for text in found:
        if not isinstance(text, str):
            raise InputError(f"{place} holds no text; {LINE}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InputError(f"{place} has half a surrogate pair, which is no text; delete it")
        yield text


def answers(choices: Iterable[Any], place: str) -> Iterator[list[int]]:
    """The token ids of the turns of a trace line's choices."""
    for choice in choices:
        for ids in choice["output_ids"]:
            if not all(is_whole(token) and 0 <= token < MOST_TOKENS for token in ids):
                raise InputError(f"{place} has output_ids that are no token ids; delete them")
            yield ids


def texts_of(entry: Any) -> list[Any]:
    """What should be texts in a line of a published corpus, a chat or a question set."""
    match entry:
        case {"text": text} | {"content": text}:
            return [text]
        case {"turns": [*texts]} | {"data": [*texts]}:
            return texts
        case {"messages": [*said]} | {"conversations": [*said]}:  # OpenAI's form, ShareGPT's
            return [m.get("content", m.get("value")) if isinstance(m, dict) else m for m in said]
    return [None]
