"""What knowing the noise of samples is worth: python -m benchmarks.sampling --help.

Every question is sampled with some seeds, by the one-node loop and by `calibrated` (or by others)
with and without a look at the noise; the methods take turns. All answers have to be the one-node
loop's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from evaluation.asking.answering import Answerer
from evaluation.asking.engines import KVEngine
from evaluation.asking.questions import Question
from evaluation.command.flags import add_machine_flags
from evaluation.command.parser import Parser, at_least
from evaluation.vocabulary import state_of_vocabulary
from model.logitspec import (
    CalibratedDrafter,
    Drafter,
    InputError,
    LogitSpecDrafter,
    RacerDrafter,
    Sampling,
    TokenRecyclingDrafter,
    VanillaDrafter,
)
from model.logitspec.listed import Numbers

from .fit_prior import Questionnaire
from .measure import Results, add_question_flags, run_benchmark

SETTINGS = {
    "temperature 0": Sampling(),
    "temperature 0.7": Sampling(0.7),
    "temperature 1": Sampling(1.0),
    "temperature 1, top-p 0.9": Sampling(1.0, top_p=0.9),
    "temperature 1, top-k 50": Sampling(1.0, top_k=50),
}
BASE = "vanilla"
BEGUN = ", rows"  # how the names of those end that begin with rows
COLUMNS = {
    "sampling": (26, "{sampling}"),
    "method": (24, "{method}"),
    "MAT": (6, "{mat:.3f}"),
    "by seed": (22, "{by_seed}"),
    "speed": (7, "{speed:.3f}"),
    "equal answers": (14, "{equal} of {answers}"),
}


@dataclass
class Books:
    """What a method has answered under one setting."""

    answerer: Answerer
    texts: list[Any] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # by seed
    steps: list[int] = field(default_factory=list)
    seconds: list[list[float]] = field(default_factory=list)  # of the answers, by seed

    def begin(self) -> None:
        """Begin the next seed."""
        self.answerer.engine.forget()
        self.tokens.append(0)
        self.steps.append(0)
        self.seconds.append([])

    def answer(self, question: Question, sampling: Sampling) -> None:
        settings = replace(self.answerer.settings, sampling=sampling)
        (choice,) = replace(self.answerer, settings=settings).answer(question)["choices"]
        self.texts.append(choice["turns"])
        self.tokens[-1] += sum(choice["new_tokens"])
        self.steps[-1] += len(choice["accept_lengths"])
        self.seconds[-1].append(sum(choice["wall_time"]))

    @property
    def mats(self) -> list[float]:
        return [tokens / steps for tokens, steps in zip(self.tokens, self.steps, strict=True)]


def drafters(capacity: int, *, others: bool, rows: bool) -> dict[str, Callable[[], Drafter]]:
    """What makes each method, by its name in the table; with rows, also those to begin so."""
    found: dict[str, Callable[[], Drafter]] = {BASE: VanillaDrafter}
    if others:
        found |= {
            "logitspec": partial(LogitSpecDrafter, draft_tree_capacity=capacity),
            "logitspec, foresight": partial(
                LogitSpecDrafter, draft_tree_capacity=capacity, foresight=True
            ),
            "racer": partial(RacerDrafter, capacity),
            "racer, foresight": partial(RacerDrafter, capacity, foresight=True),
            "recycling": TokenRecyclingDrafter,
            "recycling, foresight": partial(TokenRecyclingDrafter, foresight=True),
        }
        return found
    ours: dict[str, Callable[[], Drafter]] = {
        "calibrated, blind": partial(CalibratedDrafter, capacity, blind=True),
        "calibrated": partial(CalibratedDrafter, capacity),
        "calibrated@auto, blind": partial(CalibratedDrafter, "auto", blind=True),
        "calibrated@auto": partial(CalibratedDrafter, "auto"),
    }
    if rows:
        for name in ("calibrated", "calibrated@auto"):
            ours[name + BEGUN] = ours[name]
    return found | ours


def run(args: argparse.Namespace) -> None:
    """Have everything answered and print a table."""
    if args.rows and args.others:
        raise InputError("--rows is for calibrated, and --others leaves it out; give one of them")
    methods = drafters(args.draft_tree_capacity, others=args.others, rows=args.rows)
    if args.methods:
        _, *names = methods
        for name in args.methods:
            if name not in names:
                raise InputError(f"--methods {name!r}: give some of {names}")
        methods = {name: make for name, make in methods.items() if name in (BASE, *args.methods)}
    asked = Questionnaire(args)
    results = Results(args, asked.target.device)
    table = results.table(
        "sampling",
        f"{asked.title}, {args.seeds} seeds: MAT, and tokens/s over the one-node loop's",
        COLUMNS,
    )
    for name, sampling in SETTINGS.items():
        if args.only and name not in args.only:
            continue
        rows: Mapping[str, Numbers] = {}
        if args.rows:
            rows, _ = state_of_vocabulary(asked.models.kv, asked.target.tokenizer, sampling)
        books = {}
        for label, make in methods.items():
            drafter = make()
            if label.endswith(BEGUN):
                drafter.warm(rows)
            engine = KVEngine(asked.models, drafter)
            books[label] = Books(Answerer(asked.target, engine, "", asked.settings))
        seeds = range(args.seeds if sampling.temperature else 1)
        progress = tqdm(total=len(seeds) * len(asked.questions), desc=name, unit="question")
        for seed in seeds:
            for own in books.values():
                own.begin()
            for question in asked.questions:
                for own in books.values():
                    own.answer(question, replace(sampling, seed=seed))
                progress.update()
        progress.close()
        base = books.pop(BASE)
        for label, own in books.items():
            speeds = [
                sum(theirs) / sum(mine)
                for theirs, mine in zip(base.seconds, own.seconds, strict=True)
            ]
            table.add(
                {
                    "sampling": name,
                    "method": label,
                    "mat": sum(own.tokens) / sum(own.steps),
                    "mats": own.mats,
                    "speed": float(np.median(speeds)),
                    "equal": sum(a == b for a, b in zip(own.texts, base.texts, strict=True)),
                    "answers": len(base.texts),
                },
                by_seed=" ".join(f"{mat:.2f}" for mat in own.mats),
            )


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m benchmarks.sampling",
        "Sample with and without a look at the noise, which is known beforehand.",
    )
    add_question_flags(parser, stride=40)
    add = parser.add_argument
    add("--seeds", type=at_least(1), default=3, metavar="N", help="0 to N - 1")
    add("--draft-tree-capacity", type=at_least(2), default=64, metavar="C", help="nodes of a tree")
    add("--only", nargs="+", choices=SETTINGS, metavar="NAME", help=f"of {', '.join(SETTINGS)}")
    add("--methods", nargs="+", metavar="NAME", help="only these of the table; default: all")
    add(
        "--others", action="store_true",
        help="instead of calibrated the methods LogitSpec, RACER and Token Recycling, as published "
        "and with their option foresight",
    )  # fmt: skip
    text = "calibrated once more, begun with rows of the whole vocabulary (evaluation.vocabulary)"
    add("--rows", action="store_true", help=text)
    add_machine_flags(parser)
    return run_benchmark(parser, argv, run)


if __name__ == "__main__":
    sys.exit(main())
