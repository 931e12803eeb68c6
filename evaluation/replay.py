"""Accept lengths and predicted speed without the model: python -m evaluation.replay --help.

Greedy output is the same whatever the drafter. So a drafter can be asked for its trees over a
recording (record.py), and which nodes the target would accept is read off the recorded answer. What
a step would have taken is read off a step-cost curve.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from model.logitspec import Drafter, DraftTree
from model.logitspec.acceptance import agreed_path
from model.logitspec.decoding import check_capacity
from model.logitspec.errors import InputError
from model.logitspec.step_cost import StepCost

from .arguments import Parser, at_least, picture, run_command
from .comparison import Trace
from .methods import METHODS, DrafterMethod, Method, Options, SizedMethod, find_method, option_type
from .recordings import RecordedTurn, Recording, load_recording, load_step_costs
from .speed import list_tasks, task_of

MOST_CONFIGURATIONS = 10_000


@dataclass
class Replayed:
    """What a drafter did over one turn.

    Attributes:
        accept_lengths: tokens committed per step, as a live run's.
        tree_sizes: nodes per step.
        committed: tokens in the cache before each step.
        draft_seconds: of drafting and observing, all steps and the prompt.
    """

    accept_lengths: list[int] = field(default_factory=list)
    tree_sizes: list[int] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)
    draft_seconds: float = 0.0


class RecordedRows:
    """The best tokens after nodes of draft trees, as far as a recording of a turn knows them."""

    def __init__(self, turn: RecordedTurn, width: int) -> None:
        self._ids: list[int] = [*turn.prompt.tolist(), *turn.output.tolist()]
        self._rows: list[list[int]] = turn.top_ids[:, :width].tolist()
        self._nodes: dict[tuple[int, int], list[tuple[int, list[int]]]] = {}
        if turn.node_ids.shape[1] >= width:
            nodes = turn.node_ids[:, :width].tolist()
            for (at, before, token), row in zip(turn.node_at.tolist(), nodes, strict=True):
                self._nodes.setdefault((before, token), []).append((at, row))

    def of(self, tree: DraftTree, committed: int) -> list[list[int]]:
        """A row for each node; for one off the answer that of the nearest recorded node with the
        same token after the same token, and none where there is no such node."""
        rows: list[list[int]] = []
        right: list[bool] = []
        for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
            at = committed + tree.depths[node]
            right.append(
                at < len(self._ids) and token == self._ids[at] and (not node or right[parent])
            )
            if right[-1]:
                rows.append(self._rows[at])
            else:
                known = self._nodes.get((tree.tokens[parent], token))
                rows.append(min(known, key=lambda k: abs(k[0] - at))[1] if known else [])
        return rows


def replay_turn(turn: RecordedTurn, drafter: Drafter, rows: RecordedRows | None) -> Replayed:
    """Run a drafter over a recorded turn, as decoding.generate() would.

    Args:
        turn: recorded.
        drafter: prepared.
        rows: what it is to learn from; None: it learns from no node's best tokens.
    """
    done = Replayed()
    prompt, output = turn.prompt.tolist(), turn.output.tolist()
    first = len(prompt)
    top_ids = turn.top_ids[first - 1 :, : drafter.top_k].tolist()
    width = drafter.prompt_top_k
    clock = time.perf_counter
    start = clock()
    drafter.reset(prompt, turn.top_ids[:first, :width].tolist() if width else ())
    done.draft_seconds = clock() - start
    at = 0  # answered so far
    while at < len(output):
        start = clock()
        tree = check_capacity(drafter.draft(output[at], top_ids[at]), drafter)
        tree = tree.without_deeper_than(turn.max_new_tokens - at - 1)
        done.draft_seconds += clock() - start
        chosen = {
            node: output[at + depth + 1] if at + depth + 1 < len(output) else -1
            for node, depth in enumerate(tree.depths)
        }
        path, _ = agreed_path(tree, chosen)
        learnt = rows.of(tree, first + at) if rows is not None else []
        start = clock()
        drafter.observe(tree, path, learnt)
        done.draft_seconds += clock() - start
        done.accept_lengths.append(len(path))
        done.tree_sizes.append(len(tree))
        done.committed.append(first + at)
        at += len(path)
    return done


@dataclass(frozen=True)
class Configuration:
    """A method with its options, and those of them that a grid varies."""

    name: str  # as asked for
    options: tuple[tuple[str, Any], ...]  # all of them
    varied: tuple[tuple[str, Any], ...]

    @property
    def title(self) -> str:
        name = self.name.rpartition(":")[2]  # of a file's class the class
        return " ".join([name, *(f"{key}={value}" for key, value in self.varied)])

    def drafter(self) -> Drafter:
        return drafter_method(self.name).drafter(**dict(self.options))


@dataclass
class Summary:
    """What a configuration came to.

    Attributes:
        mats: by task, and `overall`.
        speeds: predicted tokens/s of every question.
        draft_ms: of drafting and observing, per step.
        estimated: it learns from nodes that the recording holds in part.
    """

    configuration: Configuration
    mats: dict[str, float]
    speeds: list[float]
    steps: int
    mean_nodes: float
    draft_ms: float
    estimated: bool


def drafter_method(name: str) -> DrafterMethod:
    """The drafter of this name.

    Raises:
        InputError: there is none.
    """
    method = find_method(name)
    plain = method.method if isinstance(method, SizedMethod) else method
    if not isinstance(plain, DrafterMethod):
        raise InputError(f"{name!r} is transformers' own loop and has no drafter to replay")
    return plain


def configurations(names: Sequence[str], grid: Mapping[str, Sequence[str]]) -> list[Configuration]:
    """Every method with every combination of the options in the grid that it has.

    Raises:
        InputError: an unknown method, a key that none of them has, or a value it cannot take.
    """
    if not names:
        raise InputError("--methods names none; give at least one")
    methods: dict[str, Method] = {name: find_method(name) for name in dict.fromkeys(names)}
    for key in grid:
        if not any(option.name == key for m in methods.values() for option in m.options):
            known = sorted({option.name for m in methods.values() for option in m.options})
            raise InputError(
                f"--grid: {key!r} is an option of none of {', '.join(methods)}; "
                f"there are {', '.join(known)}"
            )
    found = []
    for name, method in methods.items():
        drafter_method(name)
        sized = isinstance(method, SizedMethod)
        own = [
            option
            for option in method.options
            if option.name in grid and not (sized and option.name == "draft_tree_capacity")
        ]
        for values in itertools.product(*(parsed(option, grid[option.name]) for option in own)):
            varied = {option.name: value for option, value in zip(own, values, strict=True)}
            for option in own:
                if not option.takes(varied[option.name]):
                    raise InputError(f"--grid: {name} cannot do {option.name}=auto; leave it out")
            options: Options = method.settings(varied)
            method.check(options)
            found.append(Configuration(name, tuple(options.items()), tuple(varied.items())))
    if len(found) > MOST_CONFIGURATIONS:
        raise InputError(
            f"--grid makes {len(found)} configurations, more than {MOST_CONFIGURATIONS}; give less"
        )
    return found


def parsed(option: Any, texts: Sequence[str]) -> list[Any]:
    """Values of an option as the flag would read them."""
    if isinstance(option.default, bool):
        words = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
        for text in texts:
            if text.lower() not in words:
                raise InputError(f"--grid: {option.name}={text} is neither true nor false")
        return [words[text.lower()] for text in texts]
    read = option_type(option)
    try:
        return [read(text) for text in texts]
    except argparse.ArgumentTypeError as error:
        raise InputError(f"--grid: {option.name}: {error}") from error


def parse_grid(words: Sequence[str]) -> dict[str, list[str]]:
    """KEY=A,B,... words.

    Raises:
        InputError: a word that is none, a key twice, or no values.
    """
    grid: dict[str, list[str]] = {}
    for word in words:
        key, equals, values = word.partition("=")
        key = key.replace("-", "_")
        listed = list(dict.fromkeys(value.strip() for value in values.split(",") if value.strip()))
        if not equals or not listed:
            raise InputError(f"--grid {word!r} gives no values; write KEY=A,B,...")
        if key in grid:
            raise InputError(f"--grid names {key} twice; give all its values at once")
        grid[key] = listed
    return grid


def check_widths(recording: Recording, drafter: Drafter, title: str) -> None:
    """Raise InputError if a drafter wants more of the logits than was recorded."""
    for what, width in (
        ("the last logits", drafter.top_k),
        ("a node's logits", drafter.node_top_k),
        ("the prompt's logits", drafter.prompt_top_k),
    ):
        if recording.top_k < min(width, recording.settings["vocab_size"]):
            raise InputError(
                f"{title} wants the {width} best tokens of {what}, {recording.path} holds "
                f"{recording.top_k}; record with --top-k {width}, or lower its widths"
            )


def replay(
    recording: Recording, configuration: Configuration, cost: StepCost | None = None
) -> tuple[Summary, list[list[Replayed]]]:
    """Run a configuration over a whole recording.

    Args:
        recording: loaded.
        configuration: the method.
        cost: of a step, instead of the recorded one.

    Returns:
        The summary, and what was done on every turn of every question.
    """
    return replay_drafter(recording, configuration, configuration.drafter(), cost)


def replay_drafter(
    recording: Recording,
    configuration: Configuration,
    drafter: Drafter,
    cost: StepCost | None = None,
) -> tuple[Summary, list[list[Replayed]]]:
    """The same for a drafter that is there already; `configuration` only names it."""
    check_widths(recording, drafter, configuration.title)
    if cost is None:
        cost = recording.step_cost(drafter.top_k, drafter.node_top_k)
    else:
        recording.step_costs = {0: cost}
    drafter.prepare(recording)
    width = drafter.node_top_k
    done = []
    speeds = []
    for question in recording.questions:
        turns = [
            replay_turn(turn, drafter, RecordedRows(turn, width) if width else None)
            for turn in question.turns
        ]
        done.append(turns)
        seconds = sum(
            turn.prefill_seconds + answer.draft_seconds + sum(step_seconds(answer, cost))
            for turn, answer in zip(question.turns, turns, strict=True)
        )
        speeds.append(sum(len(turn.output) for turn in question.turns) / seconds)
    return summarize(recording, configuration, done, speeds, estimated=width > 0), done


CONTEXT_STEP = 64  # tokens of context after which the curve is taken anew


def step_seconds(done: Replayed, cost: StepCost) -> Iterator[float]:
    """What each step would take beside its drafting.

    Raises:
        InputError: a tree is larger than the curve goes.
    """
    curve: list[float] = []
    taken = -1
    for nodes, committed in zip(done.tree_sizes, done.committed, strict=True):
        if committed // CONTEXT_STEP != taken:
            taken = committed // CONTEXT_STEP
            curve = cost.curve(committed)
        if nodes >= len(curve):
            raise InputError(
                f"a tree of {nodes} nodes, and the step costs end at {len(curve) - 1}; "
                "give smaller capacities, or a file of --step-cost that goes further"
            )
        yield curve[nodes]


def summarize(
    recording: Recording,
    configuration: Configuration,
    done: Sequence[Sequence[Replayed]],
    speeds: list[float],
    *,
    estimated: bool,
) -> Summary:
    lengths: dict[str, list[int]] = {"overall": []}
    for question, turns in zip(recording.questions, done, strict=True):
        of_task = lengths.setdefault(task_of(question.category), [])
        for turn in turns:
            of_task += turn.accept_lengths
            lengths["overall"] += turn.accept_lengths
    steps = len(lengths["overall"])
    all_turns = [turn for turns in done for turn in turns]
    return Summary(
        configuration,
        {task: float(np.mean(of_task)) for task, of_task in lengths.items()},
        speeds,
        steps,
        sum(sum(turn.tree_sizes) for turn in all_turns) / steps,
        1e3 * sum(turn.draft_seconds for turn in all_turns) / steps,
        estimated,
    )


# What a worker process holds: loaded once, when it starts.
loaded: dict[str, Any] = {}


def start_worker(path: Path, stride: int, cost: StepCost | None) -> None:
    import torch

    torch.set_num_threads(1)
    loaded["recording"], loaded["cost"] = load_recording(path, stride), cost


def work(configuration: Configuration) -> Summary:
    summary, _ = replay(loaded["recording"], configuration, loaded["cost"])
    return summary


def replay_all(
    args: argparse.Namespace, wanted: Sequence[Configuration], cost: StepCost | None
) -> Iterator[tuple[int, Summary]]:
    """Summaries as they are done, each with its place among those wanted."""
    worker = (args.recording, args.question_stride, cost)
    if args.processes == 1 or len(wanted) == 1:
        start_worker(*worker)
        for at, configuration in enumerate(wanted):
            yield at, work(configuration)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(args.processes, len(wanted)), context, initializer=start_worker, initargs=worker
    ) as pool:
        places = {pool.submit(work, c): at for at, c in enumerate(wanted)}
        try:
            for future in as_completed(places):
                yield places[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


VANILLA = Configuration("vanilla", (), ())


def run(args: argparse.Namespace) -> None:
    """What main() does once the flags are parsed."""
    names = [name.strip() for name in args.methods.split(",") if name.strip()]
    wanted = configurations(names, parse_grid(args.grid))
    recording = load_recording(args.recording, args.question_stride)
    cost = None
    if args.step_cost is not None:
        costs = load_step_costs(args.step_cost)
        cost = costs[min(costs)]
    for configuration in wanted:
        check_widths(recording, configuration.drafter(), configuration.title)
    base, _ = replay(recording, VANILLA, cost)
    found: dict[int, Summary] = {}
    try:
        runs = replay_all(args, wanted, cost)
        for at, summary in tqdm(runs, total=len(wanted), unit="configuration"):
            found[at] = summary
    finally:
        done = [found[at] for at in sorted(found)]
        if done:
            show(recording, base, done, args)
    if args.against:
        compare_live(recording, base, done, args.against)


def compare_live(
    recording: Recording, base: Summary, done: Sequence[Summary], paths: Sequence[Path]
) -> None:
    """Print what live runs came to beside what their replay did.

    Raises:
        InputError: a trace is of another model, tokenizer or questions, or no configuration was
            replayed that it is a run of.
    """
    traces = [Trace.read(path) for path in paths]
    for trace in traces:
        check_same_run(recording, trace)
    vanilla = next((trace for trace in traces if trace.method == "vanilla"), None)
    table = Table(title="live beside replay", title_justify="left")
    headings = ("MAT live", "replay", "speedup live", "replay", "ratio", "answers alike")
    for heading in ("method", *headings):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for trace in traces:
        summary = next((s for s in done if is_run_of(trace, s.configuration)), None)
        if summary is None:
            if trace.method == "vanilla":
                continue
            raise InputError(
                f"--against {trace.path} is a run of {trace.method} with options that were not "
                "replayed; add it to --methods or --grid"
            )
        cells = [summary.configuration.title, f"{trace.mat:.3f}"]
        cells += [f"{summary.mats['overall']:.3f}", "–", "–", "–"]
        if vanilla is not None:
            live = float(trace.speeds().mean() / vanilla.speeds().mean())
            predicted = float(np.mean(summary.speeds) / np.mean(base.speeds))
            cells[3:] = f"{live:.3f}", f"{predicted:.3f}", f"{predicted / live:.3f}"
        cells.append(alike(recording, trace))
        table.add_row(*cells)
    Console(width=max(120, Console().width)).print(table)


def check_same_run(recording: Recording, trace: Trace) -> None:
    """Raise InputError unless a trace answers the recording's questions with its model."""
    for key in ("model_fingerprint", "template", "questions", "max_new_tokens", "dtype"):
        here, there = recording.settings.get(key), trace.settings.get(key)
        if here != there:
            raise InputError(
                f"--against {trace.path} was made with {key} {there!r}, the recording with "
                f"{here!r}; record or run anew with the same"
            )
    if {r["question_id"] for r in trace.records} != {q.question_id for q in recording.questions}:
        raise InputError(
            f"--against {trace.path} answers other questions than are replayed of "
            f"{recording.path}; run it over the same, or replay fewer with --question-stride"
        )


def is_run_of(trace: Trace, configuration: Configuration) -> bool:
    wanted = dict(configuration.options) | {"method": find_method(configuration.name).name}
    return all(trace.settings.get(key) == value for key, value in wanted.items())


def alike(recording: Recording, trace: Trace) -> str:
    """How many turns have the recorded answer."""
    recorded = [turn.output.tolist() for q in recording.questions for turn in q.turns]
    records = {record["question_id"]: record for record in trace.records}
    live = [
        ids
        for q in recording.questions
        for ids in records[q.question_id]["choices"][0].get("output_ids") or [None] * len(q.turns)
    ]
    same = sum(a == b for a, b in zip(recorded, live, strict=False))
    return f"{same} of {len(recorded)}"


def show(
    recording: Recording, base: Summary, done: Sequence[Summary], args: argparse.Namespace
) -> None:
    """Print the table; write the file and the picture that are wanted."""
    rows = [csv_row(base, summary) for summary in done]
    if args.csv is not None:
        write_csv(args.csv, rows)
    tasks = list_tasks([{"category": q.category} for q in recording.questions])
    table = Table(title=f"{recording.path}: {about(recording)}", title_justify="left")
    table.add_column("method", overflow="fold")
    headings = [*tasks, "MAT", "nodes", "draft ms", "tokens/s", "speedup"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for row, summary in zip(rows, done, strict=True):
        mark = "≈ " if summary.estimated else ""
        table.add_row(
            mark + summary.configuration.title,
            *(f"{summary.mats[task]:.2f}" for task in tasks),
            f"{row['mat']:.2f}", f"{row['mean_nodes']:.1f}", f"{row['draft_ms']:.3f}",
            f"{row['tokens_per_second']:.1f}", f"{row['speedup']:.2f}",
        )  # fmt: skip
    console = Console(width=max(120, Console().width))
    console.print(table)
    measured = f"of {args.step_cost}" if args.step_cost else "measured where the recording was made"
    print(
        "MAT by task and over all; tokens/s and speedup over the one-node loop are predicted from "
        f"step costs {measured}."
    )
    if any(summary.estimated for summary in done):
        print("≈: learns from nodes off the answer, of which the recording knows a part.")
    if args.plot is not None:
        from .replay_plots import draw

        titled = [row | {"title": s.configuration.title} for row, s in zip(rows, done, strict=True)]
        draw(titled, list(parse_grid(args.grid)), args.plot)


def about(recording: Recording) -> str:
    settings = recording.settings
    return (
        f"{len(recording.questions)} questions of {settings['bench_name']}, "
        f"{recording.tokens} tokens, {settings['model']}, {settings['dtype']}"
    )


def csv_row(base: Summary, summary: Summary) -> dict[str, Any]:
    """All numbers of a configuration under plain names."""
    return {
        "method": summary.configuration.name,
        **dict(summary.configuration.options),
        **dict(summary.configuration.varied),
        "estimated": int(summary.estimated),
        "steps": summary.steps,
        "mat": summary.mats["overall"],
        **{f"mat:{task}": mat for task, mat in summary.mats.items() if task != "overall"},
        "mean_nodes": summary.mean_nodes,
        "draft_ms": summary.draft_ms,
        "tokens_per_second": float(np.mean(summary.speeds)),
        "speedup": float(np.mean(summary.speeds) / np.mean(base.speeds)),
    }


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    numbers = (
        "estimated",
        "steps",
        "mat",
        "mean_nodes",
        "draft_ms",
        "tokens_per_second",
        "speedup",
    )
    keys = dict.fromkeys(key for row in rows for key in row)
    options = [key for key in keys if key not in numbers and ":" not in key]
    tasks = [key for key in keys if ":" in key]
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*options, *numbers, *tasks], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another file") from error


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m evaluation.replay", "Sweep drafters over a recording, without the model."
    )
    add = parser.add_argument
    add("--recording", required=True, type=Path, metavar="DIR", help="made by evaluation.record")
    drafters = [name for name, method in METHODS.items() if isinstance(method, DrafterMethod)]
    add(
        "--methods", required=True, metavar="A,B,...",
        help=f"{', '.join(drafters)}; NAME@16: with that tree capacity; FILE.py:CLASS: your own",
    )  # fmt: skip
    add(
        "--grid", nargs="+", default=[], metavar="KEY=A,B,...",
        help="options to vary, in all combinations; each method takes those it has",
    )  # fmt: skip
    add(
        "--question-stride", type=at_least(1), default=1, metavar="K",
        help="only every K-th of the recorded questions",
    )  # fmt: skip
    add(
        "--step-cost", type=Path, metavar="FILE",
        help="step costs of another machine, in the format of the recording's step-cost.json",
    )  # fmt: skip
    add(
        "--against", type=Path, nargs="+", default=[], metavar="TRACE",
        help="live runs of the same questions, to compare with; vanilla's for the speedup, too",
    )  # fmt: skip
    add("--processes", type=at_least(1, 256), default=os.cpu_count() or 1, help="to replay in")
    add("--csv", type=Path, metavar="FILE", help="all numbers, a line for each configuration")
    add("--plot", type=picture, metavar="FILE.png", help="draw them; needs the extra `plots`")
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run(args), "interrupted; what was replayed is above")


if __name__ == "__main__":
    sys.exit(main())
