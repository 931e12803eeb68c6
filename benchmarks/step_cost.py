"""What a step costs by the number of nodes it verifies: python -m benchmarks.step_cost --help.

Node counts are measured in turn, round after round, so that drift of the machine hits all alike.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial

from evaluation.arguments import Parser, at_least, run_command
from evaluation.targets import resolve_device, resolve_dtype
from model.logitspec import DraftTree, KVCache, LlamaKVForCausalLM, load
from model.logitspec.decoding import prefill
from model.logitspec.verification import node_bucket, verify

from .measure import interleaved


def step_seconds(
    model: LlamaKVForCausalLM, context: int, nodes: list[int], rounds: int
) -> dict[int, list[float]]:
    """Seconds of draft-tree verification (inputs up, forward, acceptance, result down).

    Args:
        model: the target.
        context: committed tokens before the step.
        nodes: tree sizes to measure.
        rounds: measurements of each; one unmeasured round comes first.
    """
    cache = filled_cache(model, context, room=max(nodes))
    trees = {n: wide_tree(n) for n in nodes}
    return interleaved(
        {n: partial(verify, model, tree, cache, top_k=min(n, 64)) for n, tree in trees.items()},
        rounds,
    )


def filled_cache(model: LlamaKVForCausalLM, context: int, room: int) -> KVCache:
    """The model's cache with so many committed tokens, and slots for a tree of `room` nodes."""
    cache = model.cache_for(context + node_bucket(room))
    tokens = min(1000, model.config.vocab_size)
    prefill(model, [i % tokens for i in range(context)], cache, top_k=0)
    return cache


def wide_tree(nodes: int) -> DraftTree:
    """A tree whose nodes have four children each."""
    tree = DraftTree(5, nodes)
    while not tree.full:
        tree.add(len(tree), parent=len(tree) // 4)
    return tree


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    model = load(args.model_path, dtype=dtype, device_map=device)
    print(f"{args.model_path}, {dtype}, {device}, medians of {args.rounds} rounds")
    for context in args.context:
        measured = step_seconds(model, context, [1, *args.nodes], args.rounds)
        costs = {n: statistics.median(seconds) for n, seconds in measured.items()}
        for n, seconds in costs.items():
            print(
                f"context {context}, {n} nodes: {1e3 * seconds:.1f} ms, "
                f"{seconds / costs[1]:.2f} times one node"
            )


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.step_cost", "Step time by the number of tree nodes.")
    add = parser.add_argument
    add("--model-path", default="checkpoints/smollm2-135m-instruct", help="checkpoint or hub id")
    add("--dtype", default="auto", help="as in the inference scripts")
    add("--device", default="auto", help="as in the inference scripts")
    add("--context", type=at_least(1), nargs="+", default=[100, 700], help="committed tokens")
    add("--nodes", type=at_least(1), nargs="+", default=[8, 16, 32, 64], help="tree sizes")
    add("--rounds", type=at_least(1), default=9, help="measurements of each size")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
