"""Pictures of several methods, from their traces; plots.py and report.py write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.logitspec.errors import InputError

from ..tabulating.columns import speedup
from ..tabulating.phases import step_milliseconds
from ..traces.comparing import Comparison, Trace, shown
from .style import (
    FORMATS,
    HATCHES,
    Look,
    looks,
    new_figure,
    require_matplotlib,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST = 12  # accept lengths from here on share a bar
COLUMNS = 4  # of panels
FEWEST = 20  # steps a rate must rest on to be drawn

Draw = Callable[["Figure", Comparison, int | str], None]  # of one question, for those that show one


class NothingToDraw(Exception):
    """The traces do not hold what a picture shows; the message says what is missing."""


def by_speed(comparison: Comparison) -> Comparison:
    """The same with the fastest trace first: the order in every picture."""
    traces = sorted(comparison.traces, key=lambda trace: -trace.speeds().mean())
    return replace(comparison, traces=traces)


def all_looks(comparison: Comparison) -> dict[str, Look]:
    """Every trace's look by its label."""
    return looks({trace.label: trace.method or trace.label for trace in comparison.traces})


def name_methods(axes: Axes, comparison: Comparison, traces: Sequence[Trace]) -> None:
    """Name the methods of horizontal bars, the first on top, those to be seen in their colour."""
    look = all_looks(comparison)
    axes.set_yticks(range(len(traces)), [trace.label for trace in traces])
    axes.set_ylim(len(traces) - 0.4, -0.6)
    for tick, trace in zip(axes.get_yticklabels(), traces, strict=True):
        if look[trace.label].strong:
            tick.set(color=look[trace.label].color, fontweight="bold")


def panels(figure: Figure, count: int, width: float, height: float) -> list[Axes]:
    """So many axes of one size and scale, in rows; what is left of the last row stays empty."""
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure.set_size_inches(width * columns, height * rows + 0.3)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    for at, axes in enumerate(grid.flat[:count]):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelbottom=at + columns >= count)  # also above an empty place
    return list(grid.flat[:count])


def drafting(comparison: Comparison) -> list[Trace]:
    """The traces of methods that draft."""
    found = [trace for trace in comparison.traces if max(trace.accept_lengths) > 1]
    if not found:
        raise NothingToDraw("no trace holds a step that accepted a draft")
    return found


def per_task(
    figure: Figure,
    comparison: Comparison,
    traces: Sequence[Trace],
    value: Callable[[Trace, str | None], float],
) -> None:
    """A panel for each task and one for all, in it a bar per method."""
    tasks = comparison.tasks if len(comparison.tasks) > 1 else []
    look = all_looks(comparison)
    grid = panels(figure, len(tasks) + 1, 2.7, 0.19 * len(traces) + 0.5)
    for at, (axes, task) in enumerate(zip(grid, [None, *tasks], strict=True)):
        for row, trace in enumerate(traces):
            found = value(trace, task)
            axes.barh(row, found, 0.8, **look[trace.label].bar() | {"hatch": ""})
            axes.annotate(f"{found:.2f}", (found, row), (2, 0), textcoords="offset points",
                          va="center", fontsize=7)  # fmt: skip
        axes.axvline(1, color="black", linewidth=0.8, linestyle="--")
        axes.set_title(task or "overall", fontsize=10, fontweight="normal" if task else "bold")
        axes.margins(x=0.12)
        if at % COLUMNS == 0:
            name_methods(axes, comparison, traces)


def speedup_per_task(figure: Figure, comparison: Comparison, _: int | str) -> None:
    name, base = comparison.main_baseline
    traces = [trace for trace in comparison.traces if trace is not base]
    if not traces:
        raise NothingToDraw("the baseline is the only trace")
    per_task(figure, comparison, traces, lambda trace, task: speedup(trace, base, task))
    figure.supxlabel(f"speedup over {name}; the fastest overall on top", fontsize=10)


def mat_per_task(figure: Figure, comparison: Comparison, _: int | str) -> None:
    def mat(trace: Trace, task: str | None) -> float:
        return trace.mat if task is None else trace.task_mat(task)

    per_task(figure, comparison, drafting(comparison), mat)
    figure.supxlabel("MAT, tokens per forward; the fastest overall on top", fontsize=10)


def accept_lengths(figure: Figure, comparison: Comparison, _: int | str) -> None:
    """A histogram per method: how many tokens its steps committed."""
    traces = drafting(comparison)
    look = all_looks(comparison)
    grid = panels(figure, len(traces), 2.6, 1.8)
    lengths = np.arange(1, LONGEST + 1)
    for axes, trace in zip(grid, traces, strict=True):
        found = np.minimum(trace.accept_lengths, LONGEST)
        shares = [float((found == n).mean()) for n in lengths]
        axes.bar(lengths, shares, 0.85, **look[trace.label].bar() | {"hatch": ""})
        axes.axvline(trace.mat, color="black", linestyle="--", linewidth=1)
        axes.set_title(f"{trace.label}, MAT {trace.mat:.2f}", fontsize=10)
    ticks = range(2, LONGEST + 1, 2)
    grid[0].set_xticks(ticks, [f"{n}+" if n == LONGEST else str(n) for n in ticks])
    figure.supxlabel("accept length (dashed: mean)", fontsize=10)
    figure.supylabel("share of steps", fontsize=10)


def conditional_acceptance(trace: Trace) -> dict[int, tuple[int, int]]:
    """By depth d: of the steps whose path reached d - 1 and had drafts at d, (right, all)."""
    misses = trace.per_step("misses")
    lengths = trace.accept_lengths
    if len(misses) != len(lengths):
        return {}
    return {
        depth: (
            right := sum(n > depth for n in lengths),
            right + sum(n == depth for n, missed in zip(lengths, misses, strict=True) if missed),
        )
        for depth in range(1, max(lengths) + 1)
    }


def acceptance_by_depth(figure: Figure, comparison: Comparison, _: int | str) -> None:
    """A panel per method, the others in grey: how often one of the drafts at a depth was right,
    given that the path reached it."""
    from matplotlib.ticker import MaxNLocator

    rates: dict[str, dict[int, float]] = {}
    for trace in drafting(comparison):
        counts = conditional_acceptance(trace)
        if known := {depth: right / of for depth, (right, of) in counts.items() if of >= FEWEST}:
            rates[trace.label] = known
    if not rates:
        raise NothingToDraw(f"no trace records the misses of {FEWEST} steps")
    look = all_looks(comparison)
    grid = panels(figure, len(rates), 2.6, 1.8)
    for axes, label in zip(grid, rates, strict=True):
        for other, known in rates.items():
            if other != label:
                axes.plot([*known], [*known.values()], color="0.85", linewidth=1)
        kind = look[label].line() | {"linestyle": "-"}
        axes.plot([*rates[label]], [*rates[label].values()], label=label, **kind)
        axes.set_title(label, fontsize=10)
    grid[0].set_xlim(0.5, max(max(known) for known in rates.values()) + 0.5)
    grid[0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    grid[0].set_ylim(0, 1.05)
    figure.supxlabel(
        f"depth of the draft (root: 0; depths with {FEWEST} steps or more)", fontsize=10
    )
    figure.supylabel("right, given that its parent was", fontsize=10)


def acceptance_by_rank(figure: Figure, comparison: Comparison, _: int | str) -> None:
    """Which entry of the last logits the token after the next one is: the paper's motivation."""
    found = {trace.label: trace.per_step("next_next_ranks") for trace in comparison.traces}
    found = {label: ranks for label, ranks in found.items() if ranks}
    if not found:
        raise NothingToDraw("no trace records next-next-token ranks (logitspec's does)")
    figure.set_size_inches(9, 3.6)
    single, cumulative = figure.subplots(1, 2)
    shares = {
        label: np.bincount([r for r in ranks if r >= 0], minlength=16) / len(ranks)
        for label, ranks in found.items()
    }
    look = all_looks(comparison)
    width = 0.86 / len(shares)
    for index, (label, share) in enumerate(shares.items()):
        places = np.arange(16) + (index - (len(shares) - 1) / 2) * width
        single.bar(places, share[:16], width, label=label, **look[label].bar())
        kind = look[label].line() | {"marker": None}
        cumulative.plot(np.arange(1, len(share) + 1), np.cumsum(share), label=label, **kind)
    single.set_xlabel("rank r in the last logits (0: the next token itself)")
    single.set_ylabel("share of steps: token after next has rank r")
    cumulative.set_xscale("log", base=2)
    cumulative.xaxis.set_major_formatter("{x:.0f}")
    cumulative.set_xlabel("number of guesses (best entries of the last logits)")
    cumulative.set_ylabel("share of steps: among them")
    cumulative.set_ylim(0, 1)
    cumulative.legend(frameon=False)


def tokens_against_time(figure: Figure, comparison: Comparison, wanted: int | str) -> None:
    """A line per method over the first turn of one question."""
    figure.set_size_inches(7, 4)
    axes = figure.add_subplot()
    look = all_looks(comparison)
    for trace in comparison.traces:
        choice = next(c for r, c in zip(trace.records, trace.choices, strict=True)
                      if r["question_id"] == wanted)  # fmt: skip
        kind = look[trace.label].line()
        steps = (choice.get("step_seconds") or [[]])[0]
        if steps:  # all that is no step comes first: prefill, and reading the prompt
            times = choice["wall_time"][0] - sum(steps) + np.cumsum([0.0, *steps])
            tokens = np.cumsum([0, *choice["accept_lengths"][: len(steps)]])
            kind |= {"markevery": max(1, len(steps) // 8), "drawstyle": "steps-post"}
            axes.plot(times, tokens, label=trace.label, **kind)
        else:
            times = np.array([0, choice["wall_time"][0]])
            tokens = np.array([0, choice["new_tokens"][0]])
            axes.plot(times, tokens, label=f"{trace.label} (mean)", **kind)
    axes.set_xlabel("seconds, prefill included")
    axes.set_ylabel("tokens")
    axes.set_title(f"question {wanted}, first turn", fontsize=10)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)


# The forward is what a step is for, so it is grey and what comes on top of it is seen.
PHASE_COLORS = {"verify": "0.8", "draft": "#E69F00", "build": "#F0E442", "accept": "#009E73",
                "commit": "#56B4E9", "rest": "0.3"}  # fmt: skip


def time_per_step(figure: Figure, comparison: Comparison, _: int | str) -> None:
    """Stacked bars: the mean milliseconds of a step, by phase; beside it, without the forward."""
    found = [(trace, parts) for trace in comparison.traces if (parts := step_milliseconds(trace))]
    if not found:
        raise NothingToDraw("no trace splits its time into phases")
    figure.set_size_inches(10, 0.3 * len(found) + 1.1)
    whole, outside = figure.subplots(1, 2, sharey=True)
    for axes, first in ((whole, 0), (outside, 1)):
        left = np.zeros(len(found))
        for index, (name, color) in list(enumerate(PHASE_COLORS.items()))[first:]:
            widths = [parts[name] for __, parts in found]
            axes.barh(range(len(found)), widths, 0.75, left=left, label=name, color=color,
                      hatch=HATCHES[index], edgecolor="black", linewidth=0.3)  # fmt: skip
            left += widths
        for row, (__, parts) in enumerate(found):
            share = f", {100 * left[row] / sum(parts.values()):.0f} %" if first else ""
            axes.annotate(f"{left[row]:.{1 + first}f}{share}", (left[row], row), (3, 0),
                          textcoords="offset points", va="center", fontsize=8)  # fmt: skip
        axes.set_xlim(0, 1.25 * max(left))
        axes.spines[["top", "right"]].set_visible(False)
    whole.set_xlabel("milliseconds per step, mean, without prefill")
    outside.set_xlabel("of them outside the forward (verify)")
    name_methods(whole, comparison, [trace for trace, __ in found])
    figure.legend(*whole.get_legend_handles_labels(), ncols=6, loc="outside upper center",
                  frameon=False)  # fmt: skip


PICTURES: dict[str, tuple[Draw, str]] = {
    "speedup": (speedup_per_task, "Speedup per task."),
    "mat": (mat_per_task, "Tokens per forward per task."),
    "accept-lengths": (accept_lengths, "How many tokens a step commits."),
    "depth": (
        acceptance_by_depth,
        "How often one of the drafts at a depth is right, given that the path reached it.",
    ),
    "rank": (acceptance_by_rank, "Which entry of the last logits the token after the next one is."),
    "time": (tokens_against_time, "Tokens against time for one question."),
    "phases": (time_per_step, "Where a step's time goes."),
}


def chosen_question(comparison: Comparison, text: str | None) -> int | str:
    """The id of the question that --question names, as text or as JSON; None: of the first one."""
    asked = [record["question_id"] for record in comparison.traces[0].records]
    named = {str(known): known for known in asked} | {json.dumps(known): known for known in asked}
    if text is None:
        return asked[0]  # type: ignore[no-any-return]
    if text not in named:
        raise InputError(
            f"--question {text} is in none of the traces; "
            f"they hold {', '.join(map(shown, asked[:9]))}{' and more' if len(asked) > 9 else ''}"
        )
    return named[text]  # type: ignore[no-any-return]


def draw_all(
    comparison: Comparison, folder: Path, *, kind: str = "png", question: str | None = None
) -> list[str]:
    """Write every picture the traces allow as FOLDER/NAME.KIND; the names written.

    `kind` is one of style.FORMATS, `question` the id of the one whose tokens are drawn against
    time, by default the first. InputError: matplotlib is not installed, no such question, or a
    file cannot be written.
    """
    require_matplotlib()
    wanted = chosen_question(comparison, question)
    comparison = by_speed(comparison)
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot write the pictures into {folder}: {error.strerror}; choose another"
        ) from error
    for name, (draw, _) in PICTURES.items():
        figure = new_figure()
        try:
            draw(figure, comparison, wanted)
        except NothingToDraw as missing:
            print(f"no picture `{name}`: {missing}")
        else:
            save_figure(figure, folder / f"{name}.{kind}")
            written.append(name)
        for other in FORMATS:  # of other traces
            if name not in written or other != kind:
                (folder / f"{name}.{other}").unlink(missing_ok=True)
    return written
