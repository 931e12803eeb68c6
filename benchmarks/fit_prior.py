"""Fits the prior of the method `calibrated`: python -m benchmarks.fit_prior --help.

The drafter answers questions that no benchmark here asks (data/fit, of our own writing). How often
the tokens of each grade of each source of evidence were right then is all that prior.json holds.
With --sampled the answers are samples, and what the foresight table has counted is fitted, too:
that is prior_sampled.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from evaluation.asking.answering import Answerer
from evaluation.asking.engines import KVEngine, Models
from evaluation.asking.questions import chosen_questions
from evaluation.asking.settings import GREEDY, AnswerSettings, QuestionSettings, TargetSettings
from evaluation.asking.target import Target, model_name
from evaluation.command.exits import run_command
from evaluation.command.files import write_atomically, writing
from evaluation.command.flags import add_machine_flags, read
from evaluation.command.parser import Parser, at_least
from model.logitspec import CalibratedDrafter, Drafter
from model.logitspec.drafters.calibrated.evidence import LastEvidence
from model.logitspec.drafters.calibrated.foresight import (
    BINS,
    FIRST_COUNT,
    FLAT_FORESIGHT,
    KIND_NAMES,
    KINDS,
    LEVELS,
    MIDDLES,
    ForesightTable,
)
from model.logitspec.drafters.calibrated.prior import PRIOR, SAMPLED_PRIOR, prior_of
from model.logitspec.drafters.calibrated.source import Source, is_named
from model.logitspec.errors import InputError
from model.logitspec.sampling import Sampling
from model.logitspec.sizing.acceptance_table import AcceptanceTable

from .measure import add_question_flags

FLAT = 0.12  # of every grade before anything is fitted
FIRST = 2.0  # tokens that FLAT weighs
FEW = 20.0  # tokens that weigh as much as what is known of all kinds
TEMPERATURES = 0.7, 1.0  # of the samples
RIDGE = 1.0  # a weight of w costs RIDGE * w * w / 2 of the log-likelihood
Floats = npt.NDArray[np.float64]


class Questionnaire:
    """The questions that the flags choose, asked of the model that they name."""

    def __init__(self, args: argparse.Namespace) -> None:
        _, self.questions = chosen_questions(read(QuestionSettings, args))
        self.target = Target.resolve(read(TargetSettings, args))
        self.settings = read(AnswerSettings, args, strict=True)
        self.models = Models(self.target, shared=False)
        self.title = f"{len(self.questions)} questions of {args.bench_name}"

    def answer(self, drafter: Drafter, sampling: Sampling = GREEDY) -> tuple[int, int]:
        """Have all turns answered; the tokens and steps that took."""
        settings = replace(self.settings, sampling=sampling)
        answerer = Answerer(self.target, KVEngine(self.models, drafter), "", settings)
        tokens = steps = 0
        for question in tqdm(self.questions, unit="question"):
            (choice,) = answerer.answer(question)["choices"]
            tokens += sum(choice["new_tokens"])
            steps += len(choice["accept_lengths"])
        return tokens, steps


def fit(sources: Sequence[Source], table: AcceptanceTable) -> dict[str, Any]:
    """What prior.json holds: how often the tokens of each grade were right, drawn to FLAT."""
    seen, right = np.array(table.seen, float), np.array(table.right, float)
    shares = ((right + FIRST * FLAT) / (seen + FIRST)).round(4).tolist()
    return {
        source.name: {
            grade: shares[source.first + at]
            for at, grade in enumerate(source.grades)
            if is_named(grade)
        }
        for source in sources
    }


def fit_foresight(table: ForesightTable) -> dict[str, Any]:
    """The prior of a foresight table: by kind a line for the log-odds, and shares by level.

    A share that few tokens tell of is drawn to that of its level in all kinds.
    """
    seen, right = (numbers.reshape(KINDS, BINS) for numbers in (table.seen, table.right))
    new = [numbers.reshape(KINDS, LEVELS) for numbers in (table.share, table.count)]
    first, weight = table.first_share.reshape(KINDS, LEVELS), FIRST_COUNT
    share, count = new[0] - weight * first, new[1] - weight  # what was learnt alone
    pooled = (share.sum(axis=0) + 1) / (count.sum(axis=0) + 2)
    shares = (share + FEW * pooled) / (count + FEW)
    fitted = {}
    for kind, name in enumerate(KIND_NAMES):
        lines = np.column_stack([np.ones(BINS), MIDDLES])
        bias, slope = newton(lines, seen[kind], right[kind]).round(3).tolist()
        fitted[name] = {"bias": bias, "slope": slope, "shares": shares[kind].round(3).tolist()}
    return fitted


def newton(x: Floats, seen: Floats, right: Floats) -> Floats:
    """Logistic regression by Newton's method with short steps; x is [bins, weights]."""
    penalty = np.full(x.shape[1], RIDGE)
    penalty[0] = RIDGE / 100
    weights = np.zeros(x.shape[1])
    weights[0] = -2.0  # log-odds to begin with
    for _ in range(100):
        p = 1 / (1 + np.exp(-x @ weights))
        slope = x.T @ (seen * p - right) + penalty * weights
        curvature = (x * (seen * p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(curvature, slope)
        weights -= step / max(1.0, float(np.abs(step).max()) / 2)
        if np.abs(step).max() < 1e-6:
            return weights
    raise ArithmeticError("the regression does not converge")


def flat_prior(sources: Sequence[Source]) -> list[float]:
    """The same probability for every grade."""
    return [FLAT for source in sources for _ in source.grades]


def run(args: argparse.Namespace) -> None:
    """Answer and fit as often as wanted, each time with the prior of the time before."""
    if args.output is None:
        args.output = SAMPLED_PRIOR if args.sampled else PRIOR
    if not args.output.parent.is_dir():
        raise InputError(f"--output {args.output}: there is no folder {args.output.parent}")
    asked = Questionnaire(args)
    widest = LastEvidence.BINS[-1] + 1  # so that every grade is seen
    drafter = CalibratedDrafter(args.draft_tree_capacity, last_width=widest)
    first = flat_prior(drafter.sources)
    drafter.use_prior(first, FLAT_FORESIGHT if args.sampled else None)
    model = model_name(args.model_path)
    asking = [Sampling(t) for t in TEMPERATURES] if args.sampled else [GREEDY]
    for round_ in range(1, args.rounds + 1):
        answers = [asked.answer(drafter, sampling) for sampling in asking]
        tokens, steps = map(sum, zip(*answers, strict=True))
        fitted = fit(drafter.sources, drafter.table)
        foreseen = fit_foresight(drafter.foresight_table) if drafter.foresight_table else None
        drafter.use_prior(prior_of(fitted, drafter.sources), foreseen)
        print(f"round {round_}: MAT {tokens / steps:.3f}")
        command = "python -m benchmarks.fit_prior" + (" --sampled" if args.sampled else "")
        about = f"{command}, {asked.title}, {tokens} tokens, {model}"
        written = {"fitted by": about, **fitted, **({"foresight": foreseen} if foreseen else {})}
        with writing(args.output, "give another --output"):
            write_atomically(args.output, written)
    print(f"the prior is in {args.output}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.fit_prior", "Fit the prior of the method calibrated.")
    add = parser.add_argument
    add_question_flags(parser, bench_name="fit")
    add("--draft-tree-capacity", type=at_least(2), default=64, metavar="C", help="nodes of a tree")
    add("--rounds", type=at_least(1), default=2, help="each begins with the prior of the last")
    add("--sampled", action="store_true", help="of samples, at temperatures of 0.7 and 1")
    where = "where the prior is written (default: where calibrated reads it)"
    add("--output", type=Path, metavar="FILE", help=where)
    add_machine_flags(parser)
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
