"""Speedup and accept length of a method against a baseline, from their traces.

    python evaluation/speed.py --file-path METHOD.jsonl --base-path BASELINE.jsonl

Per question tokens/s is tokens over wall time; a task's is the mean over its questions, and its
speedup is the ratio of the two means. MAT is the mean of all accept lengths. As in the reference
implementation, only each question's first choice counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if not __package__:  # run as a script: make the repository root importable
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
from rich.table import Table
from rich.text import Text

from evaluation.command.exits import run_command
from evaluation.command.files import writing
from evaluation.command.parser import Parser
from evaluation.command.terminal import drawn
from evaluation.traces.comparing import (
    SpeedRow,
    TokenCount,
    Trace,
    check_same_questions,
    compare_speeds,
    leave_out,
    recorded_tokens,
    retokenized,
)
from evaluation.traces.sidecars import doubts
from model.logitspec.errors import InputError


def read_pair(path: Path, base_path: Path, *, strict: bool = False) -> tuple[Trace, Trace]:
    """A trace and its baseline, without the questions that one of them did not answer.

    Doubts whether they can be compared, and what was left out, are printed; `strict`: InputError
    for a doubt.
    """
    trace, base = Trace.read(path), Trace.read(base_path)
    left_out = leave_out([trace, base])
    check_same_questions(path, trace.records, base_path, base.records)
    against = doubts({str(path): trace.sidecar, str(base_path): base.sidecar})
    if against and strict:
        raise InputError(f"--strict: {against[0]}")
    for said in [*against, left_out]:
        if said:
            print(said, file=sys.stderr)
    return trace, base


def average(runs: Sequence[dict[str, SpeedRow]]) -> dict[str, SpeedRow]:
    """Rows over several runs: means, sample standard deviations as KEY_std, MAT over all steps."""
    rows: dict[str, SpeedRow] = {}
    for name in runs[0]:
        row: SpeedRow = {"questions": runs[0][name]["questions"]}
        row["steps"] = sum(run[name]["steps"] for run in runs)
        row["mat"] = sum(run[name]["mat"] * run[name]["steps"] for run in runs) / row["steps"]
        row["mat_std"] = float(np.std([run[name]["mat"] for run in runs], ddof=1))
        for key in ("tokens_per_second", "baseline_tokens_per_second", "speedup"):
            values = [run[name][key] for run in runs]
            row[key] = float(np.mean(values))
            row[f"{key}_std"] = float(np.std(values, ddof=1))
        rows[name] = row
    return rows


def show(rows: dict[str, SpeedRow], title: str) -> None:
    """The table on the terminal."""
    table = Table(title=Text(title), title_justify="left")
    for column in ("task", "questions", "MAT", "tokens/s", "baseline tokens/s", "speedup"):
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=True)
    for name, row in rows.items():
        if name == "overall":
            table.add_section()

        def cell(key: str, row: SpeedRow = row) -> str:
            spread = f" ± {row[f'{key}_std']:.2f}" if f"{key}_std" in row else ""
            return f"{row[key]:.2f}{spread}"

        numbers = map(cell, ("mat", "tokens_per_second", "baseline_tokens_per_second", "speedup"))
        table.add_row(Text(name), f"{row['questions']:.0f}", *numbers)
    print(drawn(table), end="")


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    if len(args.file_path) != len(args.base_path):
        raise InputError(
            f"--file-path has {len(args.file_path)} files, --base-path {len(args.base_path)}; "
            "give each trace its baseline, in the same order"
        )
    if args.mean_report != (len(args.file_path) > 1):
        raise InputError(
            f"{len(args.file_path)} trace(s) given; --mean-report takes two or more, "
            "without it there is one"
        )
    inputs = {path.resolve() for path in (*args.file_path, *args.base_path)}
    if args.json is not None and args.json.resolve() in inputs:
        raise InputError(f"--json {args.json} is one of the traces; choose another file")
    pairs = [
        read_pair(*paths, strict=args.strict)
        for paths in zip(args.file_path, args.base_path, strict=True)
    ]
    asked = [{record["question_id"] for record in trace.records} for trace, _ in pairs]
    if any(ids != asked[0] for ids in asked):
        raise InputError(
            "the runs given to --mean-report answer different questions; run those that lack some "
            "again"
        )
    count: TokenCount = recorded_tokens
    if args.tokenizer_path is not None:
        from evaluation.asking.target import load_tokenizer

        count = retokenized(load_tokenizer(args.tokenizer_path))
    runs = [compare_speeds(trace.records, base.records, count) for trace, base in pairs]
    if args.mean_report and any(run.keys() != runs[0].keys() for run in runs):
        raise InputError(
            "the runs given to --mean-report cover different tasks; give runs of one benchmark"
        )
    rows = average(runs) if args.mean_report else runs[0]
    names = [trace.records[0]["model_id"] for trace in pairs[0]]
    show(rows, f"{names[0]} against {names[1]}")
    if args.json is not None:
        with writing(args.json):
            args.json.write_text(json.dumps({"tasks": rows}, indent=2) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        "evaluation/speed.py", "Speedup and accept length of a method against a baseline."
    )
    add, switch = parser.add_argument, partial(parser.add_argument, action="store_true")
    add("--file-path", type=Path, nargs="+", required=True, help="trace of the method")
    add("--base-path", type=Path, nargs="+", required=True, help="trace of the baseline")
    add(
        "--tokenizer-path",
        help="count the baseline's tokens by encoding its texts with this checkpoint's tokenizer, "
        "as the reference implementation does (default: use the counts recorded in the trace)",
    )
    switch("--mean-report", help="mean and standard deviation over several runs: give several "
           "files to --file-path and as many to --base-path")  # fmt: skip
    switch("--strict", help="refuse traces that were made on different machines or with different "
           "models, settings or versions, instead of saying so")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the numbers to FILE as well")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
