"""A table of numbers and the formats it is written in."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.table import Table as RichTable
from rich.text import Text

from ..command.terminal import drawn


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
    columns: dict[str, str]  # key -> heading; a terminal breaks it where it has newlines
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
    ranked: bool = True  # whether more is better, so that the best of a column is marked

    @property
    def headings(self) -> list[str]:
        """The columns' headings, each in one line."""
        return [heading.replace("\n", " ") for heading in self.columns.values()]

    def cell(self, row: Row, key: str) -> str:
        """A number as printed, two decimals; a dash where there is none."""
        if key not in row.values:
            return "–"
        text = f"{row.values[key]:.2f}"
        if key == "speedup" and row.interval is not None:
            text += f" [{row.interval[0]:.2f}, {row.interval[1]:.2f}]"
        return text

    def best(self, row: Row, key: str) -> bool:
        """Whether a column is ranked and no measured row is better in it, as printed."""
        own = [r.values[key] for r in self.rows if not r.source and key in r.values]
        return (
            self.ranked
            and not row.source
            and len(own) > 1
            and key in row.values
            and round(row.values[key], 2) == round(max(own), 2)
        )


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
        "| method | " + " | ".join(table.headings) + " |",
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
        " & ".join(map(latex_text, ("method", *table.headings))) + r" \\",
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
