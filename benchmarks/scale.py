"""Does a step stay cheap as context and output grow?  python -m benchmarks.scale --help

Three measurements: a step over contexts, one long generation over its output, and the drafters,
without a model, over contexts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation.asking.target import load_tokenizer
from evaluation.command.exits import run_command
from evaluation.command.parser import Parser, at_least
from evaluation.pictures.style import line_style, new_figure, require_matplotlib, save_figure
from model.logitspec import DRAFTERS, InputError, LlamaKVForCausalLM, load
from model.logitspec.config import max_positions
from model.logitspec.cuda_graphs import node_bucket
from model.logitspec.decoding import check_lengths, decode
from model.logitspec.devices import resolve_device, resolve_dtype
from model.logitspec.ledger import DecodingResult
from model.logitspec.loading import load_config
from model.logitspec.sizing.measuring import wide_tree

from . import memory
from .drafting_cost import measure_drafting
from .measure import (
    INTERRUPTED,
    Figures,
    PrintedTable,
    Results,
    add_model_flags,
    add_output_flags,
    quartiles,
    spread,
)
from .memory import MIB
from .step_cost import step_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASUREMENTS = ("context", "output", "drafting")
METHODS = ("vanilla", "logitspec")  # of the long generation
PROMPT = "Write a long story about a lighthouse keeper who learns to read the weather."


def in_mib(size: int | None) -> float | None:
    return None if size is None else size / MIB


def shown(mib: float | None) -> str:
    """MiB in a table; a dash where the system does not say."""
    return "-" if mib is None else f"{mib:.0f}"


# A step over contexts ---------------------------------------------------------------------------


def fitting(contexts: Sequence[int], nodes: Sequence[int], positions: int) -> list[int]:
    """The contexts, ascending, behind which the model has positions for the largest tree.

    Raises:
        InputError: none of them.
    """
    depth = max(wide_tree(max(nodes)).depths)
    fit = [context for context in sorted(set(contexts)) if context + depth < positions]
    left_out = sorted(set(contexts) - set(fit))
    said = f"{', '.join(map(str, left_out))}: the model has {positions} positions"
    if not fit:
        raise InputError(
            f"no step of {depth + 1} positions fits behind a context of {said}; give --contexts "
            "shorter ones"
        )
    if left_out:
        print(f"left out, contexts of {said} and a tree needs {depth + 1} more")
    return fit


def measure_context(
    model: LlamaKVForCausalLM, contexts: Sequence[int], args: argparse.Namespace, results: Results
) -> None:
    """A row per context and tree size: milliseconds of a step, memory, the share of attention.

    What a step costs beyond the same at the shortest context is attention, for nothing else in it
    sees the context: so that share leaves out what attention costs there.
    """
    table = PrintedTable(
        "step time over context: median [quartiles]",
        {"context": 7, "nodes": 5, "ms": 24, "attention": 9, "cache MiB": 9, "held MiB": 8},
    )
    shortest: dict[int, float] = {}
    for context in contexts:
        seconds = step_seconds(model, context, args.nodes, args.rounds)
        memory.trim(args.device)
        held = in_mib(memory.held(args.device))
        for nodes, measured in seconds.items():
            row: Figures = {"context": context, "nodes": nodes, **quartiles(measured, 1e3)}
            first = shortest.setdefault(nodes, row["median"])
            row["attention_share"] = attention_share(row["median"], first)
            row["cache_mib"] = model.caches.nbytes / MIB
            row["held_mib"] = held
            results.add("context", row)
            share = f"{row['attention_share']:.0%}"
            table.add(context, nodes, spread(row), share, shown(row["cache_mib"]), shown(held))


def attention_share(milliseconds: float, shortest: float) -> float:
    """Share of a step that grew with the context since the shortest one."""
    return max(0.0, 1 - shortest / milliseconds)


# One long generation ----------------------------------------------------------------------------


def measure_output(
    model: LlamaKVForCausalLM, prompt: list[int], args: argparse.Namespace, results: Results
) -> None:
    """A row per method: step time by windows of output, whether the cache moved, memory."""
    for name in METHODS:
        drafter = DRAFTERS[name]()
        slots = len(prompt) + args.new_tokens + node_bucket(drafter.capacity)
        with model.cache(slots) as cache:  # the one that decode() finds
            before = cache.store.data_ptr(), cache.capacity
        memory.trim(args.device)
        fresh = memory.reset_peak(args.device)
        result = decode(model, prompt, drafter, max_new_tokens=args.new_tokens)
        peak = memory.peak(args.device)
        memory.trim(args.device)
        held = memory.held(args.device)
        weights = memory.weight_bytes(model)
        with model.cache(1) as after:
            now = after.store.data_ptr(), after.capacity
            cache_bytes = after.nbytes
        windows = windowed(result, args.window)
        row: Figures = {
            "method": name,
            "prompt_tokens": len(prompt),
            "new_tokens": len(result.tokens),
            "steps": result.steps,
            "windows": windows,
            "growth_ms_per_1000_tokens": growth(windows),
            "cache_capacity": now[1],
            "cache_reallocated": now != before,
            "weights_mib": in_mib(weights),
            "cache_mib": in_mib(cache_bytes),
            "held_mib": in_mib(held),
            "rest_mib": None if held is None else in_mib(held - weights - cache_bytes),
            "peak_mib": in_mib(peak),
            "peak_of": "the generation" if fresh else "the process",
        }
        results.add("output", row)
        show_output(row)


def windowed(result: DecodingResult, size: int) -> list[Figures]:
    """Step time in windows of `size` generated tokens, by the token a step begins at.

    Tokens, not steps: a method that accepts much takes few steps. Windows without a step are not
    there, nor is an unfinished one at the end if there is another.
    """
    begins = np.cumsum([0, *result.accept_lengths])[:-1]
    windows: list[Figures] = []
    for first in range(0, len(result.tokens), size):
        inside = (begins >= first) & (begins < first + size)
        if windows and first + size > len(result.tokens):
            break
        if inside.any():
            seconds = np.asarray(result.step_seconds)[inside].tolist()
            windows.append({"first": first, "steps": len(seconds), **quartiles(seconds, 1e3)})
    return windows


def growth(windows: Sequence[Figures]) -> float | None:
    """Milliseconds that a step's median grows by in 1000 tokens: a line through the windows.

    None where there are fewer than two.
    """
    if len(windows) < 2:
        return None
    slope, _ = np.polyfit([w["first"] for w in windows], [w["median"] for w in windows], 1)
    return 1e3 * float(slope)


def show_output(row: Figures) -> None:
    table = PrintedTable(
        f"{row['method']}: {row['new_tokens']} tokens after {row['prompt_tokens']} in "
        f"{row['steps']} steps, milliseconds of a step: median [quartiles]",
        {"from token": 10, "steps": 5, "ms": 24},
    )
    for window in row["windows"]:
        table.add(window["first"], window["steps"], spread(window))
    print(summary(row))


def summary(row: Figures) -> str:
    """How a step grew in one generation, and what memory the process held after it."""
    slope = row["growth_ms_per_1000_tokens"]
    moved = "was" if row["cache_reallocated"] else "was not"
    return (
        f"growth of a step: {'-' if slope is None else f'{slope:+.2f} ms'} per 1000 tokens; the "
        f"cache of {row['cache_capacity']} slots {moved} reallocated; MiB held: "
        f"{shown(row['held_mib'])} = {shown(row['weights_mib'])} weights + "
        f"{shown(row['cache_mib'])} cache + {shown(row['rest_mib'])} rest (the interpreter, "
        f"PyTorch, work space), peak of {row['peak_of']} {shown(row['peak_mib'])}"
    )


# The pictures -----------------------------------------------------------------------------------


def lines(
    axes: Axes,
    rows: Sequence[Figures],
    label: Callable[[Figures], str],
    place: Callable[[Figures], float],
    *,
    shaded: bool = True,
) -> None:
    """A line through the medians of the rows of one label, its quartiles shaded if wanted."""
    by_label: dict[str, list[Figures]] = {}
    for row in rows:
        by_label.setdefault(label(row), []).append(row)
    for index, (name, of_it) in enumerate(by_label.items()):
        style = line_style(index, len(by_label))
        places = [place(row) for row in of_it]
        axes.plot(places, [row["median"] for row in of_it], label=name, **style)
        if shaded:
            low, high = ([row[end] for row in of_it] for end in ("low", "high"))
            axes.fill_between(places, low, high, color=style["color"], alpha=0.15, linewidth=0)


def plot_context(axes: Axes, rows: Sequence[Figures]) -> None:
    lines(axes, rows, lambda row: f"nodes: {row['nodes']}", lambda row: row["context"])
    logarithmic(axes, [row["context"] for row in rows], rows)
    axes.set_title("a step over the context", fontsize=10)
    axes.set_xlabel("committed tokens")
    axes.set_ylabel("ms per step")


def plot_output(axes: Axes, rows: Sequence[Figures]) -> None:
    windows = [{"method": row["method"], **w} for row in rows for w in row["windows"]]
    lines(axes, windows, lambda row: row["method"], lambda row: row["first"])
    axes.set_title("a step within one generation", fontsize=10)
    axes.set_xlabel("generated tokens")
    axes.set_ylabel("ms per step")
    axes.set_ylim(0, 1.3 * max(window["high"] for window in windows))


def plot_drafting(axes: Axes, rows: Sequence[Figures]) -> None:
    lines(axes, rows, lambda row: row["drafter"], lambda row: row["context"], shaded=False)
    logarithmic(axes, [row["context"] for row in rows], rows)
    axes.set_title("drafting over the context", fontsize=10)
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("µs per step, draft and observe")


def logarithmic(axes: Axes, contexts: Sequence[int], rows: Sequence[Figures]) -> None:
    """Both axes by powers, the ticks written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    places = sorted(set(contexts))
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [str(place) for place in places], rotation=45, fontsize=8)
    axes.minorticks_off()
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    medians = [row["median"] for row in rows]
    axes.set_ylim(min(medians) / 1.5, max(medians) * 3)  # room for the legend


PLOTS: Mapping[str, Callable[[Axes, Sequence[Figures]], None]] = {
    "context": plot_context,
    "output": plot_output,
    "drafting": plot_drafting,
}


def draw(rows: Mapping[str, Sequence[Figures]], only: Sequence[str], path: Path) -> None:
    figure = new_figure(4.6 * len(only), 4)
    panels = figure.subplots(1, len(only), squeeze=False).flat
    for name, axes in zip(only, panels, strict=True):
        PLOTS[name](axes, rows[name])
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")
    save_figure(figure, path)


# The command ------------------------------------------------------------------------------------


def chosen(text: str) -> list[str]:
    """An argparse type: some of MEASUREMENTS, between commas, in their order."""
    names = set(text.split(","))
    if not names <= set(MEASUREMENTS):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not some of {','.join(MEASUREMENTS)}, between commas"
        )
    return [name for name in MEASUREMENTS if name in names]


def measure_model(args: argparse.Namespace, results: Results) -> None:
    """The measurements that need the model; what they cannot do is refused before it is loaded."""
    positions = max_positions(load_config(args.model_path))
    contexts, prompt = [], []
    if "context" in args.only:
        contexts = fitting(args.contexts, args.nodes, positions)
    if "output" in args.only:
        prompt = load_tokenizer(args.model_path)(args.prompt).input_ids
        check_lengths(len(prompt), args.new_tokens, positions)
    memory.trim(args.device)
    before = memory.held(args.device)
    model = load(
        args.model_path,
        dtype=resolve_dtype(args.dtype, args.device),
        device_map=args.device,
        cpu_kernels=args.cpu_kernels,
        cuda_graphs=args.cuda_graphs,
    )
    memory.trim(args.device)
    loaded = memory.held(args.device)
    row: Figures = {
        "dtype": str(model.dtype),
        "kernels": str(model.kernels),
        "weights_mib": in_mib(memory.weight_bytes(model)),
        "held_before_mib": in_mib(before),
        "held_loaded_mib": in_mib(loaded),
    }
    results.add("load", row)
    print(
        f"{args.model_path}, {model.dtype}, {args.device}, kernels {model.kernels}; MiB held "
        f"before loading: {shown(row['held_before_mib'])}, after: {shown(row['held_loaded_mib'])}, "
        f"tensors of the model: {shown(row['weights_mib'])}"
    )
    if "output" in args.only:  # first: what the process holds then is what a generation needs
        measure_output(model, prompt, args, results)
    if "context" in args.only:
        measure_context(model, contexts, args, results)


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    args.device = resolve_device(args.device)
    if args.plot is not None:
        require_matplotlib()  # now, not after the measurements
    results = Results(args.json, vars(args), args.device)
    if {"context", "output"} & set(args.only):
        measure_model(args, results)
    if "drafting" in args.only:
        measure_drafting(args, results)
    if args.plot is not None:
        draw(results.content, args.only, args.plot)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.scale", "Step time as context and output grow.")
    add = parser.add_argument
    add_model_flags(parser)
    add("--dtype", default="auto", help="as in the inference scripts")
    add(
        "--only",
        type=chosen,
        default=",".join(MEASUREMENTS),
        metavar="NAMES",
        help="which measurements, between commas",
    )
    add(
        "--contexts",
        type=at_least(1),
        nargs="+",
        default=[256, 512, 1024, 2048, 4096, 8128],  # 8192 positions, less a tree of 64 nodes
        help="committed tokens before a step",
    )
    add("--nodes", type=at_least(1), nargs="+", default=[1, 16, 64], help="tree sizes")
    add("--rounds", type=at_least(1), default=15, help="measurements of each size and context")
    add("--new-tokens", type=at_least(1), default=4000, help="of the long generation; EOS is none")
    add("--window", type=at_least(1), default=500, help="its step time by so many tokens")
    add("--prompt", default=PROMPT, help="of the long generation")
    add(
        "--draft-contexts",
        type=at_least(1),
        nargs="+",
        default=[256, 512, 1024, 2048, 4096, 8192, 32768],
        help="tokens before a drafter's steps",
    )
    add("--steps", type=at_least(1), default=200, help="steps of a drafter at each context")
    add_output_flags(parser, plot=True)
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: report(args), INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
