"""What a step costs by the number of nodes it verifies, and how far that is from what the machine
can do: python -m benchmarks.step_cost --help.

Node counts are measured in turn, round after round, so that drift of the machine hits all alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig
from transformers.utils import logging

from evaluation.arguments import Parser, at_least, run_command
from evaluation.environment import describe_environment
from evaluation.plots import new_figure, require_matplotlib
from evaluation.targets import model_name, resolve_device, resolve_dtype
from model.logitspec import DraftTree, LlamaKVForCausalLM, load
from model.logitspec.decoding import prefill
from model.logitspec.errors import InputError
from model.logitspec.kernels import choose_kernels
from model.logitspec.verification import use_graphs, verifier

# Shapes for --random-weights: right for step times, never for acceptance.
SHAPES = {
    "llama-7b": LlamaConfig(max_position_embeddings=8192),  # else Llama-2-7B's
    "llama-1b": LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, vocab_size=128_256, max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """What the device reaches when it does nothing else."""

    read_bytes_per_second: float
    flops_per_second: float  # of a large matrix product in the model's dtype

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype, rounds: int = 7) -> Machine:
        """Best of a few rounds: summing 256 MiB, and a product of two square matrices."""
        words = torch.ones(2**26, device=device)
        size = 2048 if device.type == "cpu" else 8192
        square = torch.ones(size, size, dtype=dtype, device=device)
        reading = min(seconds_of(lambda: words.sum(), device) for _ in range(rounds))
        product = min(seconds_of(lambda: square @ square, device) for _ in range(rounds))
        return cls(words.numel() * 4 / reading, 2 * size**3 / product)


@dataclass(frozen=True)
class Work:
    """What one step has to do at least."""

    bytes_read: float  # every weight once, and the keys and values of the context
    flops: float

    @classmethod
    def of(cls, model: LlamaKVForCausalLM, context: int, nodes: int) -> Work:
        matrices = sum(
            linear.linears[i].in_features * linear.linears[i].out_features
            for linear in (*(part for layer in model.layers for part in layer.linears), model.head)
            for i in range(len(linear.linears))
        )
        attention = model.layers[0].self_attn
        layers = len(model.layers)
        slot = 2 * layers * attention.kv_heads * attention.head_dim
        seen = layers * attention.heads * attention.head_dim * (context + nodes)
        return cls(
            bytes_read=model.dtype.itemsize * (matrices + slot * context),
            flops=2.0 * nodes * (matrices + 2 * seen),
        )


@dataclass(frozen=True)
class StepCost:
    """Times of a step, in milliseconds."""

    dtype: str
    context: int
    nodes: int
    median: float
    quartiles: tuple[float, float]
    reading_limit: float
    arithmetic_limit: float
    on_device: float | None  # of it, the forward on a GPU; None on a CPU

    @property
    def distance(self) -> float:
        """How many times the nearer limit the step takes."""
        return self.median / max(self.reading_limit, self.arithmetic_limit)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def bushy_tree(nodes: int) -> DraftTree:
    """A tree whose nodes have four children each."""
    tree = DraftTree(5, nodes)
    while not tree.full:
        tree.add(len(tree), parent=len(tree) // 4)
    return tree


def step_times(
    model: LlamaKVForCausalLM, context: int, nodes: Sequence[int], rounds: int
) -> dict[int, list[tuple[float, float | None]]]:
    """Seconds of draft-tree verification (inputs up, forward, acceptance, result down), each round.

    Beside them, on a GPU, the seconds that the device spent on the forward.

    Args:
        model: the target.
        context: committed tokens before the step.
        nodes: tree sizes to measure.
        rounds: measurements of each; two unmeasured rounds come first.
    """
    cache = model.cache_for(context + max(nodes) + 64)
    prefill(model, [i % 1000 for i in range(context)], cache, top_k=0)
    trees = {n: bushy_tree(n) for n in nodes}
    step = verifier(model, cache, top_k=8)
    times: dict[int, list[tuple[float, float | None]]] = {n: [] for n in nodes}
    for _ in range(rounds + 2):
        for n, tree in trees.items():
            events: list[Any] = []
            if model.device.type == "cuda":
                event = cast("Any", torch.cuda.Event)
                events = [event(enable_timing=True), event(enable_timing=True)]
            start = time.perf_counter()
            step.build(tree)
            if events:
                events[0].record()
            step.forward()
            if events:
                events[1].record()
            step.accept()
            seconds = time.perf_counter() - start
            device = None
            if events:
                events[1].synchronize()
                device = events[0].elapsed_time(events[1]) / 1e3
            times[n].append((seconds, device))
    return {n: measured[2:] for n, measured in times.items()}


def step_seconds(
    model: LlamaKVForCausalLM, context: int, nodes: Sequence[int], rounds: int
) -> dict[int, float]:
    """Median seconds of a step for each number of nodes; arguments as of step_times."""
    times = step_times(model, context, nodes, rounds)
    return {n: statistics.median(wall for wall, _ in measured) for n, measured in times.items()}


def measure(
    model: LlamaKVForCausalLM, machine: Machine, context: int, nodes: Sequence[int], rounds: int
) -> list[StepCost]:
    """The cost of a step behind a context for each number of nodes, beside the machine's limits."""
    costs = []
    for n, times in step_times(model, context, nodes, rounds).items():
        wall = [1e3 * seconds for seconds, _ in times]
        on_device = [1e3 * device for _, device in times if device is not None]
        low, median, high = quartiles(wall)
        work = Work.of(model, context, n)
        costs.append(
            StepCost(
                dtype=str(model.dtype).removeprefix("torch."),
                context=context,
                nodes=n,
                median=median,
                quartiles=(low, high),
                reading_limit=1e3 * work.bytes_read / machine.read_bytes_per_second,
                arithmetic_limit=1e3 * work.flops / machine.flops_per_second,
                on_device=statistics.median(on_device) if on_device else None,
            )
        )
    return costs


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; of a single value, that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def random_model(
    shape: str, dtype: torch.dtype, device: str, cpu_kernels: str, cuda_graphs: str
) -> LlamaKVForCausalLM:
    """A model of random weights, for its step times."""
    config = SHAPES[shape]
    kernels = choose_kernels(config, dtype, device, cpu_kernels)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaKVForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.eval().requires_grad_(False)
    model.fuse()
    model.use(kernels, keep_weights=False)
    use_graphs(model, cuda_graphs)
    return model


def table(costs: Sequence[StepCost]) -> Table:
    """The costs of one dtype, for the terminal."""
    columns = ["context", "nodes", "ms", "quartiles", "x one node", "reading ms", "arithmetic ms"]
    columns.append("x limit")
    if costs[0].on_device is not None:
        columns.append("outside the forward, ms")
    found = Table(*columns, title=costs[0].dtype)
    for cost in costs:
        one = next(c for c in costs if c.context == cost.context and c.nodes == 1)
        row = [
            str(cost.context),
            str(cost.nodes),
            f"{cost.median:.2f}",
            f"{cost.quartiles[0]:.2f} to {cost.quartiles[1]:.2f}",
            f"{cost.median / one.median:.2f}",
            f"{cost.reading_limit:.2f}",
            f"{cost.arithmetic_limit:.2f}",
            f"{cost.distance:.2f}",
        ]
        if cost.on_device is not None:
            row.append(f"{cost.median - cost.on_device:.2f}")
        found.add_row(*row)
    return found


def plot(costs: Sequence[StepCost], path: Path) -> None:
    """Step time over nodes, a line per context, beside the limits; a panel per dtype."""
    dtypes = list(dict.fromkeys(cost.dtype for cost in costs))
    figure = new_figure(6.4 * len(dtypes))
    for place, dtype in enumerate(dtypes, start=1):
        axes = figure.add_subplot(1, len(dtypes), place)
        for context in dict.fromkeys(cost.context for cost in costs):
            line = [c for c in costs if c.dtype == dtype and c.context == context]
            nodes = [c.nodes for c in line]
            (drawn,) = axes.plot(nodes, [c.median for c in line], marker="o", label=f"{context}")
            limits = [max(c.reading_limit, c.arithmetic_limit) for c in line]
            axes.plot(nodes, limits, linestyle=":", color=drawn.get_color())
        axes.set_xscale("log", base=2)
        axes.set_xticks(nodes, [str(n) for n in nodes])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("nodes of the draft tree")
        axes.set_ylabel("ms per step")
        axes.set_title(f"{dtype}; dotted: the machine's limit")
        axes.legend(title="context")
    figure.savefig(path, dpi=150)


def write_json(path: Path, content: Any) -> None:
    """Replace a file by this JSON, whole or not at all."""
    new = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another place") from error


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    device = resolve_device(args.device)
    logging.disable_progress_bar()
    nodes = sorted({1, *args.nodes})
    if args.plot:
        require_matplotlib()  # now, not after the measurements
    if args.random_weights is not None and args.random_weights not in SHAPES:
        raise InputError(
            f"no shape {args.random_weights!r} for --random-weights; give {' or '.join(SHAPES)}"
        )
    dtypes = list(dict.fromkeys(resolve_dtype(name, device) for name in args.dtype))
    name = args.random_weights or model_name(args.model_path)
    costs: list[StepCost] = []
    machines: dict[str, Any] = {}
    result: dict[str, Any] = {}
    for dtype in dtypes:
        if args.random_weights:
            model = random_model(
                args.random_weights, dtype, device, args.cpu_kernels, args.cuda_graphs
            )
        else:
            model = load(
                args.model_path, dtype=dtype, device_map=device,
                cpu_kernels=args.cpu_kernels, cuda_graphs=args.cuda_graphs,
            )  # fmt: skip
        longest = max(args.context) + nodes[-1]
        if longest > model.max_positions:
            raise InputError(
                f"a context of {max(args.context)} and {nodes[-1]} nodes exceed the model's "
                f"{model.max_positions} positions; give less"
            )
        machine = Machine.measure(torch.device(device), dtype)
        machines[str(dtype).removeprefix("torch.")] = asdict(machine)
        print(
            f"{name}, {dtype}, {device}, {model.kernels} kernels"
            f"{', CUDA graphs' if model.graphs else ''}, {args.rounds} rounds; the machine reads "
            f"{machine.read_bytes_per_second / 1e9:.1f} GB/s and multiplies at "
            f"{machine.flops_per_second / 1e9:.0f} GFLOP/s"
        )
        own: list[StepCost] = []
        for context in args.context:
            own += measure(model, machine, context, nodes, args.rounds)
            costs += own[-len(nodes) :]
            result = {
                "model": name,
                "device": device,
                "kernels": model.kernels.name,
                "cuda_graphs": model.graphs,
                "rounds": args.rounds,
                "environment": describe_environment(device),
                "machine": machines,
                "costs": [asdict(cost) | {"distance": cost.distance} for cost in costs],
            }
            if args.json:
                write_json(args.json, result)
        Console(width=None if sys.stdout.isatty() else 120).print(table(own))
        del model
    if args.plot:
        plot(costs, args.plot)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.step_cost", "Step time by the number of tree nodes.")
    add = parser.add_argument
    add("--model-path", default="checkpoints/smollm2-135m-instruct", help="checkpoint or hub id")
    add("--random-weights", metavar="SHAPE", help=f"instead of a checkpoint: {', '.join(SHAPES)}")
    add("--dtype", nargs="+", default=["auto"], help="one or more, as in the inference scripts")
    add("--device", default="auto", help="as in the inference scripts")
    add("--cpu-kernels", default="auto", help="as in the inference scripts")
    add("--cuda-graphs", default="auto", help="as in the inference scripts")
    add("--context", type=at_least(1), nargs="+", default=[100, 700], help="committed tokens")
    add("--nodes", type=at_least(1), nargs="+", default=[8, 16, 32, 64], help="tree sizes, and 1")
    add("--rounds", type=at_least(1), default=15, help="measurements of each size")
    add("--json", type=Path, metavar="FILE", help="write everything there, too")
    add("--plot", type=Path, metavar="FILE.png", help="draw the curves (extra `plots`)")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
