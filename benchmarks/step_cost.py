"""What a step costs by the number of nodes it verifies, and how far that is from what the machine
can do: python -m benchmarks.step_cost --help.

Node counts are measured in turn, round after round, so that drift of the machine hits all alike.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, Qwen2Config
from transformers.utils import logging

from evaluation.command.parser import Parser, at_least
from evaluation.pictures.style import new_figure, save_figure
from model.logitspec import LlamaKVForCausalLM, load
from model.logitspec.config import max_positions
from model.logitspec.devices import resolve_device, resolve_dtype
from model.logitspec.errors import InputError
from model.logitspec.fastest import choose_kernels
from model.logitspec.layout import finish
from model.logitspec.loading import load_config

from .machine import Machine, Work, stored_bytes
from .measure import (
    SPREAD,
    Columns,
    Figures,
    PrintedTable,
    Results,
    add_model_flags,
    grouped,
    lines,
    quartiles,
    run_benchmark,
)
from .timing import prompt_times, step_times

# Shapes for --random-weights: right for step times, never for acceptance.
SHAPES = {
    "llama-7b": LlamaConfig(max_position_embeddings=8192),  # else Llama-2-7B's
    "llama-1b": LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, vocab_size=128_256, max_position_embeddings=8192,
        tie_word_embeddings=True,
    ),
    "qwen2.5-0.5b": Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, vocab_size=151_936, max_position_embeddings=32_768,
        tie_word_embeddings=True,
    ),
}  # fmt: skip


def compared(rows: Sequence[Figures]) -> Figures:
    """Rows that differ in their kernels alone as one: medians by name, and the first to the best
    of the others."""
    first, *others = rows
    best = min((row["median"] for row in others), default=None)
    wide = {**first, "over_others": None if best is None else first["median"] / best}
    for row in rows:
        wide |= {row["kernels"]: row["median"], f"{row['kernels']} x": row.get("over_one")}
    return wide


def columns(kernels: Sequence[str], *, prompts: bool = False) -> Columns:
    """Of a table of compared rows."""
    shown: dict[str, tuple[int, str]] = {"prompt": (7, "{tokens}")}
    if not prompts:
        shown = {"context": (7, "{context}"), "nodes": (5, "{nodes}")}
    if len(kernels) == 1:
        shown[f"{kernels[0]}, ms"] = (24, SPREAD)
    for name in kernels[len(kernels) == 1 :]:
        shown[f"{name}, ms"] = (10, f"{{{name}:.2f}}")
    if not prompts:
        shown |= {f"x one, {name}": (13, f"{{{name} x:.2f}}") for name in kernels}
    if len(kernels) > 1:
        shown[f"{kernels[0]} to best other"] = (21, "{over_others:.2f}")
    limits = {"reading": (7, "{reading_ms:.2f}"), "arithmetic": (10, "{arithmetic_ms:.2f}")}
    return shown | limits | {"x limit": (7, "{over_limit:.2f}")}


def measure(
    models: Mapping[str, LlamaKVForCausalLM],
    context: int,
    nodes: Sequence[int],
    rounds: int,
    stored: float | None = None,
) -> tuple[Machine, list[Figures]]:
    """The machine, at its best before and after, and a row for each number of nodes and model."""
    first = next(iter(models.values()))
    machine = Machine.measure(first.device, first.dtype)
    times = step_times(models, context, nodes, rounds)
    machine = machine.better(Machine.measure(first.device, first.dtype))  # it drifts, too
    rows: list[Figures] = []
    for n in nodes:
        for name, model in models.items():
            seconds, on_device = times[name, n]
            row: Figures = {"kernels": name, "context": context, "nodes": n}
            row |= quartiles(seconds, 1e3)
            row["over_one"] = row["median"] / quartiles(times[name, nodes[0]][0], 1e3)["median"]
            limited(row, machine, Work.of(model, context, n, stored))
            row["forward_ms"] = quartiles(on_device, 1e3)["median"] if on_device else None
            rows.append(row)
    return machine, rows


def measure_prompts(
    models: Mapping[str, LlamaKVForCausalLM],
    tokens: int,
    rounds: int,
    machine: Machine,
    stored: float | None,
) -> list[Figures]:
    """A row for each model: the milliseconds to read a prompt."""
    rows = []
    for name, seconds in prompt_times(models, tokens, rounds).items():
        row: Figures = {"kernels": name, "tokens": tokens, **quartiles(seconds, 1e3)}
        rows.append(limited(row, machine, Work.of_prompt(models[name], tokens, stored)))
    return rows


def limited(row: Figures, machine: Machine, work: Work) -> Figures:
    """A row of milliseconds with the machine's limits and the distance to the larger one."""
    row |= machine.limits(work)
    row["over_limit"] = row["median"] / max(row["reading_ms"], row["arithmetic_ms"])
    return row


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
    """Step time over nodes, a line per context and kernels, and the limits; a panel per dtype."""
    panels = grouped(rows, "{dtype}")
    figure = new_figure(5.4 * len(panels), 4.0)
    for place, (dtype, own) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for line, of_it in lines(axes, own, "{kernels}, context {context}", "nodes"):
            nodes = [row["nodes"] for row in of_it]
            limits = [max(row["reading_ms"], row["arithmetic_ms"]) for row in of_it]
            axes.plot(nodes, limits, linestyle=":", linewidth=1, color=line.get_color())
        ticks = [n for n in nodes if n == 1 or n >= nodes[-1] / 16]
        axes.set(xticks=ticks, xlabel="nodes of the draft tree", ylabel="ms per step")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_title(f"{dtype}; dotted: the machine's limit", fontsize=10)
        axes.legend(frameon=False)
    save_figure(figure, path)


def loaded(args: argparse.Namespace, dtype: str, device: str) -> dict[str, LlamaKVForCausalLM]:
    """The model on each of the kernels, by their names; the first decides what `auto` is."""
    models: dict[str, LlamaKVForCausalLM] = {}
    for kernels in dict.fromkeys(args.cpu_kernels):
        how = {"cpu_kernels": kernels, "cuda_graphs": args.cuda_graphs}
        same: str | torch.dtype = next((m.dtype for m in models.values()), dtype)
        if args.random_weights:
            own = resolve_dtype(same, device) if isinstance(same, str) else same
            model = random_model(args.random_weights, own, device, **how)
        else:
            model = load(args.model_path, dtype=same, device_map=device, **how)
        models.setdefault(model.kernels.name, model)
    return models


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    logging.disable_progress_bar()
    device = resolve_device(args.device)
    nodes = sorted({1, *args.nodes})
    if args.random_weights is not None and args.random_weights not in SHAPES:
        raise InputError(
            f"no shape {args.random_weights!r} for --random-weights; give {' or '.join(SHAPES)}"
        )
    dtypes = {resolve_dtype(name, device): name for name in reversed(args.dtype)}
    config = SHAPES[args.random_weights] if args.random_weights else load_config(args.model_path)
    longest = max((*args.context, *args.prompt))
    if longest + nodes[-1] > max_positions(config):
        raise InputError(
            f"a context of {longest} and {nodes[-1]} nodes exceed the "
            f"model's {max_positions(config)} positions; give less"
        )
    for kernels in args.cpu_kernels:
        for kind in dtypes:
            choose_kernels(config, kind, device, kernels)
    stored = None if args.random_weights else stored_bytes(args.model_path, config)
    results = Results(args, device)
    for dtype in reversed(dtypes.values()):
        models = loaded(args, dtype, device)
        measure_dtype(models, nodes, args, results, stored)
        del models
        gc.collect()  # graphs and model refer to each other
    if args.plot:
        draw(results.content["steps"], args.plot)


def measure_dtype(
    models: Mapping[str, LlamaKVForCausalLM],
    nodes: Sequence[int],
    args: argparse.Namespace,
    results: Results,
    stored: float | None,
) -> None:
    """Steps and prompts of one model on its kernels."""
    model = next(iter(models.values()))
    name = str(model.dtype).removeprefix("torch.")
    made = f"{', '.join(models)} kernels{', CUDA graphs' if model.graphs else ''}"
    table = PrintedTable(
        f"{args.random_weights or args.model_path}, {name}, {model.device}, {made}: a step, median "
        f"of {args.rounds} rounds, beside the machine's limits in ms (outside: of a GPU's step, "
        "not in its forward)",
        {**columns(list(models)), "outside": (7, "{outside:.2f}")},
    )
    for context in args.context:
        machine, rows = measure(models, context, nodes, args.rounds, stored)
        settings = {"dtype": name, "made": made, "context": context}
        results.add("machine", {**settings, **asdict(machine)})
        for row in rows:
            results.add("steps", {"dtype": name, **row})
        for same in grouped(rows, "{nodes}").values():
            forward = same[0]["forward_ms"]
            outside = None if forward is None else same[0]["median"] - forward
            table.add(compared(same), outside=outside)
        print(
            f"at context {context} the machine read "
            f"{machine.read_bytes_per_second / 1e9:.1f} GB/s and multiplied at "
            f"{machine.flops_per_second / 1e9:.0f} GFLOP/s"
        )
    if args.prompt:
        prompts = PrintedTable("reading a prompt", columns(list(models), prompts=True))
    for tokens in args.prompt:
        rows = measure_prompts(models, tokens, max(1, args.rounds // 3), machine, stored)
        for row in rows:
            results.add("prompts", {"dtype": name, **row})
        prompts.add(compared(rows))


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.step_cost", "Step time by the number of tree nodes.")
    add = parser.add_argument
    many: dict[str, Any] = {"type": at_least(1), "nargs": "+"}
    add_model_flags(parser, several_kernels=True)
    add("--random-weights", metavar="SHAPE", help=f"instead of a checkpoint: {', '.join(SHAPES)}")
    add("--dtype", nargs="+", default=["auto"], help="one or more, as in the inference scripts")
    add("--context", **many, default=[100, 700], help="committed tokens")
    add("--nodes", **many, default=[2, 4, 8, 16, 32, 64], help="tree sizes, and 1")
    prompts = "also the time to read prompts of so many tokens"
    add("--prompt", type=at_least(1), nargs="*", default=[], metavar="TOKENS", help=prompts)
    add("--rounds", type=at_least(1), default=15, help="measurements of each size")
    return run_benchmark(parser, argv, report, plot=True)


if __name__ == "__main__":
    sys.exit(main())
