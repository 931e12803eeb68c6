"""Sweep drafters over a recording, without the model: python -m evaluation.replay --help."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from tqdm import tqdm

from .asking.methods import METHODS, DrafterMethod
from .command.exits import run_command
from .command.files import check_writable, writing
from .command.flags import read
from .command.parser import Parser, at_least, picture
from .command.terminal import drawn
from .pictures.style import require_matplotlib
from .recordings.format import Recording
from .recordings.live import compare_live, pair_with_live
from .recordings.replaying import VANILLA, Summary, check_drafter, replay
from .recordings.sweeping import Source, configurations, parse_grid, replay_all, usable_processors
from .traces.reading import list_tasks

NUMBERS = ("estimated", "steps", "mat", "mean_nodes", "draft_ms", "tokens_per_second", "speedup")
Row = dict[str, Any]  # of --csv


def run(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    grid = parse_grid(args.grid)
    wanted = configurations(args.methods, grid)
    if args.csv is not None:
        check_writable(args.csv)
    if args.plot is not None:
        require_matplotlib()
    source = read(Source, args)
    recording = source.load()
    for configuration in (VANILLA, *wanted):
        check_drafter(recording, configuration.drafter(), configuration.title)
    live = pair_with_live(recording, args.against, wanted)
    base = replay(recording, VANILLA)
    found: dict[int, Summary] = {}
    try:
        runs = replay_all(recording, source, wanted, args.processes)
        for at, summary in tqdm(runs, total=len(wanted), unit="configuration"):
            found[at] = summary
    finally:
        done = [found[at] for at in sorted(found)]
        if done:
            rows = [csv_row(base, summary) for summary in done]
            show(recording, done, rows, args.step_cost)
            if args.csv is not None:
                write_csv(args.csv, rows)
            if args.plot is not None:
                from .pictures.sweeps import draw

                for row, summary in zip(rows, done, strict=True):
                    row["title"] = summary.configuration.title
                draw(rows, list(grid), args.plot)
    if live:
        compare_live(recording, base, found, live)


def show(
    recording: Recording, done: Sequence[Summary], rows: Sequence[Row], step_cost: Path | None
) -> None:
    """Print the table; `step_cost`: where step costs are from, if not the recording's own."""
    tasks = list_tasks([{"category": q.category} for q in recording.questions])
    table = Table(title=f"{recording.path}: {recording.description}", title_justify="left")
    longest = max(len(summary.configuration.title) + 2 for summary in done)
    table.add_column("method", overflow="fold", min_width=min(40, longest))
    for heading in (*tasks, "MAT", "nodes", "draft ms", "tokens/s", "speedup"):
        table.add_column(heading, justify="right")
    for row, summary in zip(rows, done, strict=True):
        mark = "≈ " if summary.estimated else ""
        table.add_row(
            mark + summary.configuration.title,
            *(f"{summary.mats[task]:.2f}" for task in tasks),
            f"{row['mat']:.2f}", f"{row['mean_nodes']:.1f}", f"{row['draft_ms']:.3f}",
            f"{row['tokens_per_second']:.1f}", f"{row['speedup']:.2f}",
        )  # fmt: skip
    print(drawn(table), end="")
    measured = f"of {step_cost}" if step_cost else "measured where the recording was made"
    print(
        "MAT by task and over all; tokens/s and speedup over the one-node loop are predicted from "
        f"step costs {measured}."
    )
    if recording.unused:
        print(f"{recording.unused} was recorded by an earlier version; nothing reads it any more.")
    if any(summary.estimated for summary in done):
        known = "knows a part" if recording.node_width else "knows none (--tree-rows)"
        print(
            f"≈: learns from nodes off the answer, of which the recording {known}, or sizes its "
            "trees by step costs, which a live run measures anew."
        )


def csv_row(base: Summary, summary: Summary) -> Row:
    """All numbers of a configuration under plain names."""
    return {
        "method": summary.configuration.name,
        **dict(summary.configuration.options),
        **dict(summary.configuration.varied),
        "estimated": int(summary.estimated),
        "steps": summary.steps,
        "mat": summary.mats["overall"],
        **{f"mat:{task}": mat for task, mat in summary.mats.items() if task != "overall"},
        "mean_nodes": summary.mean_nodes,
        "draft_ms": summary.draft_ms,
        "tokens_per_second": float(np.mean(summary.speeds)),
        "speedup": summary.speedup_over(base),
    }


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Options first, then the numbers over all tasks, then each task's."""
    keys = dict.fromkeys(key for row in rows for key in row)
    ordered = sorted(keys, key=lambda key: 2 if ":" in key else key in NUMBERS)
    with writing(path), path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ordered, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m evaluation.replay", "Sweep drafters over a recording, without the model."
    )
    add = parser.add_argument
    add("--recording", required=True, type=Path, metavar="DIR", help="made by evaluation.record")
    drafters = [
        name
        for name, method in METHODS.items()
        if isinstance(method, DrafterMethod) and not method.drafter.live_only
    ]
    add(
        "--methods", required=True, metavar="A,B,...",
        help=f"{', '.join(drafters)}; NAME@16: with that tree capacity; FILE.py:CLASS: your own",
    )  # fmt: skip
    vary = "options to vary, in all combinations; each method takes those it has"
    add("--grid", nargs="+", default=[], metavar="KEY=A,B,...", help=vary)
    stride = "only every K-th of the recorded questions"
    add("--question-stride", type=at_least(1), default=1, metavar="K", help=stride)
    costs = "step costs of another machine, in the format of the recording's step-cost.json"
    add("--step-cost", type=Path, metavar="FILE", help=costs)
    live = "live runs of the same questions, to compare with; vanilla's for the speedup, too"
    add("--against", type=Path, nargs="+", default=[], metavar="TRACE", help=live)
    add("--processes", type=at_least(1, 256), default=usable_processors(), help="to replay in")
    add("--csv", type=Path, metavar="FILE", help="all numbers, a line for each configuration")
    add("--plot", type=picture, metavar="FILE.png", help="draw them; needs the extra `plots`")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run(args), "interrupted; what was replayed is above")


if __name__ == "__main__":
    raise SystemExit(main())
