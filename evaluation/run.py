"""Compare methods on a benchmark in one run: python -m evaluation.run --help.

The model is loaded once, the methods answer every question one after the other, and each writes a
trace of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from model.logitspec.errors import InputError

from .asking.methods import METHODS, add_options, find_method, find_methods
from .asking.questions import answer_folder
from .asking.runs import Run, answer_benchmark
from .command.exits import run_command
from .command.flags import add_machine_flags, add_run_flags, add_warmup_flag, read_run
from .command.inference import say_what_is_ignored
from .command.parser import Parser


def run_several(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    methods = list(find_methods(args.methods).values())
    say_what_is_ignored(methods, vars(args))
    folder = args.answer_dir or answer_folder(args.bench_name)
    runs = []
    for method in methods:
        name = f"{args.model_id}-{method.name}"
        runs.append(Run(method, method.settings(vars(args)), name, folder / f"{name}.jsonl"))
    answer_benchmark(read_run(args), runs)


class ListMethods(argparse.Action):
    """Prints the methods and exits, whatever else is asked or missing."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        width = max(map(len, METHODS))
        for name, method in METHODS.items():
            print(f"{name:{width}}  {method.summary}")
        parser.exit()


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        "python -m evaluation.run",
        "Compare methods on a benchmark: one model, the methods take turns question by question.",
    )
    add = parser.add_argument
    names = "names of --list, separated by commas; NAME@16 or NAME@auto: with that tree capacity"
    add("--methods", required=True, metavar="A,B,...", help=names)
    add("--list", action=ListMethods, nargs=0, help="name the methods, one line each, and exit")
    place = "where the traces ID-METHOD.jsonl go (default: data/NAME/model_answer)"
    add("--answer-dir", type=Path, metavar="DIR", help=place)
    add_run_flags(parser)
    costs = "measure now and then what a step costs by its nodes, for evaluation.replay"
    add("--step-cost", type=Path, metavar="FILE", help=costs)
    add_machine_flags(parser)
    add_warmup_flag(parser)
    return run_command(parser.prog, lambda: run_several(parse(parser, argv)))


def parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the flags, with those of the methods in files that --methods names."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--methods", default="", nargs="?")
    names = (first.parse_known_args(argv)[0].methods or "").split(",")
    own = [find_method(name.strip()) for name in names if ".py:" in name]
    taken = {action.dest for action in parser._actions}
    for method in own:
        for option in method.options:
            if option.name in taken:
                raise InputError(
                    f"the option {option.name!r} of {method.name} is a flag of this command; "
                    "call it otherwise"
                )
    add_options(parser, *METHODS.values(), *own)
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
