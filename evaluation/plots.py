"""Pictures of several methods, from their traces: python -m evaluation.plots --help.

Needs matplotlib (extra `plots`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .command.exits import run_command
from .command.parser import Parser
from .command.traces import add_picture_flags, add_trace_flags, read_traces
from .pictures.from_traces import draw_all


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    comparison = read_traces(args)
    for caution in comparison.cautions():
        print(caution, file=sys.stderr)
    names = draw_all(comparison, args.output_dir, kind=args.format, question=args.question)
    print(f"{', '.join(names)}: {args.format.upper()} in {args.output_dir}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m evaluation.plots", "Pictures of several methods from their traces.")
    add_trace_flags(parser)
    parser.add_argument(
        "--output-dir", type=Path, required=True, metavar="DIR", help="where the pictures go"
    )
    add_picture_flags(parser)
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
