"""The flags of the commands that compare traces: tables, plots and report."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from ..pictures.style import FORMATS
from ..traces.comparing import Comparison, read_comparison
from .parser import Parser


def add_trace_flags(parser: Parser) -> None:
    """The traces, for the commands that compare them."""
    add, switch = parser.add_argument, partial(parser.add_argument, action="store_true")
    add("traces", type=Path, nargs="+", metavar="TRACE", help="one per method")
    base = "the baseline (default: the trace made with the method baseline, else vanilla)"
    add("--base-path", type=Path, metavar="TRACE", help=base)
    switch("--first-turns", help="count only the first turn of each question")
    switch("--strict", help="refuse traces that were made on different machines or with different "
           "versions, instead of saying so")  # fmt: skip


def read_traces(args: argparse.Namespace) -> Comparison:
    """The traces of add_trace_flags, of one benchmark."""
    return read_comparison(
        args.traces, args.base_path, first_turns=args.first_turns, strict=args.strict
    )


def add_picture_flags(parser: Parser) -> None:
    """Which question is drawn, and as what."""
    parser.add_argument(
        "--question", metavar="ID", help="whose tokens against time (default: the first answered)"
    )
    parser.add_argument("--format", choices=FORMATS, default="png", help="of the pictures")
