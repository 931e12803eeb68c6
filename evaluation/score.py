"""Are the answers right?  python -m evaluation.score TRACE...

Accuracy of each trace with its 95 % interval, and, beside a baseline, how much the method changes
it and how many answers are the baseline's. Traces may differ in their dtype or model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from model.logitspec.errors import InputError

from .command.exits import run_command
from .command.files import check_writable, write_text
from .command.parser import Parser
from .scoring.accuracy import accuracy, difference, equal_answers, mark
from .scoring.judging import NOT_INSTALLED, can_judge_mathematics
from .scoring.keys import Keys, asked_questions, read_keys
from .tabulating.table import FORMATS, Row, Table
from .traces.comparing import BASELINES, Trace, check_same_questions, leave_out, tell_apart


def checked_keys(trace: Trace, *, run_code: bool) -> Keys:
    """The keys of the questions that a trace answers; InputError if answers cannot be checked."""
    bench, asked = trace.settings.get("bench_name"), {r["question_id"] for r in trace.records}
    questions = asked_questions(trace.settings, trace.path)
    keys = {name: k for name, k in read_keys(questions).items() if name in asked}
    if not keys:
        raise InputError(
            f"no answer is known of the {len(asked)} questions in {trace.path}: question.jsonl of "
            f"{bench} has none, nor is there an answers.jsonl beside it; `python -m data.prepare "
            "NAME` gets the answers of the sets that have some"
        )
    programs = any(key.test for key in keys.values())
    if programs and not run_code:
        raise InputError(
            f"{bench} is scored by running the programs that the model wrote; --run-code does so, "
            "with limits on time and memory but in no sandbox"
        )
    if not programs and not can_judge_mathematics():
        raise InputError(NOT_INSTALLED)
    return keys


def cut_answers(trace: Trace) -> int:
    """How many answers ended because there were no tokens left."""
    most = trace.settings.get("max_new_tokens")
    return sum(isinstance(most, int) and c["new_tokens"][-1] >= most for c in trace.choices)


def table(traces: Sequence[Trace], base: Path | None, *, run_code: bool) -> Table:
    """The table of one benchmark's traces; InputError if they answer different questions."""
    left_out = leave_out(traces)
    for trace in traces[1:]:
        check_same_questions(traces[0].path, traces[0].records, trace.path, trace.records)
        asked_questions(trace.settings, trace.path)
    keys = checked_keys(traces[0], run_code=run_code)
    tell_apart(traces)
    baselines = [t for method in BASELINES for t in traces if t.method == method]
    if base is not None:
        baselines = [t for t in traces if t.path.resolve() == base.resolve()] or baselines
    baseline = baselines[0] if baselines else None
    marks = {trace.label: mark(trace, keys) for trace in traces}
    rows = []
    for trace in traces:
        row = Row(trace.label, {"right": sum(marks[trace.label]), "cut": cut_answers(trace)})
        row.values["accuracy"], row.intervals["accuracy"] = accuracy(marks[trace.label])
        if baseline is not None and trace is not baseline:
            row.values["difference"], row.intervals["difference"] = difference(
                marks[trace.label], marks[baseline.label]
            )
            row.values["equal"] = equal_answers(trace, baseline)
        rows.append(row)
    columns = {"accuracy": "accuracy % [95 %]", "right": "right", "cut": "cut off"}
    if baseline is not None and len(traces) > 1:
        columns |= {"difference": f"over {baseline.label} [95 %]", "equal": "equal answers"}
    count = len(traces[0].records)
    of = f", {len(keys)} of them with an answer to check" if len(keys) < count else ""
    notes = [
        f"{count} questions{of}; 95 % intervals: Wilson's, and Agresti and Min's for pairs; "
        "cut off: answers with as many new tokens as were allowed",
        *([left_out] if left_out else []),
    ]
    return Table(f"{traces[0].settings['bench_name']}: accuracy", columns, rows, notes)


def score(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    places = [path.resolve() for path in args.traces]
    if len(set(places)) < len(places):
        raise InputError("one trace is given twice; name each once")
    if args.output is not None and args.output.resolve() in places:
        raise InputError(f"--output {args.output} is one of the traces; choose another file")
    if args.base_path is not None and args.base_path.resolve() not in places:
        raise InputError(f"--base-path {args.base_path} is none of the traces; add it to them")
    if args.output is not None:
        check_writable(args.output)
    benches: dict[str, list[Trace]] = {}
    for path in args.traces:
        trace = Trace.read(path)
        benches.setdefault(str(trace.settings.get("bench_name")), []).append(trace)
    tables = [table(traces, args.base_path, run_code=args.run_code) for traces in benches.values()]
    text = "\n".join(FORMATS[args.format](each) for each in tables)
    if args.output is None:
        print(text, end="")
    else:
        write_text(args.output, text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m evaluation.score", "Are the answers of traces right, and how often?")
    add = parser.add_argument
    add("traces", type=Path, nargs="+", metavar="TRACE", help="of one benchmark or several")
    base = "the baseline (default: the trace made with the method baseline, else vanilla)"
    add("--base-path", type=Path, metavar="TRACE", help=base)
    code = "run the programs that the model wrote, to score humaneval; limited, but in no sandbox"
    add("--run-code", action="store_true", help=code)
    add("--format", choices=FORMATS, default="terminal", help="of the table")
    add("--output", type=Path, metavar="FILE", help="write the table there instead of printing it")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: score(args))


if __name__ == "__main__":
    raise SystemExit(main())
