"""What a step costs by the number of nodes it verifies, and how far that is from what the machine
can do: python -m benchmarks.step_cost --help.

Node counts are measured in turn, round after round, so that drift of the machine hits all alike.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import LlamaConfig
from transformers.utils import logging

from evaluation.command.parser import Parser, at_least
from evaluation.pictures.style import new_figure, save_figure
from model.logitspec import DraftTree, LlamaKVForCausalLM, load
from model.logitspec.config import max_positions
from model.logitspec.cpu.choice import choose_kernels
from model.logitspec.devices import resolve_device, resolve_dtype
from model.logitspec.errors import InputError
from model.logitspec.layout import finish
from model.logitspec.linear import Linear
from model.logitspec.loading import choose_dtype, load_config
from model.logitspec.sizing.measuring import filled_cache, interleaved, wide_tree
from model.logitspec.verification import Verifier, find_verifier

from .measure import (
    SPREAD,
    Figures,
    Results,
    add_model_flags,
    grouped,
    lines,
    quartiles,
    run_benchmark,
)

# Shapes for --random-weights: right for step times, never for acceptance.
SHAPES = {
    "llama-7b": LlamaConfig(max_position_embeddings=8192),  # else Llama-2-7B's
    "llama-1b": LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, vocab_size=128_256, max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
}  # fmt: skip
LARGEST = {"cpu": 2048, "cuda": 8192}  # size of the square matrices of Machine.measure
SLOW = 2.0  # seconds of a product of the size for a CPU
COLUMNS = {
    "context": (7, "{context}"),
    "nodes": (5, "{nodes}"),
    "ms": (24, SPREAD),
    "x one node": (10, "{over_one:.2f}"),
    "reading": (7, "{reading_ms:.2f}"),
    "arithmetic": (10, "{arithmetic_ms:.2f}"),
    "x limit": (7, "{over_limit:.2f}"),
}


@dataclass(frozen=True)
class Machine:
    """What the device reaches when it does nothing else."""

    read_bytes_per_second: float
    flops_per_second: float  # of a large matrix product in the model's dtype

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype, rounds: int = 7) -> Machine:
        """Best of a few rounds: summing 256 MiB, and a product of two square matrices."""
        words = torch.ones(2**26, device=device)
        reading = min(seconds_of(lambda: words.sum(), device) for _ in range(rounds))
        # Larger matrices up to LARGEST, but not where one product takes seconds.
        for size in (256, 512, 1024, LARGEST[device.type]):
            square = torch.ones(size, size, dtype=dtype, device=device)
            product = min(seconds_of(lambda s=square: s @ s, device) for _ in range(rounds))  # type: ignore[misc]
            rate = 2 * size**3 / product
            if 2 * LARGEST["cpu"] ** 3 / rate > SLOW:
                break
        return cls(words.numel() * 4 / reading, rate)

    def better(self, other: Machine) -> Machine:
        """The best that either reached."""
        return Machine(
            max(self.read_bytes_per_second, other.read_bytes_per_second),
            max(self.flops_per_second, other.flops_per_second),
        )

    def limits(self, work: Work) -> dict[str, float]:
        """The milliseconds that work takes at least, to read and to compute."""
        return {
            "reading_ms": 1e3 * work.bytes_read / self.read_bytes_per_second,
            "arithmetic_ms": 1e3 * work.flops / self.flops_per_second,
        }


@dataclass(frozen=True)
class Work:
    """What one step has to do at least."""

    bytes_read: float  # every weight once, and the keys and values of the context
    flops: float

    @classmethod
    def of(cls, model: LlamaKVForCausalLM, context: int, nodes: int) -> Work:
        def numbers(linear: Linear) -> int:
            return sum(part.in_features * part.out_features for part in linear.linears)

        head = numbers(model.head)
        matrices = sum(numbers(linear) for layer in model.layers for linear in layer.linears)
        attention = model.layers[0].self_attn
        layers = len(model.layers)
        slot = 2 * layers * attention.kv_heads * attention.head_dim
        seen = layers * attention.heads * attention.head_dim * (context + nodes)
        return cls(
            bytes_read=model.dtype.itemsize * (matrices + head + slot * context),
            flops=2.0 * (nodes * (matrices + 2 * seen) + head),  # the head of one node at least
        )


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def step_times(
    model: LlamaKVForCausalLM, context: int, nodes: Sequence[int], rounds: int
) -> dict[int, tuple[list[float], list[float]]]:
    """Seconds of draft-tree verification (inputs up, forward, acceptance, result down), each round.

    Beside them the seconds of it that a GPU spent on the forward; none on a CPU.
    """
    on_device: dict[int, list[float]] = {n: [] for n in nodes}
    event = cast("Any", torch.cuda.Event)

    def on_cpu(step: Verifier, tree: DraftTree) -> None:
        step.build(tree)
        step.forward()
        step.accept()

    def on_gpu(step: Verifier, tree: DraftTree) -> None:
        start, end = event(enable_timing=True), event(enable_timing=True)
        step.build(tree)
        start.record()
        step.forward()
        end.record()
        step.accept()
        end.synchronize()
        on_device[len(tree)].append(start.elapsed_time(end) / 1e3)

    run = on_gpu if model.device.type == "cuda" else on_cpu
    with filled_cache(model, context, room=max(nodes)) as cache:
        step = find_verifier(model, cache, top_k=min(64, model.config.vocab_size))
        measured = interleaved({n: partial(run, step, wide_tree(n)) for n in nodes}, rounds)
    return {n: (seconds, on_device[n][1:]) for n, seconds in measured.items()}


def measure(
    model: LlamaKVForCausalLM, context: int, nodes: Sequence[int], rounds: int
) -> tuple[Machine, list[Figures]]:
    """The machine, at its best before and after, and for each number of nodes a step's figures."""
    machine = Machine.measure(model.device, model.dtype)
    times = step_times(model, context, nodes, rounds)
    machine = machine.better(Machine.measure(model.device, model.dtype))  # it drifts, too
    rows: list[Figures] = []
    for n, (seconds, on_device) in times.items():
        row: Figures = {"context": context, "nodes": n, **quartiles(seconds, 1e3)}
        row["over_one"] = row["median"] / (rows[0]["median"] if rows else row["median"])
        row |= machine.limits(Work.of(model, context, n))
        row["over_limit"] = row["median"] / max(row["reading_ms"], row["arithmetic_ms"])
        row["forward_ms"] = quartiles(on_device, 1e3)["median"] if on_device else None
        rows.append(row)
    return machine, rows


def random_model(
    shape: str, dtype: torch.dtype, device: str, cpu_kernels: str, cuda_graphs: str
) -> LlamaKVForCausalLM:
    """A model of random weights, for its step times."""
    config = SHAPES[shape]
    kernels = choose_kernels(config, dtype, device, cpu_kernels)
    with torch.device(device):
        model = LlamaKVForCausalLM._from_config(config, dtype=dtype)
    model.requires_grad_(False)
    return finish(model, kernels, cpu_kernels, cuda_graphs, keep_weights=False)


def draw(rows: Sequence[Figures], path: Path) -> None:
    """Step time over nodes, a line per context, beside the limits; a panel per dtype."""
    panels = grouped(rows, "{dtype}")
    figure = new_figure(5.4 * len(panels), 4.0)
    for place, (dtype, own) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for line, of_it in lines(axes, own, "context {context}", "nodes"):
            nodes = [row["nodes"] for row in of_it]
            limits = [max(row["reading_ms"], row["arithmetic_ms"]) for row in of_it]
            axes.plot(nodes, limits, linestyle=":", linewidth=1, color=line.get_color())
        axes.set(xticks=nodes, xlabel="nodes of the draft tree", ylabel="ms per step")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_title(f"{dtype}; dotted: the machine's limit", fontsize=10)
        axes.legend(frameon=False)
    save_figure(figure, path)


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    logging.disable_progress_bar()
    device = resolve_device(args.device)
    nodes = sorted({1, *args.nodes})
    if args.random_weights is not None and args.random_weights not in SHAPES:
        raise InputError(
            f"no shape {args.random_weights!r} for --random-weights; give {' or '.join(SHAPES)}"
        )
    if args.random_weights:
        config = SHAPES[args.random_weights]
        chosen = [resolve_dtype(name, device) for name in args.dtype]
    else:
        config = load_config(args.model_path)
        chosen = [
            choose_dtype(name, args.model_path, config, device, args.cpu_kernels)
            for name in args.dtype
        ]
    dtypes = list(dict.fromkeys(chosen))
    if max(args.context) + nodes[-1] > max_positions(config):
        raise InputError(
            f"a context of {max(args.context)} and {nodes[-1]} nodes exceed the model's "
            f"{max_positions(config)} positions; give less"
        )
    results = Results(args, device)
    kernels = {"cpu_kernels": args.cpu_kernels, "cuda_graphs": args.cuda_graphs}
    for dtype in dtypes:
        if args.random_weights:
            model = random_model(args.random_weights, dtype, device, **kernels)
        else:
            model = load(args.model_path, dtype=dtype, device_map=device, **kernels)
        name = str(dtype).removeprefix("torch.")
        made = f"{model.kernels.name} kernels{', CUDA graphs' if model.graphs else ''}"
        table = results.table(
            "steps",
            f"{args.random_weights or args.model_path}, {name}, {device}, {made}: a step, median "
            f"[quartiles] of {args.rounds} rounds, beside the machine's limits in ms (outside: of "
            "a GPU's step, not in its forward)",
            {**COLUMNS, "outside": (7, "{outside:.2f}")},
        )
        for context in args.context:
            machine, rows = measure(model, context, nodes, args.rounds)
            settings = {"dtype": name, "made": made, "context": context}
            results.add("machine", {**settings, **asdict(machine)})
            for row in rows:
                forward = row["forward_ms"]
                outside = None if forward is None else row["median"] - forward
                table.add({"dtype": name, **row}, outside=outside)
            print(
                f"at context {context} the machine read "
                f"{machine.read_bytes_per_second / 1e9:.1f} GB/s and multiplied at "
                f"{machine.flops_per_second / 1e9:.0f} GFLOP/s"
            )
        del model
        gc.collect()  # graphs and model refer to each other
    if args.plot:
        draw(results.content["steps"], args.plot)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.step_cost", "Step time by the number of tree nodes.")
    add = parser.add_argument
    add_model_flags(parser)
    add("--random-weights", metavar="SHAPE", help=f"instead of a checkpoint: {', '.join(SHAPES)}")
    add("--dtype", nargs="+", default=["auto"], help="one or more, as in the inference scripts")
    add("--context", type=at_least(1), nargs="+", default=[100, 700], help="committed tokens")
    add("--nodes", type=at_least(1), nargs="+", default=[8, 16, 32, 64], help="tree sizes, and 1")
    add("--rounds", type=at_least(1), default=15, help="measurements of each size")
    return run_benchmark(parser, argv, report, plot=True)


if __name__ == "__main__":
    sys.exit(main())
