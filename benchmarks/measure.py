"""What the benchmarks share: flags, tables that grow, results kept on disk, lines of a picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.command.exits import run_command
from evaluation.command.files import write_atomically, writing
from evaluation.command.flags import add_slice_flags
from evaluation.command.parser import Parser, at_least, picture, plain_name
from evaluation.pictures.style import line_style, require_matplotlib
from evaluation.traces.environment import describe_environment
from model.logitspec.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

MODEL = "checkpoints/smollm2-135m-instruct"
SPREAD = "{median:.2f} [{low:.2f}, {high:.2f}]"  # a table's cell of quartiles
MODEL_KINDS = "checkpoint: a local directory, a hub id or a GGUF file"
AS_THERE = "as in the inference scripts"
INTERRUPTED = "interrupted; what was measured is above, and in the file of --json if one was given"
Command = Callable[[argparse.Namespace], None]
Figures = dict[str, Any]
Columns = Mapping[str, tuple[int, str]]  # heading -> characters, a cell as a format of its row


def quartiles(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Lower quartile, median and upper quartile of some values (one or more), times `scale`."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)) * scale
    return {"low": float(low), "median": float(median), "high": float(high)}


def grouped(rows: Sequence[Figures], label: str) -> dict[str, list[Figures]]:
    """Rows by their label, a format of a row."""
    groups: dict[str, list[Figures]] = {}
    for row in rows:
        groups.setdefault(label.format_map(row), []).append(row)
    return groups


class Missing:
    """A figure that the system does not tell: a dash, however it is formatted."""

    def __format__(self, _: str) -> str:
        return "-"


def fill(text: str, row: Figures) -> str:
    """A format with a row's figures in it."""
    return text.format_map({k: Missing() if v is None else v for k, v in row.items()})


def cells(columns: Columns, row: Figures) -> list[str]:
    return [fill(text, row) for _, text in columns.values()]


def jsonable(value: Any) -> Any:
    """A flag's value as JSON can hold it."""
    if isinstance(value, list):
        return [jsonable(each) for each in value]
    return str(value) if isinstance(value, Path) else value


class Results:
    """Settings, environment and rows; in the file of --json, if one is given, after every row.

    Args:
        args: of the command.
        device: that is measured.
        resume: go on with a file that the same command began in the same environment.

    Raises:
        InputError: the file is there or cannot be written; said before anything is measured.
    """

    def __init__(self, args: argparse.Namespace, device: str, *, resume: bool = False) -> None:
        flags = {k: jsonable(v) for k, v in vars(args).items()}
        self.content: Figures = {"settings": flags, "environment": describe_environment(device)}
        self._path: Path | None = args.json
        if self._path is not None and self._path.exists():
            if not resume:
                raise InputError(
                    f"--json {self._path} is there already; move it away or give another"
                )
            self._take_up(self._path)
        self._write()

    def _take_up(self, path: Path) -> None:
        """Go on with what a file holds."""
        try:
            there = {**json.loads(path.read_text(encoding="utf-8"))}
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"--json {path} holds no results; move it away") from error
        for name, own in self.content.items():
            if there.get(name) != own:
                raise InputError(
                    f"--json {path} was begun with other {name}; move it away or give another"
                )
        self.content = there

    def put(self, section: str, rows: Sequence[Figures]) -> None:
        """Have a section hold these rows, whatever it held."""
        self.content[section] = list(rows)
        self._write()

    def add(self, section: str, row: Figures) -> None:
        self.content.setdefault(section, []).append(row)
        self._write()

    def table(self, section: str, title: str, columns: Columns) -> PrintedTable:
        """Print the title and the headings of a table whose rows become a section."""
        return PrintedTable(title, columns, partial(self.add, section))

    def _write(self) -> None:
        if self._path is not None:
            with writing(self._path, "give --json another file"):
                write_atomically(self._path, self.content)


class PrintedTable:
    """A table printed row by row, so that an interrupted run has shown what it measured.

    The first column is left-aligned, the others right.
    """

    def __init__(
        self, title: str, columns: Columns, keep: Callable[[Figures], None] | None = None
    ) -> None:
        self._columns = columns
        self._keep = keep
        print(f"\n{title}")
        self._print(columns)

    def add(self, row: Figures, **shown: object) -> None:
        """Keep and print a row; `shown` is printed only."""
        if self._keep is not None:
            self._keep(row)
        self._print(cells(self._columns, {**row, **shown}))

    def _print(self, texts: Iterable[str]) -> None:
        widths = [width for width, _ in self._columns.values()]
        first, *rest = zip(texts, widths, strict=True)
        line = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)]
        print("  ".join(line).rstrip(), flush=True)


def growth(rows: Sequence[Figures], x: str = "first", y: str = "median") -> float | None:
    """What y grows by while x grows by 1000: a least-squares line. None for fewer than two rows."""
    if len(rows) < 2:
        return None
    slope, _ = np.polyfit([row[x] for row in rows], [row[y] for row in rows], 1)
    return 1e3 * float(slope)


def lines(
    axes: Axes, rows: Sequence[Figures], label: str, x: str, y: str = "median"
) -> list[tuple[Line2D, list[Figures]]]:
    """Draw a line for the rows of each label, a format; the lines with their rows."""
    groups = grouped(rows, label)
    drawn = []
    for index, (name, own) in enumerate(groups.items()):
        style = line_style(index, len(groups))
        (line,) = axes.plot([r[x] for r in own], [r[y] for r in own], label=name, **style)
        drawn.append((line, own))
    return drawn


def run_benchmark(
    parser: Parser, argv: Sequence[str] | None, work: Command, *, plot: bool = False
) -> int:
    """Add --json (and --plot), parse the flags and do the work; the exit status."""
    add = parser.add_argument
    add("--json", type=Path, metavar="FILE", help="all figures, kept up after every row")
    if plot:
        add("--plot", type=picture, metavar="FILE.png", help="draw them; needs the extra `plots`")
    args = parser.parse_args(argv)

    def run() -> None:
        if plot and args.plot is not None:
            require_matplotlib()  # now, not after the measurements
        work(args)

    return run_command(parser.prog, run, INTERRUPTED)


def add_model_flags(parser: Parser, *, several_kernels: bool = False) -> None:
    """The model and what it runs on, all but its dtype."""
    parser.add_argument("--model-path", default=MODEL, help=MODEL_KINDS)
    for flag in ("--device", "--cuda-graphs"):
        parser.add_argument(flag, default="auto", help=AS_THERE)
    if several_kernels:
        text = f"one or more, {AS_THERE}; they take turns"
        parser.add_argument("--cpu-kernels", nargs="+", default=["auto"], help=text)
    else:
        parser.add_argument("--cpu-kernels", default="auto", help=AS_THERE)


def add_question_flags(parser: Parser, *, bench_name: str = "spec_bench", stride: int = 1) -> None:
    """What is asked of which model, as in the inference scripts, with a benchmark's defaults."""
    add = parser.add_argument
    add("--model-path", default=MODEL, help=MODEL_KINDS)
    add("--bench-name", default=bench_name, type=plain_name, help="data/NAME/question.jsonl")
    add_slice_flags(parser, stride)
    add("--max-new-tokens", type=at_least(1), default=128, help="most tokens per answer")
    add("--conv-template", metavar="NAME", help=AS_THERE)
    parser.set_defaults(cap_new_tokens=True, num_choices=1, seed=0)
