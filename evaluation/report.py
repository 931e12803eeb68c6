"""A report of several methods, from their traces: what was run on what, the tables, the pictures.

    python -m evaluation.report TRACE... --output FILE.md

Tables as LaTeX and CSV and the pictures go into a folder beside FILE.md, named like it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from model.logitspec.errors import InputError

from .command.exits import run_command
from .command.files import check_writable, read_notes, write_text, writing
from .command.parser import Parser
from .command.traces import add_picture_flags, add_trace_flags, read_traces
from .pictures.from_traces import PICTURES, draw_all
from .tabulating.by_sample import by_sample, count_samples
from .tabulating.columns import BENCHES, TEMPERATURES, compare, compare_groups, read_groups
from .tabulating.origin import describe, own_options
from .tabulating.phases import phases
from .tabulating.replayed import replayed
from .tabulating.table import Table, to_csv, to_latex, to_markdown
from .traces.comparing import Comparison, Trace


def read_benches(args: argparse.Namespace) -> list[Comparison]:
    """The comparisons of the benchmarks that the traces are of; the first is the page's own."""
    benches = {Trace.read(path).settings.get("bench_name") for path in args.traces}
    if len(benches - {None}) < 2:
        return [read_traces(args)]
    if args.base_path is not None:
        raise InputError(
            f"--base-path {args.base_path} is one benchmark's; leave it out of a report of "
            "several, which takes each one's own baseline"
        )
    return read_groups(args.traces, BENCHES, first_turns=args.first_turns, strict=args.strict)


def section(heading: str, name: str, table: Table, folder: Path) -> list[str]:
    """A table of the page with its heading; its numbers go into the folder as NAME.csv."""
    write_text(folder / f"{name}.csv", to_csv(table))
    return [f"## {heading}", "", to_markdown(table), f"[CSV]({folder.name}/{name}.csv)", ""]


def page(args: argparse.Namespace, notes: str, folder: Path) -> list[str]:
    """The lines of the report; its tables and pictures are written into the folder."""
    tables = {path.stem: replayed(path) for path in args.replayed or ()}
    if len(tables) < len(args.replayed or ()):
        raise InputError("--replayed has two files of one name; rename one, they name the tables")
    comparison, *others = benches = read_benches(args)
    warm = read_groups(
        args.temperatures or (), TEMPERATURES, first_turns=args.first_turns, strict=args.strict
    )
    table = compare(comparison, published=args.published)
    lines = [f"# {table.title}", ""]
    lines += ["Written by `python -m evaluation.report` from the traces of these runs.", ""]
    lines += [f"- {line}" for line in describe(comparison)]
    lines += ["", to_markdown(table)]
    write_text(folder / "table.tex", to_latex(table))
    write_text(folder / "table.csv", to_csv(table))
    lines += [f"[LaTeX]({folder.name}/table.tex), [CSV]({folder.name}/table.csv)", ""]
    options = [
        f"- {trace.label}: " + ", ".join(f"{key} {value}" for key, value in own.items())
        for trace in comparison.traces
        if (own := own_options(trace))
    ]
    if options:
        lines += ["Options:", "", *options, ""]
    lines += section("Time per step", "phases", phases(comparison), folder)
    if count_samples(comparison) > 1:
        lines += section("By sample", "samples", by_sample(comparison), folder)
    if others:
        lines += section("Other benchmarks", "benches", compare_groups(benches), folder)
    if warm:
        by_temperature = compare_groups(warm, TEMPERATURES)
        lines += section("At a temperature", "temperatures", by_temperature, folder)
    for name, of_replay in tables.items():
        lines += section(f"{name}, replayed", f"replayed-{name}", of_replay, folder)
    lines += [notes] if notes else []
    for name in draw_all(comparison, folder, kind=args.format, question=args.question):
        heading = PICTURES[name][1].rstrip(".")
        lines += [f"## {heading}", "", f"![{name}]({folder.name}/{name}.{args.format})", ""]
    return lines


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    if args.output.suffix != ".md":
        raise InputError(f"--output {args.output} is no .md file; give FILE.md")
    notes = read_notes(args.notes, args.output)
    with writing(args.output):
        args.output.parent.mkdir(parents=True, exist_ok=True)
    check_writable(args.output)
    folder = args.output.with_suffix("")
    write_text(args.output, "\n".join(page(args, notes, folder)).rstrip() + "\n")
    print(f"report: {args.output}; tables and pictures: {folder}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m evaluation.report", "A report of several methods: tables, pictures, settings."
    )
    add_trace_flags(parser)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE.md", help="where the report goes")
    add("--notes", type=Path, metavar="FILE.md", help="Markdown to put below the tables")
    add("--published", action="store_true", help="append published figures for the bench")
    several = "traces of several temperatures, each with a baseline, for a table of their own"
    add("--temperatures", type=Path, nargs="+", metavar="TRACE", help=several)
    tables = "what evaluation.replay --csv wrote, for a table each"
    add("--replayed", type=Path, nargs="+", metavar="CSV", help=tables)
    add_picture_flags(parser)
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: report(args))


if __name__ == "__main__":
    raise SystemExit(main())
