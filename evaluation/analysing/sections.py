"""A section of the page of analyses: text, a table that is written as CSV too, a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..command.files import write_text
from ..pictures.style import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Section:
    """One analysis."""

    name: str  # of its files
    heading: str
    text: str
    columns: Sequence[str]  # the first names the rows
    rows: Sequence[Sequence[object]]
    figure: Figure | None = None

    def write(self, folder: Path) -> str:
        """The section as Markdown; its table and its picture go into the folder."""
        write_text(folder / f"{self.name}.csv", self._csv())
        parts = [f"## {self.heading}", self.text, self._markdown()]
        link = f"[CSV]({folder.name}/{self.name}.csv)"
        if self.figure is not None:
            save_figure(self.figure, folder / f"{self.name}.png")
            parts.append(f"![{self.name}]({folder.name}/{self.name}.png)")
        return "\n\n".join([*parts, link])

    def _markdown(self) -> str:
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)

    def _csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.columns, *self.rows])
        return out.getvalue()
