"""One page from what the benchmarks wrote with --json: python -m benchmarks.report --help."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from evaluation.command.exits import run_command
from evaluation.command.files import write_text
from evaluation.command.parser import Parser
from evaluation.plots import require_matplotlib, save_figure
from model.logitspec.errors import InputError

from . import compare_results, scale, step_cost
from .measure import Row, spread

Content = dict[str, Any]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The first column to the left, the others to the right."""
    rule = "|---|" + "---:|" * (len(columns) - 1)
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in (columns, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def step_section(content: Content, folder: Path) -> str:
    """Of step_cost's results."""
    picture = folder / "step-cost.png"
    step_cost.draw(content["steps"], picture)
    made = {row["dtype"]: row["made"] for row in content["machine"]}
    settings = content["settings"]
    text = (
        "## A step by the number of nodes\n\n"
        "`python -m benchmarks.step_cost`: milliseconds, median [quartiles] of "
        f"{settings['rounds']} rounds, beside what reading all weights and the cache once, and "
        "multiplying, would take at the rates measured in the same minute; the last column is the "
        "distance to the larger of the two.\n\n"
        f"![step time over nodes]({folder.name}/{picture.name})\n"
    )
    for dtype, how in made.items():
        rows = [
            (
                row["context"],
                row["nodes"],
                spread(row),
                f"{row['over_one']:.2f}",
                f"{row['reading_ms']:.2f}",
                f"{row['arithmetic_ms']:.2f}",
                f"{row['over_limit']:.2f}",
            )
            for row in content["steps"]
            if row["dtype"] == dtype
        ]
        columns = ("context", "nodes", "ms", "x one node", "reading", "arithmetic", "x limit")
        text += f"\n{dtype}, {how}:\n\n{markdown_table(columns, rows)}"
    return text


def changes_section(content: Content, _: Path) -> str:
    """Of changes' results: a line per piece of work and number of rows, its variants in order."""
    text = (
        "## Before and after\n\n"
        "`python -m benchmarks.changes`: the same work as it was first, as after a change, as "
        f"after the next; milliseconds, medians of {content['settings']['rounds']} rounds in "
        "turn, quartiles in the JSON. `rows` are the tokens of the forward.\n"
    )
    for dtype in content["settings"]["dtypes"]:
        lines: dict[tuple[str, int], list[Row]] = {}
        for row in content["changes"]:
            if row["dtype"] == dtype:
                lines.setdefault((row["work"], row["rows"]), []).append(row)
        rows = [
            (
                work,
                count,
                " → ".join(f"{row['variant']} {row['median']:.3f}" for row in variants),
                f"{variants[-1]['gain_in_all']:.2f}",
            )
            for (work, count), variants in sorted(lines.items())
        ]
        columns = ("work", "rows", "ms", "times faster")
        text += f"\n{dtype}:\n\n{markdown_table(columns, rows)}"
    return text


def scale_section(content: Content, folder: Path) -> str:
    """Of scale's results."""
    picture = folder / "scale.png"
    found = [name for name in scale.MEASUREMENTS if content.get(name)]
    scale.draw(content, found, picture)
    made = content["load"][0]
    text = (
        "## As context and output grow\n\n"
        f"`python -m benchmarks.scale`, {made['dtype'].removeprefix('torch.')}, "
        f"{made['kernels']} kernels.\n\n![scale]({folder.name}/{picture.name})\n\n"
    )
    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    columns = ("context", "nodes", "ms", "grown since the shortest", "cache MiB", "held MiB")
    rows = [
        (
            row["context"],
            row["nodes"],
            spread(row),
            f"{row['attention_share']:.0%}",
            scale.shown(row["cache_mib"]),
            scale.shown(row["held_mib"]),
        )
        for row in content["context"]
    ]
    text += markdown_table(columns, rows)
    for row in content["output"]:
        moved = "was reallocated" if row["cache_reallocated"] else "was not reallocated"
        text += (
            f"\n{row['method']}, {row['new_tokens']} tokens in one generation, {row['steps']} "
            f"steps: the step grows by {row['growth_ms_per_1000_tokens']:.2f} ms per 1000 tokens; "
            f"the cache {moved}; MiB held {scale.shown(row['held_mib'])} = "
            f"{scale.shown(row['weights_mib'])} weights + {scale.shown(row['cache_mib'])} cache + "
            f"{scale.shown(row['rest_mib'])} rest (the interpreter, PyTorch, work space), peak "
            f"{scale.shown(row['peak_mib'])}.\n\n"
        )
        columns = ("from token", "steps", "ms")
        windows = [(w["first"], w["steps"], spread(w)) for w in row["windows"]]
        text += markdown_table(columns, windows)
    contexts = sorted({row["context"] for row in content["drafting"]})
    text += (
        "\nDrafting, `draft` and `observe` together, microseconds per step by the tokens that came "
        "before:\n\n"
    )
    drafters: dict[str, list[Row]] = {}
    for row in content["drafting"]:
        drafters.setdefault(row["drafter"], []).append(row)
    rows = [
        (name, *(f"{row['median']:.1f}" for row in own), f"{own[-1]['to_shortest']:.2f}")
        for name, own in drafters.items()
    ]
    return text + markdown_table(("drafter", *map(str, contexts), "longest to shortest"), rows)


def compare_section(path: Path, folder: Path) -> str:
    """Of one of compare's results."""
    results = compare_results.Results.read(path)
    compare_results.check_drawable([*results.records], path)
    picture = folder / f"{path.stem}.png"
    save_figure(compare_results.draw(results), picture)
    dtype = str(results.settings["dtype"])
    return (
        f"## Beside generate(), {dtype}\n\n"
        f"`python -m benchmarks.compare --dtype {dtype}`: the methods take turns question by "
        f"question.\n\n![speed and phases]({folder.name}/{picture.name})\n\n"
        + compare_results.markdown(results)
    )


SECTIONS: dict[str, Callable[[Content, Path], str]] = {
    "step_cost.json": step_section,
    "changes.json": changes_section,
    "scale.json": scale_section,
}


def sections(source: Path, pictures: Path) -> Iterator[str]:
    """The page's parts from the files in a folder.

    Raises:
        InputError: there are none, or one is of another make.
    """
    comparisons = sorted(source.glob("compare*.json"))
    present = [name for name in SECTIONS if (source / name).is_file()]
    if not comparisons and not present:
        raise InputError(f"{source} holds neither compare*.json nor {', '.join(SECTIONS)}")
    for path in comparisons:
        yield compare_section(path, pictures)
    for name in present:
        try:
            content = json.loads((source / name).read_text(encoding="utf-8"))
            yield SECTIONS[name](content, pictures)
        except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(
                f"{source / name} is not all that the benchmark writes; measure it again, whole"
            ) from error


def describe(source: Path) -> str:
    """What the numbers were measured with.

    Raises:
        InputError: a file does not say, or the files were measured on different machines.
    """
    machines, commits = set(), set()
    for path in sorted(source.glob("*.json")):
        try:
            environment = json.loads(path.read_text(encoding="utf-8"))["environment"]
            versions = environment["versions"]
            machines.add(
                f"{', '.join(environment['device_names'])}, "
                + (f"{found}, " if (found := environment.get("instruction_set")) else "")
                + f"{environment['threads']} threads, "
                f"{environment['platform']}; torch {versions['torch']}, transformers "
                f"{versions['transformers']}"
            )
            commits.add(str(environment["commit"])[:12])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} does not say what it was measured with") from error
    if len(machines) > 1:
        raise InputError(f"{source} holds results of several machines: {'; '.join(machines)}")
    return f"{machines.pop()}; commit {', '.join(sorted(commits))}."


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    require_matplotlib()
    if not args.results.is_dir():
        raise InputError(f"no folder {args.results}; give one with the benchmarks' JSON files")
    pictures = args.output.with_suffix("")
    try:
        notes = args.notes.read_text(encoding="utf-8") if args.notes else ""
        pictures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; give another file") from error
    parts = [part.strip() for part in (notes, *sections(args.results, pictures)) if part]
    made = describe(args.results)
    text = f"# Performance\n\nWritten by `python -m benchmarks.report`. {made}\n"
    text += "".join(f"\n{part}\n" for part in parts)
    write_text(args.output, text)
    print(f"{args.output}, pictures in {pictures}")


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.report", "A page from the benchmarks' JSON files.")
    add = parser.add_argument
    add(
        "results",
        type=Path,
        metavar="FOLDER",
        help=f"with any of {', '.join(SECTIONS)} and compare*.json, as --json wrote them",
    )
    add("--output", type=Path, required=True, metavar="FILE.md", help="pictures go beside it")
    add("--notes", type=Path, metavar="FILE", help="Markdown to put before the first section")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
