"""How slow a method is on its worst questions: python -m benchmarks.slowest --help.

Every question is answered in some rounds, the methods in turns. A question's ratio is the median of
its rounds. The one-node loop runs twice in a round: its ratio to itself is what the machine's noise
makes of no difference.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evaluation.asking.methods import find_methods
from evaluation.asking.questions import chosen_questions
from evaluation.asking.runs import Run, answer_benchmark
from evaluation.command.flags import add_machine_flags, add_run_flags, add_warmup_flag, read_run
from evaluation.command.parser import Parser, at_least
from evaluation.traces.comparing import Trace, check_same_questions
from model.logitspec.errors import InputError

from .measure import Results, run_benchmark

BASE = "vanilla"
AGAIN = "vanilla, again"
COLUMNS = {
    "method": (18, "{method}"),
    "MAT": (7, "{mat:.2f}"),
    "all questions": (15, "{overall:.3f}"),
    "median": (8, "{median:.3f}"),
    "slowest 5 %": (12, "{slowest:.3f}"),
    "worst": (8, "{worst:.3f}"),
}


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    found = find_methods(f"{BASE},{args.methods}")
    base, *others = (method for method in found.values())
    if not others:
        raise InputError(
            "--methods names none; give at least one to compare with the one-node loop"
        )
    results = Results(args, "cpu")
    named = {BASE: base, **{method.name: method for method in others}, AGAIN: base}
    rounds = []
    for number in range(args.rounds):
        identities = {name: f"{args.model_id}-{number}-{name.replace(' ', '')}" for name in named}
        rounds.append(
            {
                name: Run(
                    named[name],
                    named[name].settings(vars(args)),
                    identity,
                    args.answer_dir / f"{identity}.jsonl",
                )
                for name, identity in identities.items()
            }
        )
    settings = read_run(args)
    asked = {question.question_id for question in chosen_questions(settings.questions)[1]}
    answer_benchmark(settings, [run for own in rounds for run in own.values()])
    traces = {name: [Trace.read(own[name].answer_file) for own in rounds] for name in named}
    first = traces[BASE][0]
    for trace in chain(*traces.values()):
        if {record["question_id"] for record in trace.records} - asked:
            raise InputError(
                f"{trace.path} answers other questions, too; give --answer-dir another folder, or "
                "--overwrite"
            )
        check_same_questions(first.path, first.records, trace.path, trace.records)
    shown = results.table(
        "methods",
        f"{args.bench_name}, {args.model_path}, temperature {args.temperature}: tokens/s over the "
        f"one-node loop's, question by question, of {len(first.records)} questions; "
        f"median of {args.rounds} rounds",
        COLUMNS,
    )
    bases = speeds(traces.pop(BASE))
    for name, own in traces.items():
        ratios = np.median(speeds(own) / bases, axis=0)
        shown.add(
            {
                "method": name,
                "mat": float(np.mean([trace.mat for trace in own])),
                "overall": float(np.median(speeds(own).mean(axis=1) / bases.mean(axis=1))),
                "median": float(np.median(ratios)),
                "slowest": float(np.percentile(ratios, 5)),
                "worst": float(ratios.min()),
                "ratios": [round(float(ratio), 4) for ratio in ratios],
            }
        )


def speeds(rounds: Sequence[Trace]) -> npt.NDArray[np.float64]:
    """Tokens per second: [rounds, questions]."""
    return np.array([trace.speeds() for trace in rounds])


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m benchmarks.slowest", "Tokens/s over the one-node loop's, question by question."
    )
    add = parser.add_argument
    methods = "of evaluation.run, to compare with the one-node loop"
    add("--methods", default="calibrated@auto", metavar="A,B", help=methods)
    add("--rounds", type=at_least(1), default=3, help="of all methods")
    place = "where the traces go; a run that was stopped goes on with them"
    add("--answer-dir", type=Path, required=True, metavar="DIR", help=place)
    add_run_flags(parser)
    add_machine_flags(parser)
    add_warmup_flag(parser)
    return run_benchmark(parser, argv, report)


if __name__ == "__main__":
    sys.exit(main())
