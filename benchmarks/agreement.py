"""What a device or a dtype does to answers: python -m benchmarks.agreement --help.

Traces of some methods are laid beside traces of the same methods and questions made otherwise, as
in float32 on the CPU: how many turns are the same, where the others part, and what became of the
accept lengths.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.command.parser import Parser
from evaluation.equal import first_difference, turns
from evaluation.traces.comparing import Trace, check_comparable
from model.logitspec.errors import InputError

from .measure import Columns, Figures, Results, run_benchmark

COLUMNS: Columns = {
    "method": (20, "{method}"),
    "device": (20, "{device}"),
    "dtype": (9, "{dtype}"),
    "turns": (6, "{turns}"),
    "equal": (6, "{equal}"),
    "parts after": (11, "{parts:.0f}"),
    "same accept lengths": (19, "{same_lengths}"),
    "MAT": (5, "{mat:.3f}"),
    "MAT there": (9, "{reference_mat:.3f}"),
    "tokens/s": (9, "{speed:.1f}"),
}
MADE_OTHERWISE = ("dtype", "device", "kernels", "cuda_graphs")


def compare(trace: Trace, reference: Trace) -> Figures:
    """A row of COLUMNS; InputError if the traces answer different questions."""
    check_comparable(reference, trace, but=MADE_OTHERWISE)
    ours, theirs = turns(trace), turns(reference)
    if ours.keys() != theirs.keys():
        raise InputError(f"{trace.path} and {reference.path} do not answer the same turns")
    found = {key: first_difference(turn.ids, theirs[key].ids) for key, turn in ours.items()}
    parted = [at for at in found.values() if at is not None]
    lengths, other_lengths = (
        {record["question_id"]: record["choices"][0]["accept_lengths"] for record in t.records}
        for t in (trace, reference)
    )
    return {
        "method": trace.label,
        "device": place(trace),
        "dtype": trace.settings["dtype"],
        "turns": len(found),
        "equal": len(found) - len(parted),
        "parts": float(np.median(parted)) if parted else None,
        "questions": len(lengths),
        "same_lengths": sum(lengths[key] == other_lengths[key] for key in lengths),
        "mat": trace.mat,
        "reference_mat": reference.mat,
        "speed": float(np.mean(trace.speeds())),
    }


def read(path: str) -> Trace:
    """A trace that says how it was made."""
    trace = Trace.read(Path(path))
    if trace.method is None:
        raise InputError(f"{path} has no sidecar that names its method; give another")
    return trace


def place(trace: Trace) -> str:
    """The devices that a trace was made on."""
    names = [name for made in trace.sidecar.environments for name in made["device_names"]]
    return ", ".join(dict.fromkeys(names))


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    references: dict[Any, Trace] = {}
    for trace in map(read, args.reference):
        if references.setdefault(trace.method, trace) is not trace:
            raise InputError(f"--reference has two traces of {trace.method}; give one of a method")
    first = next(iter(references.values()))
    for trace in references.values():
        check_comparable(first, trace)
        if place(trace) != place(first):
            raise InputError(
                f"{first.path} was made on {place(first)}, {trace.path} on {place(trace)}; give "
                "references of one device"
            )
    traces = [read(path) for path in args.traces]
    for trace in traces:
        if trace.method not in references:
            raise InputError(
                f"--reference has no trace of {trace.method}, which {trace.path} is of; add one"
            )
    results = Results(args, "cpu")
    results.content["environments"] = [
        environment for trace in traces for environment in trace.sidecar.environments
    ]
    made = {key: first.settings[key] for key in ("bench_name", "model", "dtype")}
    results.content["reference"] = {**made, "device": place(first)}
    shown = results.table(
        "traces",
        f"{made['bench_name']}, {made['model']}: beside the same methods in {made['dtype']} on "
        f"{place(first)}",
        COLUMNS,
    )
    for trace in traces:
        shown.add(compare(trace, references[trace.method]))


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.agreement", "Answers beside those of another device.")
    add = parser.add_argument
    many: dict[str, Any] = {"nargs": "+", "metavar": "TRACE"}
    add("traces", **many, help="what is looked at")
    add("--reference", required=True, **many, help="of the same methods, one of each")
    return run_benchmark(parser, argv, report)


if __name__ == "__main__":
    sys.exit(main())
