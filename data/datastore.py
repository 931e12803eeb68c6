"""Build the datastore that the method `rest` drafts from: python -m data.datastore --help.

Documents are whole text files, and the texts in lines of *.jsonl: corpora, chats, question sets,
answers of traces. What is built is described in model/logitspec/datastore.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from tqdm import tqdm

from evaluation.asking.settings import TargetSettings
from evaluation.asking.target import load_tokenizer, tokenizer_fingerprint
from evaluation.command.exits import run_command
from evaluation.command.files import check_writable, whole_file, writing
from evaluation.command.flags import add_model_path, add_settings
from evaluation.command.parser import Parser
from evaluation.traces.reading import validate
from evaluation.traces.sidecars import Sidecar
from model.logitspec.datastore import FORMAT, SEPARATOR, Ints, checksum
from model.logitspec.errors import InputError, is_whole

BATCH = 1 << 20  # characters that are tokenized together, on all cores
MOST_TOKENS = 2**31 - 2**16  # places in a datastore are 32-bit numbers
LINE = (
    'a line has a "text" or "content", a list of texts "turns" or "data", a chat "messages" or '
    '"conversations", or is of a trace'
)

Document = str | list[int]  # a text, or the token ids of one


def build(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    suffix_sorter()
    for file in args.files:
        if not file.is_file():
            raise InputError(f"no file {file}; give text files, or *.jsonl of texts or traces")
        if file.resolve() == args.output.resolve():
            raise InputError(f"--output {file} is one of the files to read; choose another")
    check_writable(args.output)
    tokenizer = load_tokenizer(args.model_path, trust_remote_code=args.trust_remote_code)
    fingerprint = tokenizer_fingerprint(tokenizer)
    parts = list(tokenized(documents(args.files, fingerprint), tokenizer))
    count = sum(map(len, parts))
    print(f"sorting the suffixes of {count:,} tokens in {len(parts):,} documents")
    write_datastore(args.output, parts, fingerprint)
    print(f"{args.output}: {args.output.stat().st_size / 2**20:.1f} MiB")


def write_datastore(path: Path, parts: Sequence[Ints], tokenizer: str) -> None:
    """Write a datastore, whole or not at all.

    Args:
        parts: the token ids of each document.
        tokenizer: fingerprint of the tokenizer whose ids they are.

    Raises:
        InputError: there is no token, or there are too many, or the file cannot be written.
    """
    count = sum(map(len, parts))
    if not count:
        raise InputError("the files hold no token, and an empty datastore drafts nothing")
    if count + len(parts) > MOST_TOKENS:
        raise InputError(f"the files hold {count} tokens, a datastore {MOST_TOKENS}; give fewer")
    end = np.array([SEPARATOR], np.int32)
    tokens = np.concatenate([ids for part in parts for ids in (part, end)])
    suffixes = suffix_sorter()(tokens).astype(np.int32)
    about = {"format": FORMAT, "tokenizer": tokenizer, "sha256": checksum(tokens, suffixes)}
    with writing(path), whole_file(path) as file:
        file.write(save({"tokens": tokens, "suffixes": suffixes}, about))


def suffix_sorter() -> Callable[[Ints], Any]:
    try:
        from pydivsufsort import divsufsort
    except ImportError as error:
        raise InputError(
            "a datastore is sorted by pydivsufsort, which is not installed; "
            "`pip install -e '.[datastore]'` installs it"
        ) from error
    return divsufsort  # type: ignore[no-any-return]


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


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m data.datastore", "Build the datastore of the method rest.")
    add = parser.add_argument
    kinds = "text files, each a document; *.jsonl: texts, chats, question sets or traces"
    add("files", nargs="+", type=Path, metavar="FILE", help=kinds)
    add("--output", required=True, type=Path, metavar="STORE", help="the datastore, written anew")
    add_model_path(parser)
    add_settings(parser, TargetSettings, "trust_remote_code")
    args = parser.parse_args(argv)
    stopped = "interrupted; no datastore was written"
    return run_command(parser.prog, lambda: build(args), stopped)


if __name__ == "__main__":
    sys.exit(main())
