"""docs/results.md holds the numbers of the CSV files that were written with it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from evaluation.tabulating.table import Row, Table, to_markdown

PAGE = Path(__file__).parents[2] / "docs" / "results.md"
FILES = sorted(PAGE.with_suffix("").glob("*.csv"))


def number(text: str) -> float:
    """A number, whole if it is written so."""
    return float(text) if "." in text or "e" in text else int(text)


def read_csv(path: Path) -> Table:
    """The table that to_csv() wrote, with its keys as headings."""
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for cells in csv.DictReader(file):
            name, source = cells.pop("method"), cells.pop("source")
            lows = [key for key in cells if key.endswith("_low")]
            ends = {key[:-4]: (cells.pop(key), cells.pop(f"{key[:-4]}_high")) for key in lows}
            intervals = {key: (float(low), float(high)) for key, (low, high) in ends.items() if low}
            values = {key: number(text) for key, text in cells.items() if text}
            rows.append(Row(name, values, intervals, source))
    return Table("", {key: key for key in cells}, rows, ranked=False)


def test_there_are_figures() -> None:
    assert {path.name for path in FILES} >= {"table.csv", "benches.csv", "temperatures.csv"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_page_shows_a_file(path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    lines = [line for line in to_markdown(read_csv(path)).splitlines() if line.startswith("| ")]
    shown = [line.replace("*", "") for line in text.splitlines() if line.startswith("| ")]
    wanted = [line.replace("*", "") for line in lines[1:]]
    starts = [at for at, line in enumerate(shown) if line == wanted[0]]
    assert any(shown[at : at + len(wanted)] == wanted for at in starts)
    assert f"({PAGE.stem}/{path.name})" in text
