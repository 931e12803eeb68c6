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

from evaluation.asking.answering import allowed_tokens, check_prompts
from evaluation.asking.engines import KVEngine
from evaluation.asking.methods import find_drafter
from evaluation.command.flags import add_machine_flags
from evaluation.command.parser import Parser, at_least

from . import memory
from .fit_prior import Questionnaire
from .measure import Figures, Results, add_question_flags, growth, run_benchmark

COLUMNS = {
    "generations": (11, "{generations}"),
    "MiB": (9, "{mib:.1f}"),
    "files": (5, "{files}"),
    "MAT": (6, "{mat:.3f}"),
    "tokens/s": (8, "{tokens_per_second:.1f}"),
}


def soak(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    drafter = find_drafter(args.method)
    asked = Questionnaire(args)
    target, settings = asked.target, asked.settings
    questions = check_prompts(asked.questions, target, settings)
    results = Results(args, target.device)
    engine = KVEngine(asked.models, drafter)
    table = results.table(
        "soak",
        f"{args.method} on {args.bench_name}, {len(questions)} prompts in a circle, up to "
        f"{args.max_new_tokens} tokens each; a line after every {args.every} generations",
        COLUMNS,
    )
    circle = itertools.cycle(questions)
    for number in range(args.every, args.generations + 1, args.every):
        tokens = steps = 0
        clock = time.perf_counter()
        for question in itertools.islice(circle, args.every):
            prompt = target.prompts.start().ask(question.turns[0])
            result = engine.generate(prompt, allowed_tokens(question, prompt, target, settings))
            tokens, steps = tokens + len(result.tokens), steps + result.steps
        seconds = time.perf_counter() - clock
        row = {
            "generations": number,
            "mib": memory.in_mib(memory.held(target.device) or 0),
            "files": len(list(Path("/dev/fd").iterdir())),
            "mat": tokens / steps,
            "tokens_per_second": tokens / seconds,
        }
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
    slope = growth(rows[len(rows) // 2 :], "generations", "mib")
    if slope is not None:
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
    add_machine_flags(parser)
    parser.set_defaults(strict=True, max_new_tokens=32)

    def checked(args: argparse.Namespace) -> None:
        if args.every > args.generations:
            parser.error(
                f"--every {args.every} is more than the {args.generations} of --generations"
            )
        soak(args)

    return run_benchmark(parser, argv, checked)


if __name__ == "__main__":
    sys.exit(main())
