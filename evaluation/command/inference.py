"""What the commands evaluation.inference_METHOD share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from model.logitspec.errors import InputError

from ..asking.methods import METHODS, Method, add_options
from ..asking.questions import answer_folder
from ..asking.runs import Run, answer_benchmark
from .exits import run_command
from .flags import inference_parser, read_run


def run_one(args: argparse.Namespace, method: Method) -> None:
    """Read the settings and the method's options from the flags, and answer a benchmark."""
    say_what_is_ignored([method], vars(args))
    default = answer_folder(args.bench_name) / f"{args.model_id}.jsonl"
    options = method.settings(vars(args))
    run = Run(method, options, args.model_id, args.answer_file or default)
    answer_benchmark(read_run(args), [run])


def inference_main(name: str, argv: Sequence[str] | None = None) -> int:
    """The command `python -m evaluation.inference_NAME`."""
    method = METHODS[name]
    parser = inference_parser(f"inference_{name}", f"Answer a benchmark. {method.summary}")
    add_options(parser, method)
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run_one(args, method))


def say_what_is_ignored(methods: Sequence[Method], given: Mapping[str, Any]) -> None:
    """Print which of the given options some of the methods ignore; InputError if all do."""
    options = {o.name for m in (*METHODS.values(), *methods) for o in m.options} & given.keys()
    for name in sorted(options):
        value = given[name]
        having = [m for m in methods if any(o.name == name and o.takes(value) for o in m.options)]
        ignoring = ", ".join(method.name for method in methods if method not in having)
        flag = f"--{name.replace('_', '-')}" + (" auto" if value == "auto" else "")
        if not having:
            raise InputError(
                f"{flag} means nothing to {ignoring}; leave it out or add a method that knows it "
                "(--help says which)"
            )
        if ignoring:
            print(f"{flag} is ignored by {ignoring}")
    if given.get("evidence"):
        ignoring = ", ".join(method.name for method in methods if not method.takes_evidence)
        if not any(method.takes_evidence for method in methods):
            raise InputError(f"--evidence means nothing to {ignoring}; leave it out")
        if ignoring:
            print(f"--evidence is ignored by {ignoring}")
