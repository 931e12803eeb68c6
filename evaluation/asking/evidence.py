"""What a method begins with: a state that another run saved, answers of traces, texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.logitspec import Drafter
from model.logitspec.errors import InputError
from model.logitspec.listed import Numbers, list_answers
from model.logitspec.sampling import Sampling
from model.logitspec.states import Saved, read_state

from .documents import documents, tokenized
from .target import Target

DRAWN = "temperature", "top_k", "top_p", "min_p"  # of Sampling.settings, which greedy ones lack


def read_evidence(
    files: Sequence[Path], drafter: Drafter, target: Target, sampling: Sampling
) -> dict[str, Numbers]:
    """What a drafter's warm() takes, from the files of --evidence.

    Args:
        files: of which one may be a saved state, *.npz; the others hold documents.
        drafter: that is to begin with it.
        target: its tokenizer reads the texts.
        sampling: of the answers that are to come.

    Raises:
        InputError: a file cannot be read, there are two states, or one is of samples that are drawn
            in another way.
    """
    states = [path for path in files if path.suffix == ".npz"]
    texts = [path for path in files if path.suffix != ".npz"]
    if len(states) > 1:
        raise InputError(
            f"--evidence {states[0]} and {states[1]} are two states; give one, the others as traces"
        )
    fingerprint = target.tokenizer_fingerprint
    found: dict[str, Numbers] = {}
    if states:
        state = read_state(states[0], drafter.name, fingerprint)
        check_sampling(states[0], state, sampling)
        found = state.arrays
    if texts:
        ids = tokenized(documents(texts, fingerprint), target.tokenizer)
        found["answers"] = list_answers([part.tolist() for part in ids])
    return found


def check_sampling(path: Path, state: Saved, sampling: Sampling) -> None:
    """InputError if a state has rows of another temperature, or with other filters, than samples
    are drawn with. It is known of those that evaluation.vocabulary wrote."""
    noted = state.head.get("sampling")
    if noted is None or not sampling.temperature:
        return
    of, wanted = drawn(noted), drawn(sampling.settings)
    if of != wanted:
        raise InputError(
            f"{path} has rows for {of or 'greedy answers alone'}, and samples are drawn with "
            f"{wanted}; write another with evaluation.vocabulary and these flags"
        )


def drawn(settings: Mapping[str, Any]) -> str:
    """How samples are drawn, in words; nothing where answers are greedy."""
    return ", ".join(f"{name} {settings[name]}" for name in DRAWN if name in settings)
