"""One page from what the benchmarks wrote with --json: python -m benchmarks.report --help."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.command.exits import run_command
from evaluation.command.files import write_text
from evaluation.command.parser import Parser
from evaluation.pictures.style import require_matplotlib
from evaluation.tabulating.origin import machine, read_tables
from evaluation.tabulating.table import to_markdown
from model.logitspec.errors import InputError

from . import scale, step_cost
from .measure import Figures, spread

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
        text += (
            f"\n{row['method']}, {row['new_tokens']} tokens in one generation, {row['steps']} "
            f"steps; {scale.summary(row)}.\n\n"
        )
        columns = ("from token", "steps", "ms")
        windows = [(w["first"], w["steps"], spread(w)) for w in row["windows"]]
        text += markdown_table(columns, windows)
    contexts = sorted({row["context"] for row in content["drafting"]})
    text += (
        "\nDrafting, `draft` and `observe` together, microseconds per step by the tokens that came "
        "before:\n\n"
    )
    drafters: dict[str, list[Figures]] = {}
    for row in content["drafting"]:
        drafters.setdefault(row["drafter"], []).append(row)
    rows = [
        (name, *(f"{row['median']:.1f}" for row in own), f"{own[-1]['to_shortest']:.2f}")
        for name, own in drafters.items()
    ]
    return text + markdown_table(("drafter", *map(str, contexts), "longest to shortest"), rows)


def methods_section(content: Content, _: Path) -> str:
    """Of what evaluation.tables --json wrote."""
    tables = read_tables(content)
    settings = content["settings"]
    kernels = sorted({environment["kernels"] for environment in content["environments"]})
    turns = "first turns" if content["first_turns"] else "all turns"
    return (
        f"## Beside generate(), {settings['dtype']}\n\n"
        "`python -m evaluation.run` and `python -m evaluation.tables --json`: "
        f"{settings['model']}, {content['questions']} questions of {settings['bench_name']}, "
        f"{turns}, at most {settings['max_new_tokens']} new tokens, "
        f"{' and '.join(kernels)} kernels; the methods take turns question by question.\n\n"
        + "\n".join(map(to_markdown, tables.values()))
    )


SECTIONS: dict[str, Callable[[Content, Path], str]] = {
    "methods-*.json": methods_section,
    "step_cost.json": step_section,
    "scale.json": scale_section,
}


def read(source: Path) -> dict[Path, Content]:
    """The files of the page that are in a folder, in the order of their sections.

    Raises:
        InputError: there are none, or one is no JSON object.
    """
    paths = [path for name in SECTIONS for path in sorted(source.glob(name))]
    if not paths:
        raise InputError(f"{source} holds none of {', '.join(SECTIONS)}")
    found: dict[Path, Content] = {}
    for path in paths:
        try:
            found[path] = {**json.loads(path.read_text(encoding="utf-8"))}
        except (OSError, TypeError, ValueError) as error:
            raise not_whole(path) from error
    return found


def not_whole(path: Path) -> InputError:
    return InputError(f"{path} is not all that the benchmark writes; measure it again, whole")


def sections(contents: Mapping[Path, Content], pictures: Path) -> Iterator[str]:
    """The page's parts; their pictures are written into a folder.

    Raises:
        InputError: a file is of another make.
    """
    for path, content in contents.items():
        make = next(make for name, make in SECTIONS.items() if path.match(name))
        try:
            yield make(content, pictures)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise not_whole(path) from error


def describe(contents: Mapping[Path, Content]) -> str:
    """What the numbers were measured with.

    Raises:
        InputError: a file does not say, or the files were measured on different machines.
    """
    machines: dict[str, str] = {}
    commits = set()
    for path, content in contents.items():
        try:
            for environment in content.get("environments") or [content["environment"]]:
                # Older files do not name the instruction set.
                plain = machine({**environment, "instruction_set": None})
                machines[plain] = max(machines.get(plain, ""), machine(environment), key=len)
                commits.add(str(environment["commit"])[:12])
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} does not say what it was measured with") from error
    if len(machines) > 1:
        raise InputError(
            f"{path.parent} holds results of several machines: {'; '.join(machines.values())}"
        )
    return f"{next(iter(machines.values()))}; commit {', '.join(sorted(commits))}."


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
    contents = read(args.results)
    parts = [part.strip() for part in (notes, *sections(contents, pictures)) if part]
    made = describe(contents)
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
        help=f"with any of {', '.join(SECTIONS)}, as --json wrote them",
    )
    add("--output", type=Path, required=True, metavar="FILE.md", help="pictures go beside it")
    add("--notes", type=Path, metavar="FILE", help="Markdown to put before the first section")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
