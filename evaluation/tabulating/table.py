"""A table of numbers and the formats it is written in."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.table import Table as RichTable
from rich.text import Text

from ..command.terminal import drawn

LATEX = str.maketrans({
    "\\": r"\textbackslash ", "_": r"\_", "&": r"\&", "%": r"\%", "#": r"\#", "$": r"\$", "–": "--",
})  # fmt: skip


# Columns that are no race
UNRANKED = ("accuracy", "equal", "right", "cut", "difference", "mean_nodes", "draft_ms")


@dataclass
class Row:
    """A method's numbers by column; a missing one is a dash."""

    name: str
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # of some columns
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
        """A number as printed, two decimals unless it is a count; a dash where there is none."""
        if key not in row.values:
            return "–"
        value = row.values[key]
        text = str(value) if isinstance(value, int) else f"{value:.2f}"
        if key in row.intervals:
            low, high = row.intervals[key]
            text += f" [{low:.2f}, {high:.2f}]"
        return text

    def best(self, row: Row, key: str) -> bool:
        """Whether a column is ranked and no measured row is better in it, as printed."""
        own = [r.values[key] for r in self.rows if not r.source and key in r.values]
        ranked = self.ranked and key.partition(":")[0] not in UNRANKED
        ranked = ranked and not row.source and key in row.values and len(own) > 1
        return ranked and round(row.values[key], 2) == round(max(own), 2)

    def cells(self, row: Row) -> list[tuple[str, bool]]:
        """A row's numbers as printed, and whether each is the best of its column."""
        return [(self.cell(row, key), self.best(row, key)) for key in self.columns]


def to_terminal(table: Table) -> str:
    """For a terminal: rich, with bold for the best."""
    shown = RichTable(title=Text(table.title), title_justify="left")
    shown.add_column("method", no_wrap=True)
    for heading in table.columns.values():
        shown.add_column(heading, justify="right")
    for index, row in enumerate(table.rows):
        if row.source and not table.rows[index - 1].source:
            shown.add_section()
        cells = [Text(text, "bold" if best else "") for text, best in table.cells(row)]
        shown.add_row(Text(row.title), *cells)
    return drawn(shown, *(Text(note) for note in table.notes))


def to_markdown(table: Table) -> str:
    lines = [
        "| method | " + " | ".join(table.headings) + " |",
        "|---|" + "---:|" * len(table.columns),
    ]
    for row in table.rows:
        name = row.name if not row.source else f"{row.name} *({row.source})*"
        cells = [f"**{text}**" if best else text for text, best in table.cells(row)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (name, *cells)) + " |")
    return "\n".join([*lines, "", *(f"{note}  " for note in table.notes)]) + "\n"


def to_latex(table: Table) -> str:
    """A booktabs table; needs \\usepackage{booktabs}."""
    lines = [f"% {said}" for said in (table.title, *table.notes)]
    lines += [r"\begin{tabular}{l" + "r" * len(table.columns) + "}", r"\toprule"]
    headings = [heading.translate(LATEX) for heading in table.headings]
    lines += [" & ".join(("method", *headings)) + r" \\", r"\midrule"]
    for index, row in enumerate(table.rows):
        if row.source and not table.rows[index - 1].source:
            lines.append(r"\midrule")
        cells = [(text.translate(LATEX), best) for text, best in table.cells(row)]
        marked = [rf"\textbf{{{text}}}" if best else text for text, best in cells]
        lines.append(" & ".join([row.title.translate(LATEX), *marked]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def to_csv(table: Table) -> str:
    """All numbers in full, the intervals' ends in columns of their own."""
    out = io.StringIO()
    found = {key for row in table.rows for key in row.intervals}
    ends = [f"{key}_{end}" for key in table.columns if key in found for end in ("low", "high")]
    keys = ["method", "source", *table.columns, *ends]
    writer = csv.DictWriter(out, keys, restval="", lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        limits = {f"{key}_low": low for key, (low, _) in row.intervals.items()}
        limits |= {f"{key}_high": high for key, (_, high) in row.intervals.items()}
        writer.writerow({"method": row.name, "source": row.source, **row.values, **limits})
    return out.getvalue()


FORMATS: dict[str, Callable[[Table], str]] = {
    "terminal": to_terminal,
    "markdown": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
}
