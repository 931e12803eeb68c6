"""Fits the prior of the method `calibrated`: python -m benchmarks.fit_prior --help.

The drafter answers questions that no benchmark here asks (data/fit, of our own writing); what its
acceptance table has counted then is fitted by a logistic regression with one weight for each grade
of each source of evidence. The weights are all that prior.json holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from evaluation.asking.answering import Answerer
from evaluation.asking.engines import KVEngine, Models
from evaluation.asking.questions import chosen_questions
from evaluation.asking.settings import AnswerSettings, QuestionSettings, TargetSettings
from evaluation.asking.target import Target, model_name
from evaluation.command.exits import run_command
from evaluation.command.files import write_atomically, writing
from evaluation.command.flags import add_machine_flags, read
from evaluation.command.parser import Parser, at_least
from model.logitspec import CalibratedDrafter, Drafter
from model.logitspec.drafters.calibrated.drafter import PRIOR, prior_of
from model.logitspec.drafters.calibrated.evidence import LastEvidence, Source, additive_prior
from model.logitspec.errors import InputError

from .measure import add_question_flags

FLAT = -2.0  # log-odds of every candidate before anything is fitted
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

    def answer(self, drafter: Drafter) -> tuple[int, int]:
        """Have all turns answered; the tokens and steps that took."""
        answerer = Answerer(self.target, KVEngine(self.models, drafter), "", self.settings)
        tokens = steps = 0
        for question in tqdm(self.questions, unit="question"):
            (choice,) = answerer.answer(question)["choices"]
            tokens += sum(choice["new_tokens"])
            steps += len(choice["accept_lengths"])
        return tokens, steps


def fit(sources: Sequence[Source], seen: Floats, right: Floats) -> dict[str, Any]:
    """What prior.json holds: the bias, and for each source a weight for every grade.

    They make the counts of an acceptance table most likely, ridge-penalized: `seen` are the
    observations of each cell, `right` how many of them were right.
    """
    cells = np.flatnonzero(seen)
    sizes = [len(source.grades) for source in sources]
    columns = [cells // source.stride % size for source, size in zip(sources, sizes, strict=True)]
    bias, *weights = newton(one_hot(columns, sizes), seen[cells], right[cells]).round(3).tolist()
    fitted: dict[str, Any] = {"bias": bias}
    for source in sources:
        own, weights = weights[: len(source.grades)], weights[len(source.grades) :]
        fitted[source.name] = dict(zip(source.grades, own, strict=True))
    return fitted


def one_hot(columns: Sequence[npt.NDArray[np.int64]], sizes: Sequence[int]) -> Floats:
    """[n, 1 + grades]: a column of ones, then for each of `columns` as many as it has grades."""
    parts = [np.eye(size)[column] for column, size in zip(columns, sizes, strict=True)]
    return np.hstack([np.ones((len(columns[0]), 1)), *parts])


def newton(x: Floats, seen: Floats, right: Floats) -> Floats:
    """Logistic regression by Newton's method with short steps; x is [cells, weights]."""
    penalty = np.full(x.shape[1], RIDGE)
    penalty[0] = RIDGE / 100
    weights = np.zeros(x.shape[1])
    weights[0] = FLAT
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
    """The same probability for every cell."""
    return additive_prior(FLAT, [[0.0] * len(source.grades) for source in sources])


def run(args: argparse.Namespace) -> None:
    """Answer and fit as often as wanted, each time with the prior of the time before."""
    if not args.output.parent.is_dir():
        raise InputError(f"--output {args.output}: there is no folder {args.output.parent}")
    asked = Questionnaire(args)
    widest = LastEvidence.BINS[-1] + 1  # so that every grade is seen
    drafter = CalibratedDrafter(args.draft_tree_capacity, last_width=widest)
    drafter.use_prior(flat_prior(drafter.sources))
    model = model_name(args.model_path)
    for round_ in range(1, args.rounds + 1):
        tokens, steps = asked.answer(drafter)
        seen, right = np.array(drafter.table.seen, float), np.array(drafter.table.right, float)
        fitted = fit(drafter.sources, seen, right)
        drafter.use_prior(prior_of(fitted, drafter.sources))
        print(f"round {round_}: MAT {tokens / steps:.3f}, {int(seen.sum())} candidates seen")
        about = f"python -m benchmarks.fit_prior, {asked.title}, {tokens} tokens, {model}"
        with writing(args.output, "give another --output"):
            write_atomically(args.output, {"fitted by": about, **fitted})
    print(f"the prior is in {args.output}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.fit_prior", "Fit the prior of the method calibrated.")
    add = parser.add_argument
    add_question_flags(parser, bench_name="fit")
    add("--draft-tree-capacity", type=at_least(2), default=64, metavar="C", help="nodes of a tree")
    add("--rounds", type=at_least(1), default=2, help="each begins with the prior of the last")
    add("--output", type=Path, default=PRIOR, metavar="FILE", help="where the prior is written")
    add_machine_flags(parser)
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
