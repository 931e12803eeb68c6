"""One table of several methods, from their traces: python -m evaluation.tables --help."""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from model.logitspec.errors import InputError

from .command.exits import run_command
from .command.files import write_text
from .command.parser import Parser
from .command.traces import add_trace_flags, read_traces
from .tabulating.by_sample import by_sample, count_samples
from .tabulating.columns import (
    BENCHES,
    TEMPERATURES,
    Grouping,
    compare,
    compare_groups,
    read_groups,
)
from .tabulating.origin import to_json
from .tabulating.phases import phases
from .tabulating.table import FORMATS, Table


def by_group(args: argparse.Namespace, grouping: Grouping) -> Table:
    """The table of --by-bench or --by-temperature; InputError for flags that do not go with it."""
    if args.base_path is not None:
        raise InputError(
            f"--base-path {args.base_path} is one {grouping.name}'s; leave it out of a table "
            f"by {grouping.name}, which takes each one's own baseline"
        )
    if args.by_bench and args.by_temperature:
        raise InputError("--by-bench and --by-temperature are two tables; give one of them")
    if args.phases or args.by_sample or args.json is not None:
        raise InputError(
            f"a table by {grouping.name} has no phases and no samples; leave out --phases, "
            f"--by-sample and --json, or --by-{'bench' if args.by_bench else 'temperature'}"
        )
    if args.by_temperature and args.published:
        raise InputError("there are no published figures by temperature; leave out --published")
    comparisons = read_groups(
        args.traces, grouping, first_turns=args.first_turns, strict=args.strict
    )
    return compare_groups(comparisons, grouping, published=args.published)


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    taken = {path.resolve() for path in (*args.traces, args.base_path) if path is not None}
    for flag, path in (("--output", args.output), ("--json", args.json)):
        if path is not None and path.resolve() in taken:
            raise InputError(f"{flag} {path} is one of the traces; choose another file")
    outputs = [path.resolve() for path in (args.json, args.output) if path is not None]
    if len(set(outputs)) < len(outputs):
        raise InputError(f"--json and --output are both {args.json}; choose two files")
    other = "--phases" if args.phases else "--by-sample" if args.by_sample else ""
    if other and (args.task_mat or args.published):
        raise InputError(
            f"the table of {other} has no tasks and no published figures; leave out --task-mat and "
            "--published"
        )
    if args.phases and args.by_sample:
        raise InputError("--phases and --by-sample are two tables; give one of them")
    grouping = BENCHES if args.by_bench else TEMPERATURES if args.by_temperature else None
    if grouping is not None:
        table = by_group(args, grouping)
    else:
        comparison = read_traces(args)
        tables = {
            "speed": compare(comparison, published=args.published, task_mat=args.task_mat),
            "phases": phases(comparison),
        }
        if count_samples(comparison) > 1:
            tables["samples"] = by_sample(comparison)
        elif args.by_sample:
            raise InputError(
                "--by-sample needs several answers to each question; run with --num-choices"
            )
        if args.json is not None:
            content = json.dumps(to_json(comparison, tables), indent=2, ensure_ascii=False)
            write_text(args.json, f"{content}\n")
        table = tables["phases" if args.phases else "samples" if args.by_sample else "speed"]
    text = FORMATS[args.format](table)
    if args.output is None:
        print(text, end="")
    else:
        write_text(args.output, text)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m evaluation.tables", "A table of several methods from their traces.")
    add_trace_flags(parser)
    add, switch = parser.add_argument, partial(parser.add_argument, action="store_true")
    add("--format", choices=FORMATS, default="terminal", help="of the table")
    add("--output", type=Path, metavar="FILE", help="write the table there instead of printing it")
    switch("--published", help="append published figures for the bench, each with its source")
    switch("--task-mat", help="each task's MAT instead of its speedup")
    switch("--phases", help="instead: nodes per step, time to the first token, milliseconds of "
           "each phase of a step")  # fmt: skip
    switch("--by-sample", help="instead, of runs with --num-choices: MAT and speed by the number "
           "of the sample")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write all tables there as well, with settings "
        "and machine, for benchmarks.report")  # fmt: skip
    several = "the traces are of several {}, each with a baseline: MAT and speedup for each"
    switch("--by-bench", help=several.format("benches"))
    switch("--by-temperature", help=several.format("temperatures"))
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: report(args))


if __name__ == "__main__":
    raise SystemExit(main())
