"""Thousands of generations in one process: python -m benchmarks.soak --help.

Memory, open files and accept lengths, from the first generation to the last.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.asking.answering import allowed_tokens, check_prompts
from evaluation.asking.engines import KVEngine, Models
from evaluation.asking.methods import find_drafter
from evaluation.asking.questions import chosen_questions
from evaluation.asking.settings import AnswerSettings, QuestionSettings, TargetSettings
from evaluation.asking.target import Target
from evaluation.command.flags import add_machine_flags, read
from evaluation.command.parser import Parser, at_least

from . import memory
from .measure import (
    Figures,
    PrintedTable,
    Results,
    add_output_flags,
    add_question_flags,
    run_benchmark,
)

COLUMNS = {
    "generations": (11, "{generations}"),
    "MiB": (9, "{mib:.1f}"),
    "files": (5, "{files}"),
    "MAT": (6, "{mat:.3f}"),
    "tokens/s": (8, "{tokens_per_second:.1f}"),
}


def soak(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    _, questions = chosen_questions(read(QuestionSettings, args))
    drafter = find_drafter(args.method)
    settings = read(AnswerSettings, args)
    target = Target.resolve(read(TargetSettings, args))
    questions = check_prompts(questions, target, settings)
    results = Results(args, target.device)
    engine = KVEngine(Models(target, shared=False), drafter)
    table = PrintedTable(
        f"{args.method} on {args.bench_name}, {len(questions)} prompts in a circle, up to "
        f"{args.max_new_tokens} tokens each; a line after every {args.every} generations",
        COLUMNS,
    )
    asked = itertools.cycle(questions)
    for number in range(args.every, args.generations + 1, args.every):
        tokens = steps = 0
        clock = time.perf_counter()
        for question in itertools.islice(asked, args.every):
            prompt = target.prompts.start().ask(question.turns[0])
            result = engine.generate(prompt, allowed_tokens(question, prompt, target, settings))
            tokens, steps = tokens + len(result.tokens), steps + result.steps
        seconds = time.perf_counter() - clock
        row: Figures = {
            "generations": number,
            "mib": memory.in_mib(memory.held(target.device) or 0),
            "files": len(list(Path("/dev/fd").iterdir())),
            "mat": tokens / steps,
            "tokens_per_second": tokens / seconds,
        }
        results.add("soak", row)
        table.add(row)
    print("\n".join(summary(results.content["soak"])))


def summary(rows: Sequence[Figures]) -> list[str]:
    """What became of memory, files and MAT between the first and the last row.

    The slope of memory is a least-squares line through the second half: what is held once and for
    all (buffers for the longest prompt, what a method keeps up to its bound) is there by then.
    """
    mats = [row["mat"] for row in rows]
    files = [row["files"] for row in rows]
    lines = [
        f"memory: {rows[0]['mib']:.1f} MiB at first, {rows[-1]['mib']:.1f} at last",
        f"open files: {files[0]} at first, {files[-1]} at last, {max(files)} at most",
        f"MAT: {mats[0]:.3f} at first, {mats[-1]:.3f} at last, from {min(mats):.3f} to "
        f"{max(mats):.3f}",
    ]
    half = rows[len(rows) // 2 :]
    if len(half) > 1:
        thousands = [row["generations"] / 1000 for row in half]
        slope = np.polyfit(thousands, [row["mib"] for row in half], 1)[0]
        lines.append(f"slope of memory in the second half: {slope:+.2f} MiB per 1,000 generations")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m benchmarks.soak", "Generate for long in one process: memory, files, MAT."
    )
    add_question_flags(parser, bench_name="quick")
    add = parser.add_argument
    add("--method", default="calibrated@auto", metavar="NAME", help="of evaluation.run")
    add("--generations", type=at_least(1), default=2040, help="how many")
    several = "of them make a line; best a multiple of the prompts"
    add("--every", type=at_least(1), default=120, help=several)
    add_output_flags(parser)
    add_machine_flags(parser)
    parser.set_defaults(strict=True, max_new_tokens=32)
    args = parser.parse_args(argv)
    if args.every > args.generations:
        parser.error(f"--every {args.every} is more than the {args.generations} of --generations")
    return run_benchmark(parser, args, soak)


if __name__ == "__main__":
    sys.exit(main())
