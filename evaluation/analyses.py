"""The paper's analyses on a page: python -m evaluation.analyses --help.

From a recording (evaluation.record), without the model: ranks of the tokens after the next one,
what retrieval finds, what candidates cover, and LogitSpec without its parts and with other numbers
and rules. From traces: where a step's time goes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from model.logitspec.errors import InputError

from .analysing.logitspec import knob_section, part_section, rule_section
from .analysing.ranks import rank_section
from .analysing.retrieval import coverage_section, retrieval_section
from .analysing.sections import Section
from .analysing.times import time_section
from .command.exits import run_command
from .command.files import make_folder, read_notes, write_text
from .command.parser import Parser
from .pictures.style import require_matplotlib
from .recordings.format import Recording, load_recording
from .traces.comparing import read_comparison
from .traces.reading import list_tasks


def analyse(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    require_matplotlib()
    if args.output.suffix != ".md":
        raise InputError(f"--output {args.output} is no FILE.md; its pictures go into FILE")
    if args.recording is None and args.traces is None:
        raise InputError("nothing to analyse; give a --recording, --traces or both")
    notes = read_notes(args.notes, args.output)
    folder = args.output.with_suffix("")
    make_folder(folder)
    pages = ["# Analyses", "Written by `python -m evaluation.analyses`."]
    sections: list[Section] = []
    comparison = read_comparison(args.traces) if args.traces is not None else None
    if args.recording is not None:
        recording = load_recording(args.recording)
        pages[1] += (
            f" From a recording, without the model ([replay.md](replay.md)): "
            f"{recording.description}."
        )
        sections += recorded_sections(recording, args.methods)
    if comparison is not None:
        sections.append(time_section(comparison))
    pages += [notes] if notes else []
    pages += [section.write(folder) for section in sections]
    write_text(args.output, "\n\n".join(pages) + "\n")
    print(f"the page is in {args.output}, its tables and pictures in {folder}")


def recorded_sections(recording: Recording, methods: str | None) -> list[Section]:
    """All that a recording tells; `methods`: whose candidates are looked at."""
    tasks = list_tasks([{"category": q.category} for q in recording.questions])
    return [
        rank_section(recording, tasks),
        retrieval_section(recording, tasks),
        part_section(recording, tasks),
        rule_section(recording),
        knob_section(recording),
        coverage_section(recording, methods),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m evaluation.analyses", "The paper's analyses, from a recording or from traces."
    )
    add = parser.add_argument
    add("--recording", type=Path, metavar="DIR", help="made by evaluation.record")
    times = "of several methods, a baseline among them: where a step's time goes"
    add("--traces", type=Path, nargs="+", metavar="TRACE", help=times)
    methods = "whose candidates are looked at (default: all that the recording can replay)"
    add("--methods", metavar="A,B,...", help=methods)
    page = "the page; its tables and pictures go into the folder FILE beside it"
    add("--output", required=True, type=Path, metavar="FILE.md", help=page)
    add("--notes", type=Path, metavar="FILE.md", help="Markdown to put above the tables")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: analyse(args), "interrupted; the page was not written")


if __name__ == "__main__":
    raise SystemExit(main())
