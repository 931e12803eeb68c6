"""Does a step stay cheap as context and output grow?  python -m benchmarks.scale --help

Three measurements: a step over contexts, one long generation over its output, and the drafters,
without a model, over contexts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.asking.target import load_tokenizer
from evaluation.command.parser import Parser, at_least
from evaluation.pictures.style import new_figure, save_figure
from model.logitspec import DRAFTERS, InputError, LlamaKVForCausalLM, load
from model.logitspec.config import max_positions
from model.logitspec.cuda_graphs import node_bucket
from model.logitspec.decoding import check_lengths, decode
from model.logitspec.devices import resolve_device
from model.logitspec.ledger import DecodingResult
from model.logitspec.loading import choose_dtype, load_config
from model.logitspec.sizing.measuring import wide_tree

from . import memory
from .drafting_cost import measure_drafting
from .measure import (
    AS_THERE,
    SPREAD,
    Figures,
    PrintedTable,
    Results,
    add_model_flags,
    fill,
    growth,
    lines,
    quartiles,
    run_benchmark,
)
from .memory import in_mib
from .timing import step_times

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONTEXTS = [256, 512, 1024, 2048, 4096, 8128]  # 8192 positions, less a tree of 64 nodes
DRAFTED = [256, 512, 1024, 2048, 4096, 8192, 32768]  # contexts of the drafters
PROMPT = "Write a long story about a lighthouse keeper who learns to read the weather."
CONTEXT_COLUMNS = {
    "context": (7, "{context}"),
    "nodes": (5, "{nodes}"),
    "ms": (24, SPREAD),
    "attention": (9, "{attention_share:.0%}"),
    "cache MiB": (9, "{cache_mib:.0f}"),
    "held MiB": (8, "{held_mib:.0f}"),
}
WINDOW_COLUMNS = {"from token": (10, "{first}"), "steps": (5, "{steps}"), "ms": (24, SPREAD)}
# Of each measurement's picture: title, both axes, and what tells the lines apart.
PANELS = {
    "context": ("a step over the context", "committed tokens", "ms per step", "nodes: {nodes}"),
    "output": ("a step within one generation", "generated tokens", "ms per step", "{method}"),
    "drafting": (
        "drafting over the context",
        "context, tokens",
        "µs per step, draft and observe",
        "{drafter}",
    ),
}


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
    title = "step time over context: median [quartiles]"
    table = results.table("context", title, CONTEXT_COLUMNS)
    shortest: dict[int, float] = {}
    for context in contexts:
        times = step_times({"": model}, context, args.nodes, args.rounds)
        held = in_mib(memory.held(args.device))
        for (_, nodes), (seconds, _) in times.items():
            row: Figures = {"context": context, "nodes": nodes, **quartiles(seconds, 1e3)}
            first = shortest.setdefault(nodes, row["median"])
            row["attention_share"] = attention_share(row["median"], first)
            row["cache_mib"] = in_mib(model.caches.nbytes)
            row["held_mib"] = held
            table.add(row)


def attention_share(milliseconds: float, shortest: float) -> float:
    """Share of a step that grew with the context since the shortest one."""
    return max(0.0, 1 - shortest / milliseconds)


def measure_output(
    model: LlamaKVForCausalLM, prompt: list[int], args: argparse.Namespace, results: Results
) -> None:
    """A row per method: step time by windows of output, whether the cache moved, memory."""
    for name in ("vanilla", "logitspec"):
        drafter = DRAFTERS[name]()
        slots = len(prompt) + args.new_tokens + node_bucket(drafter.capacity)
        with model.cache(slots) as cache:  # the one that decode() finds
            before = cache.store.data_ptr(), cache.capacity
        memory.trim(args.device)
        fresh = memory.reset_peak(args.device)
        result = decode(model, prompt, drafter, max_new_tokens=args.new_tokens)
        peak = memory.peak(args.device)
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
        table = PrintedTable(
            f"{name}: {len(result.tokens)} tokens after {len(prompt)} in {result.steps} steps, "
            "milliseconds of a step: median [quartiles]",
            WINDOW_COLUMNS,
        )
        for window in windows:
            table.add(window)
        print(summary(row))


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


def summary(row: Figures) -> str:
    """How a step grew in one generation, and what memory the process held after it."""
    slope = row["growth_ms_per_1000_tokens"]
    return fill(
        f"growth of a step: {'-' if slope is None else f'{slope:+.2f} ms'} per 1000 tokens; the "
        f"cache of {{cache_capacity}} slots {'was' if row['cache_reallocated'] else 'was not'} "
        "reallocated; MiB held: {held_mib:.0f} = {weights_mib:.0f} weights + {cache_mib:.0f} cache "
        "+ {rest_mib:.0f} rest (the interpreter, PyTorch, work space), peak of {peak_of} "
        "{peak_mib:.0f}",
        row,
    )


def logarithmic(axes: Axes, contexts: Sequence[int], rows: Sequence[Figures]) -> None:
    """Both axes by powers, the ticks written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [str(place) for place in contexts], rotation=45, fontsize=8)
    axes.minorticks_off()
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    medians = [row["median"] for row in rows]
    names = -(-len(axes.lines) // 3)  # rows of the legend
    axes.set_ylim(min(medians) / 1.5, max(medians) * 3**names)  # room for it


def draw(rows: Mapping[str, Sequence[Figures]], only: Sequence[str], path: Path) -> None:
    """A panel for each measurement; quartiles are shaded but for the drafters."""
    figure = new_figure(4.6 * len(only), 4)
    panels = figure.subplots(1, len(only), squeeze=False).flat
    for name, axes in zip(only, panels, strict=True):
        title, xlabel, ylabel, label = PANELS[name]
        shown, x = rows[name], "context"
        if name == "output":
            shown = [{"method": row["method"], **w} for row in shown for w in row["windows"]]
            x = "first"
        for line, own in lines(axes, shown, label, x):
            if name != "drafting":
                low, high = ([row[end] for row in own] for end in ("low", "high"))
                shade: Any = {"color": line.get_color(), "alpha": 0.15, "linewidth": 0}
                axes.fill_between([row[x] for row in own], low, high, **shade)
        if name == "output":
            axes.set_ylim(0, 1.3 * max(window["high"] for window in shown))
        else:
            logarithmic(axes, sorted({row["context"] for row in shown}), shown)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")
    save_figure(figure, path)


def chosen(text: str) -> list[str]:
    """An argparse type: some of PANELS, between commas, in their order."""
    names = set(text.split(","))
    if not names <= set(PANELS):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not some of {','.join(PANELS)}, between commas"
        )
    return [name for name in PANELS if name in names]


def measure_model(args: argparse.Namespace, results: Results) -> None:
    """The measurements that need the model; what they cannot do is refused before it is loaded."""
    config = load_config(args.model_path)
    positions = max_positions(config)
    contexts, prompt = [], []
    if "context" in args.only:
        contexts = fitting(args.contexts, args.nodes, positions)
    if "output" in args.only:
        prompt = load_tokenizer(args.model_path)(args.prompt).input_ids
        check_lengths(len(prompt), args.new_tokens, positions)
    before = in_mib(memory.held(args.device))
    dtype = choose_dtype(args.dtype, args.model_path, config, args.device, args.cpu_kernels)
    kernels = {"cpu_kernels": args.cpu_kernels, "cuda_graphs": args.cuda_graphs}
    model = load(args.model_path, dtype=dtype, device_map=args.device, **kernels)
    row: Figures = {
        "dtype": str(model.dtype),
        "kernels": str(model.kernels),
        "weights_mib": in_mib(memory.weight_bytes(model)),
        "held_before_mib": before,
        "held_loaded_mib": in_mib(memory.held(args.device)),
    }
    results.add("load", row)
    said = (
        "{dtype}, {device}, kernels {kernels}; MiB held before loading: {held_before_mib:.0f}, "
        "after: {held_loaded_mib:.0f}, tensors of the model: {weights_mib:.0f}"
    )
    print(f"{args.model_path}, {fill(said, {'device': args.device, **row})}")
    if "output" in args.only:  # first: what the process holds then is what a generation needs
        measure_output(model, prompt, args, results)
    if "context" in args.only:
        measure_context(model, contexts, args, results)


def report(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    args.device = resolve_device(args.device)
    results = Results(args, args.device)
    if {"context", "output"} & set(args.only):
        measure_model(args, results)
    if "drafting" in args.only:
        measure_drafting(args, results)
    if args.plot is not None:
        draw(results.content, args.only, args.plot)


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.scale", "Step time as context and output grow.")
    add = parser.add_argument
    one: dict[str, Any] = {"type": at_least(1)}
    some: dict[str, Any] = {"type": at_least(1), "nargs": "+"}
    add_model_flags(parser)
    add("--dtype", default="auto", help=AS_THERE)
    which = "which measurements, between commas"
    add("--only", type=chosen, default=",".join(PANELS), metavar="NAMES", help=which)
    add("--contexts", **some, default=CONTEXTS, help="committed tokens before a step")
    add("--nodes", **some, default=[1, 16, 64], help="tree sizes")
    add("--rounds", **one, default=15, help="measurements of each size and context")
    add("--new-tokens", **one, default=4000, help="of the long generation; EOS is none")
    add("--window", **one, default=500, help="its step time by so many tokens")
    add("--prompt", default=PROMPT, help="of the long generation")
    add("--draft-contexts", **some, default=DRAFTED, help="tokens before a drafter's steps")
    add("--steps", **one, default=200, help="steps of a drafter at each context")
    return run_benchmark(parser, argv, report, plot=True)


if __name__ == "__main__":
    sys.exit(main())
