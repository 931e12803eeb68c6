"""Pictures of a sweep: what replay.py --plot draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .style import looks, new_figure, save_figure

MEASURES = {"mat": "MAT", "speedup": "predicted speedup"}
Row = Mapping[str, Any]
MOST_BARS, MOST_MAPS = 100, 12  # that a picture can hold


def draw(rows: Sequence[Row], varied: Sequence[str], path: Path) -> None:
    """Draw MAT and predicted speedup of a sweep's rows (replay.csv_row).

    One varied option of numbers makes lines over it, a line for each method; two or more make heat
    maps of one method, one for each combination of the third and further ones; none makes bars.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    keys = [key for key in varied if len({row.get(key) for row in rows if key in row}) > 1]
    maps = math.prod(len({row.get(key) for row in rows}) for key in keys[2:])
    if len(keys) >= 2 and len(methods) == 1 and maps <= MOST_MAPS:
        draw_maps(rows, keys, path)
    elif len(keys) == 1:
        draw_lines(rows, methods, keys[0], path)
    else:
        draw_bars(rows, path)


def draw_lines(rows: Sequence[Row], methods: Sequence[str], key: str, path: Path) -> None:
    figure = new_figure(9.6, 4.0)
    look = looks({method: method.rpartition(":")[2] for method in methods})
    for axes, (measure, label) in zip(figure.subplots(1, 2), MEASURES.items(), strict=True):
        for index, method in enumerate(methods):
            own = [row for row in rows if row["method"] == method]
            if len(own) > 1:
                values = [str(row[key]) for row in own]
                axes.plot(values, [row[measure] for row in own], label=method,
                          **look[method].line())  # fmt: skip
            else:
                axes.axhline(own[0][measure], label=method, color="black", linewidth=0.8,
                             linestyle=("--", ":", "-.")[index % 3])  # fmt: skip
        axes.set_xlabel(key)
        axes.set_ylabel(label)
    figure.axes[0].legend(frameon=False)
    save_figure(figure, path)


def draw_maps(rows: Sequence[Row], keys: Sequence[str], path: Path) -> None:
    down, across, *rest = keys
    facets = list(dict.fromkeys(tuple(row[key] for key in rest) for row in rows))
    figure = new_figure(max(6.0, 3.0 * len(facets)), 6.0)
    grid = figure.subplots(len(MEASURES), len(facets), squeeze=False)
    for line, (measure, label) in zip(grid, MEASURES.items(), strict=True):
        values = [row[measure] for row in rows]
        for axes, facet in zip(line, facets, strict=True):
            own = [row for row in rows if tuple(row[key] for key in rest) == facet]
            ys, xs = (list(dict.fromkeys(row[key] for row in own)) for key in (down, across))
            table = [[float("nan")] * len(xs) for _ in ys]
            for row in own:
                table[ys.index(row[down])][xs.index(row[across])] = row[measure]
            axes.imshow(table, vmin=min(values), vmax=max(values), cmap="viridis", aspect="auto")
            middle = (min(values) + max(values)) / 2
            for y, cells in enumerate(table):
                for x, cell in enumerate(cells):
                    colour = "white" if cell < middle else "black"
                    axes.text(x, y, f"{cell:.2f}", ha="center", va="center", color=colour)
            axes.set_xticks(range(len(xs)), [str(x) for x in xs])
            axes.set_yticks(range(len(ys)), [str(y) for y in ys])
            axes.set_xlabel(across)
            axes.set_ylabel(down)
            where = ", ".join(f"{key}={value}" for key, value in zip(rest, facet, strict=True))
            axes.set_title("\n".join(part for part in (label, where) if part), fontsize=9)
    save_figure(figure, path)


def draw_bars(rows: Sequence[Row], path: Path) -> None:
    figure = new_figure(9.6, max(2.5, 0.35 * min(len(rows), MOST_BARS) + 1))
    if len(rows) > MOST_BARS:
        rows = sorted(rows, key=lambda row: -float(row["speedup"]))[:MOST_BARS]
        figure.suptitle(f"the {MOST_BARS} fastest", fontsize=9)
    names = [row["title"] for row in rows]
    for axes, (measure, label) in zip(figure.subplots(1, 2), MEASURES.items(), strict=True):
        bars = axes.barh(names, [row[measure] for row in rows], color="0.6", edgecolor="black")
        axes.bar_label(bars, fmt="%.2f", padding=2)
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.margins(x=0.15)
    figure.axes[1].set_yticks([])
    save_figure(figure, path)
