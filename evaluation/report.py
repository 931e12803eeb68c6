"""A report of several methods, from their traces: what was run on what, the table, the pictures.

    python -m evaluation.report TRACE... --output FILE.md

Tables as LaTeX and CSV and the pictures go into a folder beside FILE.md, named like it.
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime, timezone
from pathlib import Path

from model.logitspec.errors import InputError

from .command.exits import run_command
from .command.files import check_writable, write_text
from .command.parser import Parser
from .plots import PICTURES, add_picture_flags, draw_all
from .tables import add_trace_flags, compare, to_csv, to_latex, to_markdown
from .traces.comparing import Comparison, read_comparison
from .traces.sidecars import COMMON

SHOWN = ("model", "dtype", "template", "max_new_tokens", "temperature")


def describe(comparison: Comparison) -> list[str]:
    """What was run, on what, when: lines of a Markdown list."""
    first = comparison.traces[0]
    stamps = [r["tstamp"] for t in comparison.traces for r in t.records if "tstamp" in r]
    lines = [f"{len(first.records)} questions of {comparison.bench_name or 'a benchmark'}"]
    known = comparison.settings
    lines += [f"{key.replace('_', ' ')}: {known[key]}" for key in SHOWN if known]
    if stamps:
        days = sorted({datetime.fromtimestamp(s, timezone.utc).date() for s in stamps})
        lines.append(f"date: {' to '.join(str(day) for day in dict.fromkeys((days[0], days[-1])))}")
    seen: list[str] = []
    for trace in comparison.traces:
        for environment in trace.sidecar.environments:
            versions = ", ".join(f"{k} {v}" for k, v in environment["versions"].items())
            said = (
                f"machine: {', '.join(environment['device_names'])}, "
                + (f"{environment['instruction_set']}, " if environment["instruction_set"] else "")
                + f"{environment['threads']} threads, {environment['platform']}; {versions}"
            )
            if environment["commit"] is not None:  # no git, no commit
                changed = " with uncommitted changes" if environment["uncommitted_changes"] else ""
                said += f"; commit {environment['commit'][:12]}{changed}"
            if said not in seen:
                seen.append(said)
    return [*lines, *seen]


def method_settings(comparison: Comparison) -> list[str]:
    """The methods' own options: lines of a Markdown list."""
    lines = []
    for trace in comparison.traces:
        skipped = {*COMMON, "method", "model_id", "num_choices", "seed"}
        own = {key: value for key, value in trace.settings.items() if key not in skipped}
        if own:
            lines.append(f"{trace.label}: " + ", ".join(f"{k} {v}" for k, v in own.items()))
    return lines


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    if args.output.suffix != ".md":
        raise InputError(f"--output {args.output} is no .md file; give FILE.md")
    notes = ""
    if args.notes is not None:
        if args.notes.resolve() == args.output.resolve():
            raise InputError(f"--notes {args.notes} is the --output; choose another")
        try:
            notes = args.notes.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the notes {args.notes}: {error}") from error
    try:
        args.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write {args.output}: {error.strerror}; choose another file"
        ) from error
    check_writable(args.output)
    comparison = read_comparison(
        args.traces, args.base_path, first_turns=args.first_turns, strict=args.strict
    )
    table = compare(comparison, published=args.published)
    folder = args.output.with_suffix("")
    write_text(folder / "table.tex", to_latex(table))
    write_text(folder / "table.csv", to_csv(table))
    names = draw_all(comparison, folder, args)
    lines = [f"# {table.title}", ""]
    lines += ["Written by `python -m evaluation.report` from the traces of these runs.", ""]
    lines += [f"- {line}" for line in describe(comparison)]
    lines += ["", to_markdown(table)]
    lines += [f"[LaTeX]({folder.name}/table.tex), [CSV]({folder.name}/table.csv)", ""]
    options = method_settings(comparison)
    if options:
        lines += ["Options:", "", *(f"- {line}" for line in options), ""]
    if notes:
        lines += [notes]
    for name in names:
        lines += [
            f"## {PICTURES[name][1].rstrip('.')}",
            "",
            f"![{name}]({folder.name}/{name}.png)",
            "",
        ]
    write_text(args.output, "\n".join(lines).rstrip() + "\n")
    print(f"report: {args.output}; tables and pictures: {folder}")


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        "python -m evaluation.report", "A report of several methods: table, pictures, settings."
    )
    add_trace_flags(parser)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE.md", help="where the report goes")
    add("--notes", type=Path, metavar="FILE.md", help="Markdown to put below the table")
    add("--published", action="store_true", help="append published figures for the bench")
    add_picture_flags(parser)
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
