"""What a method begins with: a state that another run saved, answers of traces, texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model.logitspec import Drafter
from model.logitspec.errors import InputError
from model.logitspec.listed import Numbers, list_answers
from model.logitspec.states import read_state

from .documents import documents, tokenized
from .target import Target


def read_evidence(files: Sequence[Path], drafter: Drafter, target: Target) -> dict[str, Numbers]:
    """What a drafter's warm() takes, from the files of --evidence.

    Args:
        files: of which one may be a saved state, *.npz; the others hold documents.
        drafter: that is to begin with it.
        target: its tokenizer reads the texts.

    Raises:
        InputError: a file cannot be read, or there are two states.
    """
    states = [path for path in files if path.suffix == ".npz"]
    texts = [path for path in files if path.suffix != ".npz"]
    if len(states) > 1:
        raise InputError(
            f"--evidence {states[0]} and {states[1]} are two states; give one, the others as traces"
        )
    fingerprint = target.tokenizer_fingerprint
    found = read_state(states[0], drafter.name, fingerprint).arrays if states else {}
    if texts:
        ids = tokenized(documents(texts, fingerprint), target.tokenizer)
        found["answers"] = list_answers([part.tolist() for part in ids])
    return found
