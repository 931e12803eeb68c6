"""Sweep drafters over a recording, without the model: python -m evaluation.replay --help."""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from tqdm import tqdm

from model.logitspec.errors import InputError

from .arguments import Parser, at_least, picture, run_command
from .live_replay import compare_live, pair_with_live
from .methods import (
    CAPACITY,
    METHODS,
    DrafterMethod,
    Method,
    Option,
    SizedMethod,
    find_methods,
    option_type,
)
from .pictures.style import require_matplotlib
from .recordings import Recording, load_recording
from .replaying import VANILLA, Configuration, Summary, check_drafter, drafter_method, replay
from .speed import list_tasks
from .terminal import drawn
from .traces import check_writable

MOST_CONFIGURATIONS = 10_000


def configurations(methods: str, grid: Mapping[str, Sequence[str]]) -> list[Configuration]:
    """Every method with every combination of the options in the grid that it has.

    Args:
        methods: names, separated by commas.
        grid: texts of values by option.

    Raises:
        InputError: an unknown method, a key that none of them has, or a value it cannot take.
    """
    found_methods = find_methods(methods)
    varied_by = {
        word: {o.name: parsed(o, grid[o.name]) for o in options_of(method) if o.name in grid}
        for word, method in found_methods.items()
    }
    for key in grid:
        if not any(key in varied for varied in varied_by.values()):
            known = sorted({o.name for m in found_methods.values() for o in options_of(m)})
            raise InputError(
                f"--grid: {methods} has no option {key!r}; "
                + (f"there are {', '.join(known)}" if known else "leave --grid out, there is none")
            )
    count = sum(math.prod(map(len, varied.values())) for varied in varied_by.values())
    if count > MOST_CONFIGURATIONS:
        raise InputError(
            f"--grid makes {count} configurations, more than {MOST_CONFIGURATIONS}; give less"
        )
    found = []
    for word, of_grid in varied_by.items():
        method = found_methods[word]
        drafter_method(word)
        for values in itertools.product(*of_grid.values()):
            varied = dict(zip(of_grid, values, strict=True))
            for option in method.options:
                if option.name in varied and not option.takes(varied[option.name]):
                    raise InputError(
                        f"--grid: {method.name} cannot do {option.name}=auto; leave it out"
                    )
            options = method.settings(varied)
            method.check(options)
            found.append(Configuration(word, tuple(options.items()), tuple(varied.items())))
    return found


def options_of(method: Method) -> list[Option]:
    """What a grid can vary: of a method with a capacity of its own all else."""
    sized = isinstance(method, SizedMethod)
    return [option for option in method.options if not (sized and option.name == CAPACITY)]


def parsed(option: Any, texts: Sequence[str]) -> list[Any]:
    """Values of an option as the flag would read them."""
    if isinstance(option.default, bool):
        words = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
        for text in texts:
            if text.lower() not in words:
                raise InputError(f"--grid: {option.name}={text} is neither true nor false")
        return [words[text.lower()] for text in texts]
    read = option_type(option)
    try:
        return [read(text) for text in texts]
    except argparse.ArgumentTypeError as error:
        raise InputError(f"--grid: {option.name}: {error}") from error


def parse_grid(words: Sequence[str]) -> dict[str, list[str]]:
    """KEY=A,B,... words.

    Raises:
        InputError: a word that is none, a key twice, or no values.
    """
    grid: dict[str, list[str]] = {}
    for word in words:
        key, equals, values = word.partition("=")
        key = key.replace("-", "_")
        listed = list(dict.fromkeys(value.strip() for value in values.split(",") if value.strip()))
        if not equals or not listed:
            raise InputError(f"--grid {word!r} gives no values; write KEY=A,B,...")
        if key in grid:
            raise InputError(f"--grid names {key} twice; give all its values at once")
        grid[key] = listed
    return grid


# What a worker process holds: loaded once, when it starts.
loaded: dict[str, Any] = {}


def start_worker(*recording: Any) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    loaded["recording"] = load_recording(*recording)


def work(configuration: Configuration) -> Summary:
    return replay(loaded["recording"], configuration)


def replay_all(
    recording: Recording, args: argparse.Namespace, wanted: Sequence[Configuration]
) -> Iterator[tuple[int, Summary]]:
    """Summaries as they are done, each with its place among those wanted.

    Raises:
        InputError: a process died.
    """
    if args.processes == 1 or len(wanted) == 1:
        loaded["recording"] = recording
        for at, configuration in enumerate(wanted):
            yield at, work(configuration)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(args.processes, len(wanted)),
        context,
        initializer=start_worker,
        initargs=(args.recording, args.question_stride, args.step_cost),
    ) as pool:
        places = {pool.submit(work, c): at for at, c in enumerate(wanted)}
        try:
            for future in as_completed(places):
                yield places[future], future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "a process of the replay died, perhaps for want of memory; what it had done is "
                "above, try fewer --processes"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def run(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    grid = parse_grid(args.grid)
    wanted = configurations(args.methods, grid)
    if args.csv is not None:
        check_writable(args.csv)
    if args.plot is not None:
        require_matplotlib()
    recording = load_recording(args.recording, args.question_stride, args.step_cost)
    for configuration in (VANILLA, *wanted):
        check_drafter(recording, configuration.drafter(), configuration.title)
    live = pair_with_live(recording, args.against, wanted)
    base = replay(recording, VANILLA)
    found: dict[int, Summary] = {}
    try:
        runs = replay_all(recording, args, wanted)
        for at, summary in tqdm(runs, total=len(wanted), unit="configuration"):
            found[at] = summary
    finally:
        done = [found[at] for at in sorted(found)]
        if done:
            show(recording, base, done, args)
    if live:
        compare_live(recording, base, found, live)


def show(
    recording: Recording, base: Summary, done: Sequence[Summary], args: argparse.Namespace
) -> None:
    """Print the table; write the file and the picture that are wanted."""
    rows = [csv_row(base, summary) for summary in done]
    tasks = list_tasks([{"category": q.category} for q in recording.questions])
    table = Table(title=f"{recording.path}: {recording.description}", title_justify="left")
    longest = max(len(summary.configuration.title) + 2 for summary in done)
    table.add_column("method", overflow="fold", min_width=min(40, longest))
    headings = [*tasks, "MAT", "nodes", "draft ms", "tokens/s", "speedup"]
    for heading in headings:
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
    measured = f"of {args.step_cost}" if args.step_cost else "measured where the recording was made"
    print(
        "MAT by task and over all; tokens/s and speedup over the one-node loop are predicted from "
        f"step costs {measured}."
    )
    if any(summary.estimated for summary in done):
        known = "knows a part" if recording.node_width else "knows none (--tree-rows)"
        print(
            f"≈: learns from nodes off the answer, of which the recording {known}, or sizes its "
            "trees by step costs, which a live run measures anew."
        )
    if args.csv is not None:
        write_csv(args.csv, rows)
    if args.plot is not None:
        from .pictures.sweeps import draw

        titled = [row | {"title": s.configuration.title} for row, s in zip(rows, done, strict=True)]
        draw(titled, list(parse_grid(args.grid)), args.plot)


def csv_row(base: Summary, summary: Summary) -> dict[str, Any]:
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


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    numbers = (
        "estimated",
        "steps",
        "mat",
        "mean_nodes",
        "draft_ms",
        "tokens_per_second",
        "speedup",
    )
    keys = dict.fromkeys(key for row in rows for key in row)
    options = [key for key in keys if key not in numbers and ":" not in key]
    tasks = [key for key in keys if ":" in key]
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*options, *numbers, *tasks], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another file") from error


def usable_processors() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m evaluation.replay", "Sweep drafters over a recording, without the model."
    )
    add = parser.add_argument
    add("--recording", required=True, type=Path, metavar="DIR", help="made by evaluation.record")
    drafters = [name for name, method in METHODS.items() if isinstance(method, DrafterMethod)]
    add(
        "--methods", required=True, metavar="A,B,...",
        help=f"{', '.join(drafters)}; NAME@16: with that tree capacity; FILE.py:CLASS: your own",
    )  # fmt: skip
    add(
        "--grid", nargs="+", default=[], metavar="KEY=A,B,...",
        help="options to vary, in all combinations; each method takes those it has",
    )  # fmt: skip
    add(
        "--question-stride", type=at_least(1), default=1, metavar="K",
        help="only every K-th of the recorded questions",
    )  # fmt: skip
    add(
        "--step-cost", type=Path, metavar="FILE",
        help="step costs of another machine, in the format of the recording's step-cost.json",
    )  # fmt: skip
    add(
        "--against", type=Path, nargs="+", default=[], metavar="TRACE",
        help="live runs of the same questions, to compare with; vanilla's for the speedup, too",
    )  # fmt: skip
    add("--processes", type=at_least(1, 256), default=usable_processors(), help="to replay in")
    add("--csv", type=Path, metavar="FILE", help="all numbers, a line for each configuration")
    add("--plot", type=picture, metavar="FILE.png", help="draw them; needs the extra `plots`")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run(args), "interrupted; what was replayed is above")


if __name__ == "__main__":
    sys.exit(main())
