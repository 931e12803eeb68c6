"""Build the datastore that the method `rest` drafts from: python -m data.datastore --help.

Documents are whole text files, and the texts in lines of *.jsonl: corpora, chats, question sets,
answers of traces. What is built is described in model/logitspec/datastore.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from evaluation.asking.documents import documents, tokenized
from evaluation.asking.settings import TargetSettings
from evaluation.asking.target import load_tokenizer
from evaluation.command.exits import run_command
from evaluation.command.files import check_writable, whole_file, writing
from evaluation.command.flags import add_model_path, add_settings
from evaluation.command.parser import Parser
from model.logitspec.datastore import FORMAT, SEPARATOR, Ints, checksum
from model.logitspec.errors import InputError
from model.logitspec.states import tokenizer_fingerprint

MOST_TOKENS = 2**31 - 2**16  # places in a datastore are 32-bit numbers


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
