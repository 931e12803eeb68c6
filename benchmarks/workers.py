"""Throughput of several workers against one process: python -m benchmarks.workers --help.

Both have all cores: one process with as many threads, or workers that share them. They take turns,
and what counts is from a run's first finished question to its last, without loading.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.command.files import ROOT
from evaluation.command.parser import Parser, at_least
from evaluation.traces.reading import Record, read_trace
from model.logitspec.errors import InputError

from .measure import Results, add_question_flags, run_benchmark

COLUMNS = {
    "round": (5, "{round}"),
    "one process": (12, "{one:.1f}"),
    "workers": (12, "{workers:.1f}"),
    "ratio": (6, "{ratio:.2f}"),
}


def throughput(records: Sequence[Record], after: int) -> float:
    """Tokens per second of wall time, from the answers under way together at first to the last."""
    tokens = sum(sum(record["choices"][0]["new_tokens"]) for record in records[after:])
    return float(tokens / (records[-1]["tstamp"] - records[after - 1]["tstamp"]))


def run_once(args: argparse.Namespace, trace: Path, workers: int) -> float:
    """Answer the questions with so many workers; tokens per second."""
    command = [
        sys.executable, "-m", "evaluation.run", "--methods", args.method, "--model-path",
        args.model_path, "--model-id", trace.name, "--bench-name", args.bench_name,
        "--max-new-tokens", str(args.max_new_tokens), "--cap-new-tokens", "--device", "cpu",
        "--question-stride", str(args.question_stride), "--answer-dir", str(trace),
        "--num-workers", str(workers), "--dtype", args.dtype,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise InputError(f"the run with {workers} worker(s) failed: {said[-1] if said else ''}")
    (path,) = trace.glob("*.jsonl")
    return throughput(read_trace(path), workers)


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    results = Results(args, "cpu")
    table = results.table(
        "rounds",
        f"{args.method} on {args.bench_name}: tokens/s of one process and of {args.workers} "
        "workers, on the same cores",
        COLUMNS,
    )
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(1, args.rounds + 1):
            counts = [1, args.workers][:: 1 if number % 2 else -1]
            found = {n: run_once(args, Path(folder, f"{number}-{n}"), n) for n in counts}
            row = {"one": found[1], "workers": found[args.workers]}
            row["ratio"] = row["workers"] / row["one"]
            ratios.append(row["ratio"])
            table.add(row, round=number)
    print(f"median ratio of {args.rounds} rounds: {np.median(ratios):.2f}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m benchmarks.workers", "Throughput of workers against one process, on a CPU."
    )
    add_question_flags(parser, bench_name="quick")
    add = parser.add_argument
    add("--method", default="vanilla", metavar="NAME", help="of evaluation.run")
    add("--dtype", default="auto", help="as in the inference scripts")
    add("--workers", type=at_least(2), default=2, help="that share the cores")
    add("--rounds", type=at_least(1), default=3, help="of both, in turn")
    return run_benchmark(parser, argv, report)


if __name__ == "__main__":
    sys.exit(main())
