"""Would the probabilities of copied logits say more than their ranks? python -m
benchmarks.row_probabilities --help.

Rows hold ranks only, which every verifier has. Here a question set is answered by plain decoding
and read again with probabilities; two logistic regressions, one on ranks and one on bins of
probability, are fitted on every other question and compared on the rest.
"""

from __future__ import annotations

import argparse
import sys
from bisect import bisect
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tqdm import tqdm

from evaluation.answering import allowed_tokens
from evaluation.arguments import Parser, add_machine_flags, run_command
from evaluation.engines import KVEngine, Models
from evaluation.eval import chosen_questions
from evaluation.targets import Target
from model.logitspec import LlamaKVForCausalLM, VanillaDrafter
from model.logitspec.decoding import read_in
from model.logitspec.errors import InputError
from model.logitspec.evidence import NgramEvidence

from .fit_prior import Floats, newton, one_hot
from .measure import INTERRUPTED, Table, add_question_flags

WIDTH = 8  # tokens of a row
EDGES = (0.005, 0.02, 0.05, 0.15, 0.3, 0.5, 0.7, 0.9)  # of the bins of probability
PIECE = 128  # tokens whose logits are computed at a time

Row = list[tuple[int, float]]  # the best tokens after a token, with their probabilities
Candidate = tuple[int, int, int, bool]  # grades: n-grams, row by rank, row by probability; right


@torch.inference_mode()
def rows_of(model: LlamaKVForCausalLM, ids: Sequence[int]) -> list[Row]:
    """The row after every token of a sequence."""
    found: list[Row] = []
    for x in torch.split(read_in(model, ids, model.new_cache(len(ids))), PIECE):
        best = model.logits(x).float().softmax(-1).topk(WIDTH)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        found += [list(zip(tokens, shares, strict=True)) for tokens, shares in pairs]
    return found


def candidates(ids: Sequence[int], prompt: int, rows: Sequence[Row]) -> Iterator[list[Candidate]]:
    """For every output token but the last: what is named as the next one, and how it is graded.

    Args:
        ids: prompt and output.
        prompt: how many of them are the prompt's.
        rows: after each of them.
    """
    ngrams = NgramEvidence(5, stride=1)
    pair: dict[tuple[int, int], Row] = {}
    single: dict[int, Row] = {}
    ranks, bins = WIDTH + 1, len(EDGES) + 2  # beside those in the row: not in it
    for at in range(1, len(ids) - 1):
        before, token, true = ids[at - 1], ids[at], ids[at + 1]
        ngrams.extend([before])
        if at >= prompt:
            row = pair.get((before, token)) or single.get(token) or []
            kind = 1 + ((before, token) not in pair) if row else 0
            base, named = ngrams.look((*ngrams.context, token)[-5:])
            grades = {
                t: (1 + rank, 1 + bisect(EDGES, share)) for rank, (t, share) in enumerate(row)
            }
            yield [
                (
                    base + named.get(t, 0),
                    kind * ranks + grades.get(t, (0, 0))[0],
                    kind * bins + grades.get(t, (0, 0))[1],
                    t == true,
                )
                for t in {**named, **grades}
            ]
        pair[before, token] = single[token] = rows[at]


def log_loss(x: Floats, right: Floats, test: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
    """Of the regression fitted on the other rows: nats, summed over the rows of `test`."""
    ones = np.ones(int((~test).sum()))
    p = 1 / (1 + np.exp(-x[test] @ newton(x[~test], ones, right[~test])))
    return float(-np.log(np.where(right[test] > 0, p, 1 - p)).sum())


def run(args: argparse.Namespace) -> None:
    """Answer, read, fit and print."""
    _, questions = chosen_questions(args)
    if len(questions) < 2:
        raise InputError("one question is asked; give two or more, every other one is the test")
    target = Target.resolve(args)
    engine = KVEngine(Models(target, shared=False), VanillaDrafter())
    graded: list[Candidate] = []
    tests: list[bool] = []
    positions = 0
    for index, question in enumerate(tqdm(questions, unit="question")):
        prompt_ids = target.prompts.start().ask(question.turns[0])
        allowed = allowed_tokens(question, prompt_ids, target, args)
        ids = [*prompt_ids, *engine.generate(prompt_ids, allowed).tokens]
        for found in candidates(ids, len(prompt_ids), rows_of(engine.model, ids)):
            graded += found
            tests += [index % 2 == 1] * len(found)
            positions += index % 2
    ngrams, ranks, shares, right = np.array(graded, dtype=np.int64).T
    test = np.array(tests)
    table = Table(
        f"{len(questions)} questions, log-loss per token on every other one",
        {"rows graded by": 16, "nats": 7},
    )
    for name, columns in {
        "rank": [ngrams, ranks],
        "probability": [ngrams, shares],
        "both": [ngrams, ranks, shares],
    }.items():
        loss = log_loss(
            one_hot(columns, [int(c.max()) + 1 for c in columns]), right.astype(float), test
        )
        table.add(name, f"{loss / positions:.4f}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m benchmarks.row_probabilities", "Rows of copied logits: ranks or probabilities?"
    )
    add_question_flags(parser, bench_name="fit")
    add_machine_flags(parser)
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run(args), INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
