"""Record a greedy run for evaluation.replay: python -m evaluation.record --help."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .asking.settings import AnswerSettings, QuestionSettings, RunSettings, TargetSettings
from .command.exits import run_command
from .command.flags import add_machine_flags, add_model_path, add_slice_flags, read
from .command.parser import Parser, at_least, plain_name
from .recordings.recording import RecordingOptions, record


def run(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    settings = RunSettings(
        read(TargetSettings, args),
        read(QuestionSettings, args),
        read(AnswerSettings, args, strict=True),
    )
    record(settings, read(RecordingOptions, args))


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m evaluation.record", "Record a greedy run for evaluation.replay.")
    add = parser.add_argument
    add_model_path(parser)
    add("--bench-name", default="spec_bench", type=plain_name, help="data/NAME/question.jsonl")
    add("--output", required=True, type=Path, metavar="DIR", help="the recording; gone on with")
    add("--top-k", type=at_least(1, 4096), default=64, metavar="K", help="best tokens kept")
    add(
        "--tree-rows", type=at_least(0, 4096), default=64, metavar="C",
        help="nodes of the trees that rows off the answer are recorded from; 0: none",
    )  # fmt: skip
    add_slice_flags(parser)
    add("--max-new-tokens", type=at_least(1), default=128, help="most tokens per turn")
    add("--cap-new-tokens", action="store_true", help="as in the inference scripts")
    add("--conv-template", metavar="NAME", help="as in the inference scripts")
    add_machine_flags(parser)
    args = parser.parse_args(argv)
    return run_command(
        parser.prog, lambda: run(args), "interrupted; what is finished is on disk: run again"
    )


if __name__ == "__main__":
    raise SystemExit(main())
