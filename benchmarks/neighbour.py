"""What a busy neighbour costs: python -m benchmarks.neighbour --help.

Steps on a quiet machine and beside a process that keeps one core busy, in turn and on several
kernels. The neighbour is free to run on any core, as the system likes.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import torch
from transformers.utils import logging

from evaluation.command.parser import Parser, at_least
from model.logitspec import load
from model.logitspec.config import max_positions
from model.logitspec.errors import InputError
from model.logitspec.kv_cache import KVCache
from model.logitspec.loading import load_config
from model.logitspec.modeling_llama_kv import LlamaKVForCausalLM
from model.logitspec.sizing.measuring import filled_cache, wide_tree
from model.logitspec.verification import verify

from .measure import AS_THERE, MODEL, MODEL_KINDS, Figures, Results, quartiles, run_benchmark

SETTLING = 0.2  # seconds of steps that do not count: the system moves threads between cores
COLUMNS = {
    "kernels": (8, "{kernels}"),
    "nodes": (5, "{nodes}"),
    "quiet, steps/s": (14, "{quiet:.1f}"),
    "busy, steps/s": (13, "{busy:.1f}"),
    "kept": (24, "{median:.0%} [{low:.0%}, {high:.0%}]"),
}


@contextmanager
def neighbour() -> Iterator[Callable[[bool], None]]:
    """A process that counts; a function that has it run, or stops it. It is stopped at first."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])

    def run(busy: bool) -> None:
        os.kill(process.pid, signal.SIGCONT if busy else signal.SIGSTOP)

    try:
        run(False)
        yield run
    finally:
        process.kill()
        process.wait()


def seconds_above_0(text: str) -> float:
    """An argparse type."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def rate(step: Callable[[], object], seconds: float) -> float:
    """Steps per second, for about so many seconds."""
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        step()
        count += 1
    return count / spent


def one_step(model: LlamaKVForCausalLM, cache: KVCache, nodes: int) -> object:
    """Verify a tree and drop it."""
    return verify(model, wide_tree(nodes), cache, 0)


def measure(
    steps: dict[tuple[str, int], Callable[[], object]], rounds: int, seconds: float
) -> list[Figures]:
    """A row for each step: its rates, and the share of the quiet one that is kept, each round."""
    quiet: dict[tuple[str, int], list[float]] = {key: [] for key in steps}
    busy: dict[tuple[str, int], list[float]] = {key: [] for key in steps}
    with neighbour() as run:
        for _ in range(rounds):
            for key, step in steps.items():
                for is_busy, rates in ((False, quiet), (True, busy)):
                    run(is_busy)
                    rate(step, SETTLING)
                    rates[key].append(rate(step, seconds))
    rows: list[Figures] = []
    for key in steps:
        kept = [b / q for b, q in zip(busy[key], quiet[key], strict=True)]
        speeds = {"quiet": float(np.median(quiet[key])), "busy": float(np.median(busy[key]))}
        rows.append({"kernels": key[0], "nodes": key[1], **speeds, **quartiles(kept)})
    return rows


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    if not hasattr(signal, "SIGSTOP"):
        raise InputError("this system cannot stop and continue a process; use Linux or macOS")
    logging.disable_progress_bar()
    positions = max_positions(load_config(args.model_path))
    if args.context + max(args.nodes) > positions:
        raise InputError(
            f"a context of {args.context} and {max(args.nodes)} nodes exceed the model's "
            f"{positions} positions; give less"
        )
    results = Results(args, "cpu")
    models: dict[str, LlamaKVForCausalLM] = {}
    for kernels in dict.fromkeys(args.cpu_kernels):
        dtype = next((model.dtype for model in models.values()), args.dtype)
        model = load(args.model_path, dtype=dtype, cpu_kernels=kernels)
        models.setdefault(model.kernels.name, model)
    with ExitStack() as stack:
        steps: dict[tuple[str, int], Callable[[], object]] = {}
        for name, model in models.items():
            cache = stack.enter_context(filled_cache(model, args.context, room=max(args.nodes)))
            for nodes in args.nodes:
                steps[name, nodes] = partial(one_step, model, cache, nodes)
        rows = measure(steps, args.rounds, args.seconds)
    name = str(next(iter(models.values())).dtype).removeprefix("torch.")
    table = results.table(
        "steps",
        f"{args.model_path}, {name}, {torch.get_num_threads()} threads: steps per second quiet, "
        "and beside a process that keeps one core busy; the share that is kept, median [quartiles]",
        COLUMNS,
    )
    for row in rows:
        table.add({"dtype": name, **row})


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.neighbour", "Steps beside a busy neighbour, on a CPU.")
    add = parser.add_argument
    add("--model-path", default=MODEL, help=MODEL_KINDS)
    add("--dtype", default="auto", help=AS_THERE)
    kinds = f"one or more, {AS_THERE}; they take turns"
    add("--cpu-kernels", nargs="+", default=["native", "packed", "plain"], help=kinds)
    add("--nodes", type=at_least(1), nargs="+", default=[1, 16], help="tree sizes")
    add("--context", type=at_least(1), default=256, help="committed tokens")
    add("--rounds", type=at_least(1), default=5, help="of each, quiet and busy in turn")
    add("--seconds", type=seconds_above_0, default=1.0, help="of each measurement")
    return run_benchmark(parser, argv, report)


if __name__ == "__main__":
    sys.exit(main())
