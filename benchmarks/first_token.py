"""Seconds from the loaded model to the first token: python -m benchmarks.first_token --help.

Each time in a process of its own with an empty cache folder, but for what was compiled before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from evaluation.asking.methods import find_drafter, find_methods
from evaluation.command.files import ROOT
from evaluation.command.parser import Parser, at_least
from model.logitspec import generate, load
from model.logitspec.errors import InputError
from model.logitspec.loading import load_config

from .measure import (
    AS_THERE,
    MODEL,
    MODEL_KINDS,
    SPREAD,
    Figures,
    Results,
    quartiles,
    run_benchmark,
)

CHILD = "import sys; from benchmarks.first_token import child; child(sys.argv[1])"
COLUMNS = {
    "method": (16, "{method}"),
    "to the first token, s": (24, SPREAD),
    "more than first": (15, "{more:+.2f}"),
    "loading, s": (10, "{loading:.2f}"),
}


class FirstToken(Exception):
    """It is there."""


def child(text: str) -> None:
    """Load a model, clock its first token, and print both times as JSON."""
    given: dict[str, Any] = json.loads(text)
    begun = time.perf_counter()
    model = load(given["model_path"], dtype=given["dtype"], cpu_kernels=given["cpu_kernels"])
    ids = [i % model.config.vocab_size for i in range(given["prompt_tokens"])]
    loaded = time.perf_counter()

    def stop(_: list[int]) -> None:
        raise FirstToken

    with suppress(FirstToken):
        drafter = find_drafter(given["method"])
        generate(model, ids, drafter, max_new_tokens=16, eos_token_ids=(), on_commit=stop)
    took = time.perf_counter() - loaded
    print(json.dumps({"loading": loaded - begun, "seconds": took}))


def clock(args: argparse.Namespace, method: str, compiled: Path, *, keep: bool = False) -> Figures:
    """Run a child with a new cache folder that holds what is compiled; keep: what it adds."""
    given = {"method": method, "model_path": str(args.model_path), "dtype": args.dtype}
    given |= {"cpu_kernels": args.cpu_kernels, "prompt_tokens": args.prompt_tokens}
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder, "logitspec")
        shutil.copytree(compiled, own)
        done = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(given)],
            env=os.environ | {"XDG_CACHE_HOME": folder},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise InputError(f"the process for {method} failed: {said[-1] if said else ''}")
        if keep:
            for library in own.glob("*.so"):
                shutil.copy(library, compiled)
    return {**json.loads(done.stdout.splitlines()[-1])}


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    methods = list(find_methods(args.methods))
    for method in methods:
        find_drafter(method)
    load_config(args.model_path)
    results = Results(args, "cpu")
    took: dict[str, list[Figures]] = {method: [] for method in methods}
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder)
        for method in methods:
            clock(args, method, compiled, keep=True)
        for _ in range(args.rounds):
            for method in methods:
                row = clock(args, method, compiled)
                results.add("runs", {"method": method, **row})
                took[method].append(row)
    table = results.table(
        "methods",
        f"{args.model_path}: seconds from the loaded model to the first token after "
        f"{args.prompt_tokens}, in a new process with nothing measured before; compilation is "
        f"apart; median [quartiles] of {args.rounds}",
        COLUMNS,
    )
    first = None
    for method, rows in took.items():
        found: Figures = {"method": method, **quartiles([row["seconds"] for row in rows])}
        found["loading"] = quartiles([row["loading"] for row in rows])["median"]
        first = found["median"] if first is None else first
        table.add({**found, "more": found["median"] - first})


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m benchmarks.first_token", "Seconds to the first token with nothing measured."
    )
    add = parser.add_argument
    add("--model-path", default=MODEL, help=MODEL_KINDS)
    methods = "of evaluation.run; the others are compared with the first"
    add("--methods", default="vanilla,calibrated@auto", metavar="A,B", help=methods)
    add("--dtype", default="auto", help=AS_THERE)
    add("--cpu-kernels", default="auto", help=AS_THERE)
    add("--prompt-tokens", type=at_least(1), default=64, help="tokens of the prompt")
    add("--rounds", type=at_least(1), default=3, help="of all methods, in turn")
    return run_benchmark(parser, argv, report)


if __name__ == "__main__":
    sys.exit(main())
