"""Rows for calibrated to begin with: python -m evaluation.vocabulary --help.

A row is what the target ranks best after a token. An answer leaves rows of the tokens that it had.
This reads one for every token of the vocabulary, by its mean logits behind a few other tokens. No
text is read, only the model. The file is a state of the method calibrated, for --evidence: of
greedy answers, and with --temperature of samples that are drawn so, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from model.logitspec.errors import InputError
from model.logitspec.listed import Numbers, list_rows, list_scored, without_filtered
from model.logitspec.modeling_llama_kv import LlamaKVForCausalLM
from model.logitspec.sampling import Sampling
from model.logitspec.states import write_state
from model.logitspec.vocabulary import rows_after

from .asking.engines import Models
from .asking.methods import find_drafter
from .asking.settings import TargetSettings
from .asking.target import Target
from .command.exits import run_command
from .command.files import check_writable, whole_file, writing
from .command.flags import add_machine_flags, add_model_path, add_sampling_flags, read
from .command.parser import Parser, at_least

METHOD = "calibrated"
# What each token is read behind: chosen by the answers to data/fit (docs/calibrated.md, 2). More of
# them add little, and each takes as long as the first.
CONTEXTS = "\n", ",", " it", " with"
SAMPLED_WIDTH = 64  # tokens of a row with log-probabilities; those that win are seldom beyond


def state_of_vocabulary(
    model: LlamaKVForCausalLM, tokenizer: Any, sampling: Sampling, most: int | None = None
) -> tuple[dict[str, Numbers], int]:
    """A state of calibrated with a row for each token of a vocabulary, and how many these are.

    Args:
        sampling: of the samples that it is for; greedy: it is for greedy answers alone.
        most: rows, of the first tokens; None: of all.

    Raises:
        InputError: to this tokenizer one of CONTEXTS is no token.
    """
    contexts = [tokenizer(text)["input_ids"] for text in CONTEXTS]
    if not all(contexts):
        text = CONTEXTS[contexts.index([])]
        raise InputError(
            f"to the tokenizer of {tokenizer.name_or_path} {text!r} is no token, and rows are read "
            "behind one; begin without them"
        )
    known = min(len(tokenizer), model.config.vocab_size)
    count = min(known, most or known)
    width = find_drafter(METHOD).node_top_k
    best = SAMPLED_WIDTH if sampling.temperature else width
    found = rows_after(model, contexts, range(count), best, sampling)
    rows = dict(tqdm(found, total=count, unit="token", disable=None))
    listed = list_rows({token: ids[:width] for token, (ids, _) in rows.items()})
    arrays = {"greedy.rows": listed}
    if sampling.temperature:
        scored, logs = list_scored({token: without_filtered(row) for token, row in rows.items()})
        arrays |= {"sampled.rows": listed, "sampled.scored": scored, "sampled.logs": logs}
    return arrays, len(rows)


def run(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    path = args.output
    if path.suffix != ".npz":
        raise InputError(f"--output {path}: name it *.npz, by which --evidence knows a state")
    check_writable(path)
    sampling = Sampling(args.temperature, args.sampling_top_k, args.top_p, args.min_p)
    target = Target.resolve(read(TargetSettings, args))
    model = Models(target, shared=False).kv
    arrays, count = state_of_vocabulary(model, target.tokenizer, sampling, args.tokens)
    with writing(path), whole_file(path) as file:
        fingerprint = target.tokenizer_fingerprint
        write_state(file, METHOD, arrays, fingerprint, sampling=sampling.settings)
    print(f"{count} rows: {path}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m evaluation.vocabulary", "Rows for calibrated to begin with.")
    add_model_path(parser)
    add = parser.add_argument
    add("--output", required=True, type=Path, metavar="FILE.npz", help="a state, for --evidence")
    text = "the first so many only, mostly the frequent ones (default: the whole vocabulary)"
    add("--tokens", type=at_least(1), metavar="N", help=text)
    add_sampling_flags(parser, "temperature", "top_k", "top_p", "min_p")
    add_machine_flags(parser)
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run(args), "interrupted; nothing is written")


if __name__ == "__main__":
    raise SystemExit(main())
