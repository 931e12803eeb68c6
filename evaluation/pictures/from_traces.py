"""Pictures of several methods, from their traces; plots.py and report.py write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.logitspec.errors import InputError

from ..tabulating.columns import speedup
from ..traces.comparing import Comparison, Trace, shown
from ..traces.reading import PHASES
from .style import FORMATS, line_style, new_figure, require_matplotlib, save_figure, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST = 12  # accept lengths from here on share a bar
FEWEST = 20  # steps a rate must rest on to be drawn

Draw = Callable[["Figure", Comparison, int | str], None]  # of one question, for those that show one


class NothingToDraw(Exception):
    """The traces do not hold what a picture shows; the message says what is missing."""


def place(comparison: Comparison, label: str) -> tuple[int, int]:
    """The trace's index and their number, so that it keeps one style in every picture."""
    labels = [trace.label for trace in comparison.traces]
    return labels.index(label), len(labels)


def grouped_bars(
    axes: Axes, comparison: Comparison, heights: Mapping[str, Sequence[float]]
) -> None:
    """A group of bars for each index of the lists, in it a bar per method."""
    width = 0.86 / len(heights)
    for index, (label, values) in enumerate(heights.items()):
        places = np.arange(len(values)) + (index - (len(heights) - 1) / 2) * width
        axes.bar(places, values, width, label=label, **style(*place(comparison, label)))


def legend_above(axes: Axes, columns: int) -> None:
    axes.legend(ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)


def drafting(comparison: Comparison) -> list[Trace]:
    """The traces of methods that draft."""
    found = [trace for trace in comparison.traces if max(trace.accept_lengths) > 1]
    if not found:
        raise NothingToDraw("no trace holds a step that accepted a draft")
    return found


def speedup_per_task(figure: Figure, comparison: Comparison, _: int | str) -> None:
    """Grouped bars: a group per task, a bar per method."""
    name, base = comparison.main_baseline
    traces = [trace for trace in comparison.traces if trace is not base]
    if not traces:
        raise NothingToDraw("the baseline is the only trace")
    figure.set_size_inches(10, 4)
    axes = figure.add_subplot()
    tasks: list[str | None] = [*comparison.tasks, None]
    heights = {t.label: [speedup(t, base, task) for task in tasks] for t in traces}
    grouped_bars(axes, comparison, heights)
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(tasks)), [task or "overall" for task in tasks])
    axes.set_ylabel(f"speedup over {name}")
    legend_above(axes, 4)


def accept_lengths(figure: Figure, comparison: Comparison, _: int | str) -> None:
    """A histogram per method: how many tokens its steps committed."""
    traces = drafting(comparison)
    columns = min(3, len(traces))
    rows = -(-len(traces) // columns)
    figure.set_size_inches(3.4 * columns, 2.3 * rows + 0.4)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(traces) :]:
        axes.set_visible(False)
    lengths = np.arange(1, LONGEST + 1)
    for axes, trace in zip(grid.flat, traces, strict=False):
        found = np.minimum(trace.accept_lengths, LONGEST)
        shares = [float((found == n).mean()) for n in lengths]
        axes.bar(lengths, shares, 0.85, color="0.6", edgecolor="black", linewidth=0.6)
        axes.axvline(trace.mat, color="black", linestyle="--", linewidth=1)
        axes.set_title(f"{trace.label}, MAT {trace.mat:.2f}", fontsize=10)
    ticks = range(2, LONGEST + 1, 2)
    grid[0, 0].set_xticks(ticks, [f"{n}+" if n == LONGEST else str(n) for n in ticks])
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
    """Lines: how often one of the drafts at a depth was right, given the path reached it."""
    from matplotlib.ticker import MaxNLocator

    figure.set_size_inches(7, 4)
    axes = figure.add_subplot()
    deepest = 0
    for trace in drafting(comparison):
        counts = conditional_acceptance(trace)
        rates = {depth: right / of for depth, (right, of) in counts.items() if of >= FEWEST}
        if rates:
            kind = line_style(*place(comparison, trace.label))
            axes.plot([*rates], [*rates.values()], label=trace.label, **kind)
            deepest = max(deepest, *rates)
    if not deepest:
        raise NothingToDraw(f"no trace records the misses of {FEWEST} steps")
    axes.set_xlim(0.5, deepest + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel(f"depth of the draft (root: 0; depths with {FEWEST} steps or more)")
    axes.set_ylabel("right, given that its parent was")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False)


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
    grouped_bars(
        single, comparison, {label: share[:16].tolist() for label, share in shares.items()}
    )
    for label, share in shares.items():
        kind = line_style(*place(comparison, label))
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
    for index, trace in enumerate(comparison.traces):
        choice = next(c for r, c in zip(trace.records, trace.choices, strict=True)
                      if r["question_id"] == wanted)  # fmt: skip
        kind = line_style(index, len(comparison.traces))
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


def time_per_step(figure: Figure, comparison: Comparison, _: int | str) -> None:
    """Stacked bars: the mean milliseconds of a step, by phase, prefill left out."""
    names = [phase.removesuffix("_seconds") for phase in PHASES[1:]] + ["rest"]
    shares: dict[str, list[float]] = {}
    for trace in comparison.traces:
        if trace.per_turn("verify_seconds"):
            # Older traces count build and accept as verify.
            spent = {phase: sum(trace.per_turn(phase)) for phase in PHASES}
            rest = sum(trace.per_turn("wall_time")) - sum(spent.values())
            parts = [spent[phase] for phase in PHASES[1:]] + [rest]
            shares[trace.label] = [1e3 * part / len(trace.accept_lengths) for part in parts]
    if not shares:
        raise NothingToDraw("no trace splits its time into phases")
    figure.set_size_inches(8.5, 0.5 + 0.5 * len(shares) + 0.7)
    axes = figure.add_subplot()
    left = np.zeros(len(shares))
    for index, name in enumerate(names):
        widths = [parts[index] for parts in shares.values()]
        axes.barh([*shares], widths, 0.7, left=left, label=name, **style(index, len(names)))
        left += widths
    for row, parts in enumerate(shares.values()):
        said = f"{sum(parts):.1f}, of it verify {parts[names.index('verify')]:.1f}"
        axes.annotate(said, (sum(parts), row), (4, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * max(left))
    axes.set_xlabel("milliseconds per step, mean, without prefill")
    legend_above(axes, len(names))


PICTURES: dict[str, tuple[Draw, str]] = {
    "speedup": (speedup_per_task, "Speedup per task."),
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
