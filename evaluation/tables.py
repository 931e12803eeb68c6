"""One table of several methods, from their traces: python -m evaluation.tables --help.

Speeds and MAT are those of speed.py. The interval is of the overall speedup: the bootstrap over
questions, method and baseline resampled together.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table as RichTable
from rich.text import Text

from model.logitspec.errors import InputError

from .command.exits import run_command
from .command.files import write_text
from .command.parser import Parser
from .command.terminal import drawn
from .traces.comparing import Comparison, Trace, check_comparable, failures, read_comparison
from .traces.published import PUBLISHED

RESAMPLES = 10_000
PUBLISHED_NOTE = "Published figures are their sources' own, on other machines and models."


@dataclass
class Row:
    """A method's numbers by column; a missing one is a dash."""

    name: str
    values: dict[str, float]
    interval: tuple[float, float] | None = None  # of the column "speedup"
    source: str = ""  # of figures that are not ours

    @property
    def title(self) -> str:
        return f"{self.name} ({self.source})" if self.source else self.name


@dataclass
class Table:
    """Rows of numbers under common columns, and how it is to be read."""

    title: str
    columns: dict[str, str]  # key -> heading
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def cell(self, row: Row, key: str) -> str:
        """A number as printed, two decimals; a dash where there is none."""
        if key not in row.values:
            return "–"
        text = f"{row.values[key]:.2f}"
        if key == "speedup" and row.interval is not None:
            text += f" [{row.interval[0]:.2f}, {row.interval[1]:.2f}]"
        return text

    def best(self, row: Row, key: str) -> bool:
        """Whether no measured row is better in a column, as printed."""
        own = [r.values[key] for r in self.rows if not r.source and key in r.values]
        return (
            not row.source
            and len(own) > 1
            and key in row.values
            and round(row.values[key], 2) == round(max(own), 2)
        )


def compare(comparison: Comparison, *, published: bool = False, task_mat: bool = False) -> Table:
    """The table of traces over one benchmark.

    Args:
        comparison: the traces.
        published: append the published figures there are for the benchmark.
        task_mat: the tasks' columns hold MAT instead of the speedup.

    Raises:
        InputError: published figures are wanted and there are none for this benchmark.
    """
    (main, baseline), *others = comparison.baselines.items()
    base = baseline.speeds()
    tasks = comparison.tasks if len(comparison.tasks) > 1 else []
    columns = {f"task:{task}": task for task in tasks}
    columns |= {"mat": "MAT", "tokens_per_second": "tokens/s", "speedup": "speedup [95 %]"}
    columns |= {f"over:{name}": f"over {name}" for name, _ in others}
    rows = []
    for trace in comparison.traces:
        speeds = trace.speeds()
        values = {
            f"task:{task}": trace.task_mat(task)
            if task_mat
            else float(trace.speeds(task).mean() / baseline.speeds(task).mean())
            for task in tasks
        }
        values["mat"] = trace.mat
        values["tokens_per_second"] = float(speeds.mean())
        values["speedup"] = float(speeds.mean() / base.mean())
        for name, other in others:
            values[f"over:{name}"] = float(speeds.mean() / other.speeds().mean())
        interval = None if trace is baseline else bootstrap_interval(speeds, base)
        rows.append(Row(trace.label, values, interval))
    title = f"{comparison.bench_name or 'Traces'}: speedup over {main}"
    notes = [
        f"{len(baseline.records)} questions"
        + (", their first turns only" if comparison.first_turns else "")
        + "; 95 % bootstrap interval over questions"
    ]
    if task_mat:
        notes.append("The tasks' columns are MAT.")
    notes += comparison.cautions()
    if published:
        rows += published_rows(comparison.bench_name, "speedup", "mat")
        notes.append(PUBLISHED_NOTE)
    return Table(title, columns, rows, notes)


@dataclass(frozen=True)
class Grouping:
    """What tells the groups of one table apart.

    Attributes:
        setting: in which groups differ.
        name: of it, in the title.
        heading: before a group's columns; {} is the setting's value.
        but: settings that may differ between groups.
    """

    setting: str
    name: str
    heading: str
    but: tuple[str, ...]


BENCHES = Grouping("bench_name", "benchmark", "{}", ("bench_name", "questions", "max_new_tokens"))
TEMPERATURES = Grouping("temperature", "temperature", "T={}", ("temperature",))


def compare_groups(
    comparisons: Sequence[Comparison], grouping: Grouping = BENCHES, *, published: bool = False
) -> Table:
    """The table of several groups of traces: a MAT and a speedup column each, a row per method.

    Args:
        comparisons: one per group.
        grouping: what they differ in.
        published: append the published figures there are for a group that is a benchmark.

    Raises:
        InputError: two groups are alike, or of different models, other settings or kinds of
            baseline.
    """
    values = [c.settings.get(grouping.setting) for c in comparisons]
    names = [grouping.heading.format(value) for value in values]
    if None in values or len(set(names)) < len(names):
        shown = ", ".join("''" if value is None else repr(value) for value in values)
        raise InputError(f"the {grouping.name}s {shown} are not one of each")
    first = comparisons[0].traces[0]
    main = next(iter(comparisons[0].baselines))
    for name, other in zip(names, comparisons, strict=True):
        check_comparable(first, other.traces[0], but=grouping.but)
        if next(iter(other.baselines)) != main:
            raise InputError(
                f"the baseline of {names[0]} is {main}, that of {name} is "
                f"{next(iter(other.baselines))}; give both one of a kind"
            )
    columns: dict[str, str] = {}
    rows: dict[str, Row] = {}
    others: dict[str, Row] = {}
    for name, comparison in zip(names, comparisons, strict=True):
        columns |= {f"mat:{name}": f"{name} MAT", f"speedup:{name}": f"{name} speedup"}
        base = comparison.main_baseline.speeds().mean()
        for trace in comparison.traces:
            row = rows.setdefault(trace.label, Row(trace.label, {}))
            row.values[f"mat:{name}"] = trace.mat
            row.values[f"speedup:{name}"] = float(trace.speeds().mean() / base)
        if published:
            for row in published_rows(name, f"speedup:{name}", f"mat:{name}"):
                known = others.setdefault(f"{row.name} {row.source}", row)
                known.values |= row.values
    notes = [caution for comparison in comparisons for caution in comparison.cautions()]
    if published:
        notes.append(PUBLISHED_NOTE)
    title = f"Speedup over {main}, by {grouping.name}"
    return Table(title, columns, [*rows.values(), *others.values()], notes)


def bootstrap_interval(
    speeds: npt.NDArray[np.float64], base: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """95 % percentile interval of mean(speeds) / mean(base), both [questions], paired."""
    chosen = np.random.default_rng(0).integers(len(speeds), size=(RESAMPLES, len(speeds)))
    ratios = speeds[chosen].mean(axis=1) / base[chosen].mean(axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)


def published_rows(bench_name: str | None, speedup: str, mat: str) -> list[Row]:
    """The published figures of a benchmark, under the given columns."""
    found = [p for p in PUBLISHED if p.bench_name == bench_name]
    if not found:
        known = ", ".join(sorted({p.bench_name for p in PUBLISHED}))
        raise InputError(
            f"no published figures for the bench {bench_name!r}; there are some for {known}"
        )
    return [
        Row(
            p.method,
            {key: v for key, v in ((speedup, p.speedup), (mat, p.mat)) if v is not None},
            source=f"published: {p.model}; {p.source}",
        )
        for p in found
    ]


def to_terminal(table: Table) -> str:
    """For a terminal: rich, with bold for the best."""
    shown = RichTable(title=Text(table.title), title_justify="left")
    shown.add_column("method", no_wrap=True)
    for heading in table.columns.values():
        shown.add_column(heading, justify="right")
    for index, row in enumerate(table.rows):
        cells = [
            Text(table.cell(row, key), style="bold" if table.best(row, key) else "")
            for key in table.columns
        ]
        ends = index + 1 < len(table.rows) and bool(row.source) != bool(
            table.rows[index + 1].source
        )
        shown.add_row(Text(row.title), *cells, end_section=ends)
    return drawn(shown, *(Text(note) for note in table.notes))


def to_markdown(table: Table) -> str:
    lines = [
        "| method | " + " | ".join(table.columns.values()) + " |",
        "|---|" + "---:|" * len(table.columns),
    ]
    for row in table.rows:
        cells = [
            f"**{table.cell(row, key)}**" if table.best(row, key) else table.cell(row, key)
            for key in table.columns
        ]
        name = row.name if not row.source else f"{row.name} *({row.source})*"
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (name, *cells)) + " |")
    return "\n".join([*lines, "", *(f"{note}  " for note in table.notes)]) + "\n"


def to_latex(table: Table) -> str:
    """A booktabs table; needs \\usepackage{booktabs}."""
    lines = [
        r"\begin{tabular}{l" + "r" * len(table.columns) + "}",
        r"\toprule",
        " & ".join(map(latex_text, ("method", *table.columns.values()))) + r" \\",
        r"\midrule",
    ]
    for index, row in enumerate(table.rows):
        if row.source and not table.rows[index - 1].source:
            lines.append(r"\midrule")
        cells = [
            rf"\textbf{{{latex_text(table.cell(row, key))}}}"
            if table.best(row, key)
            else latex_text(table.cell(row, key))
            for key in table.columns
        ]
        lines.append(" & ".join([latex_text(row.title), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join([f"% {table.title}", *(f"% {note}" for note in table.notes), *lines]) + "\n"


def latex_text(text: str) -> str:
    for plain, escaped in (
        ("\\", r"\textbackslash "), ("_", r"\_"), ("&", r"\&"), ("%", r"\%"), ("#", r"\#"),
        ("$", r"\$"), ("–", "--"),
    ):  # fmt: skip
        text = text.replace(plain, escaped)
    return text


def to_csv(table: Table) -> str:
    """All numbers in full, the interval's ends in columns of their own."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    interval = ["speedup_low", "speedup_high"] if "speedup" in table.columns else []
    writer.writerow(["method", "source", *table.columns, *interval])
    for row in table.rows:
        ends = ["", ""] if row.interval is None else [repr(end) for end in row.interval]
        numbers = [repr(row.values[key]) if key in row.values else "" for key in table.columns]
        writer.writerow([row.name, row.source, *numbers, *(ends if interval else [])])
    return out.getvalue()


FORMATS: dict[str, Callable[[Table], str]] = {
    "terminal": to_terminal,
    "markdown": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
}


def groups(paths: Sequence[Path], grouping: Grouping) -> list[list[Path]]:
    """Paths grouped by a setting in their sidecars, in the order given; numbers rising."""
    found: dict[Any, list[Path]] = {}
    for path in paths:
        found.setdefault(Trace.read(path).settings.get(grouping.setting), []).append(path)
    order = list(found)
    if all(isinstance(value, int | float) for value in order):
        order.sort()
    return [found[value] for value in order]


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    grouping = BENCHES if args.by_bench else TEMPERATURES if args.by_temperature else None
    if grouping is not None:
        if args.base_path is not None:
            raise InputError(
                f"--base-path {args.base_path} is one {grouping.name}'s; leave it out of a table "
                f"by {grouping.name}, which takes each one's own baseline"
            )
        if args.by_bench and args.by_temperature:
            raise InputError("--by-bench and --by-temperature are two tables; give one of them")
        if args.by_temperature and args.published:
            raise InputError("there are no published figures by temperature; leave out --published")
        reasons: dict[int | str, str] = {}
        if args.by_temperature:  # the same questions in every group
            reasons = failures({path: Trace.read(path).failed for path in args.traces})
        comparisons = [
            read_comparison(
                paths, first_turns=args.first_turns, strict=args.strict, without=reasons
            )
            for paths in groups(args.traces, grouping)
        ]
        table = compare_groups(comparisons, grouping, published=args.published)
    else:
        comparison = read_comparison(
            args.traces, args.base_path, first_turns=args.first_turns, strict=args.strict
        )
        table = compare(comparison, published=args.published, task_mat=args.task_mat)
    text = FORMATS[args.format](table)
    if args.output is None:
        print(text, end="")
        return
    if args.output.resolve() in {path.resolve() for path in args.traces}:
        raise InputError(f"--output {args.output} is one of the traces; choose another file")
    write_text(args.output, text)


def add_trace_flags(parser: Parser) -> None:
    """The traces, for the commands that compare them."""
    parser.add_argument("traces", type=Path, nargs="+", metavar="TRACE", help="one per method")
    parser.add_argument(
        "--base-path",
        type=Path,
        metavar="TRACE",
        help="the baseline (default: the trace made with the method baseline, else vanilla)",
    )
    parser.add_argument(
        "--first-turns", action="store_true", help="count only the first turn of each question"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse traces that were made on different machines or with different versions, "
        "instead of saying so",
    )


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m evaluation.tables", "A table of several methods from their traces.")
    add_trace_flags(parser)
    add = parser.add_argument
    add("--format", choices=FORMATS, default="terminal", help="of the table")
    add("--output", type=Path, metavar="FILE", help="write the table there instead of printing it")
    add(
        "--published",
        action="store_true",
        help="append published figures for the bench, each with its source",
    )
    add("--task-mat", action="store_true", help="each task's MAT instead of its speedup")
    add(
        "--by-bench",
        action="store_true",
        help="the traces are of several benches, each with a baseline: MAT and speedup for each",
    )
    add(
        "--by-temperature",
        action="store_true",
        help="the traces are of several temperatures, each with a baseline: MAT and speedup for "
        "each",
    )
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
