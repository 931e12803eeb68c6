"""What LogitSpec's parts, options and rules are worth, by replay of a recording."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from model.logitspec import DraftTree, LogitSpecDrafter, VanillaDrafter
from model.logitspec.drafters.base import Drafter

from ..pictures.style import STRONG, new_figure
from ..recordings.format import Recording
from ..recordings.replaying import VANILLA, Configuration, Summary, replay, replay_drafter
from ..recordings.sweeping import configurations
from ..tabulating.columns import bootstrap_interval
from .retrieval import NextTokenOnly
from .sections import Section
from .watching import Steps, watch

KNOBS = {
    "max_ngram_size": ("1", "2", "3", "4", "5"),
    "num_pred_tokens": ("5", "10", "20", "40"),
    "draft_tree_capacity": ("4", "8", "16", "24", "32", "48", "64"),
}


class LastLogitsOnly(LogitSpecDrafter):
    """LogitSpec without retrieval: the guesses alone."""

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        tree = DraftTree(root, self.capacity)
        for guess in top_ids:
            if not tree.full and guess != root:
                tree.add(guess, 0)
        return tree


PARTS: Mapping[str, type[Drafter]] = {
    "neither (one node)": VanillaDrafter,
    "retrieval after the next token": NextTokenOnly,
    "guesses of the last logits": LastLogitsOnly,
    "both, and retrieval after guesses": LogitSpecDrafter,
}


def part_section(recording: Recording, tasks: Sequence[str]) -> Section:
    rows: list[Sequence[object]] = []
    base: Summary | None = None
    for name, drafter in PARTS.items():
        summary = replay_drafter(recording, Configuration(name, (), ()), drafter())
        base = base or summary
        mats = [f"{summary.mats[task]:.2f}" for task in [*tasks, "overall"]]
        rows.append((name, *mats, f"{summary.mean_nodes:.1f}", f"{summary.speedup_over(base):.2f}"))
    return Section(
        "parts",
        "The parts",
        "MAT by task, nodes per step and predicted speedup, at the paper's settings.",
        ["drafts", *tasks, "MAT", "nodes", "speedup"],
        rows,
    )


def knob_section(recording: Recording) -> Section:
    figure = new_figure(10.5, 3.4)
    base = replay(recording, VANILLA)
    rows: list[Sequence[object]] = []
    for axes, (key, values) in zip(figure.subplots(1, len(KNOBS)), KNOBS.items(), strict=True):
        found = [
            replay(recording, configuration)
            for configuration in tqdm(configurations("logitspec", {key: values}), desc=key)
        ]
        speedups = [summary.speedup_over(base) for summary in found]
        kind: dict[str, Any] = {"color": STRONG["logitspec"], "marker": "o", "markersize": 4}
        axes.plot(values, [s.mats["overall"] for s in found], label="MAT", **kind)
        axes.plot(values, speedups, label="predicted speedup", linestyle="--", **kind)
        axes.set_xlabel(key)
        axes.grid(alpha=0.3)
        for value, summary, gain in zip(values, found, speedups, strict=True):
            rows.append((key, value, f"{summary.mats['overall']:.3f}", f"{gain:.2f}"))
    figure.axes[0].legend(frameon=False)
    return Section(
        "knobs",
        "The three options, one at a time",
        "The other two options are at their defaults (3, 20, 64). The speedup over the one-node "
        "loop is predicted from the step costs of the machine that made the recording.",
        ["option", "value", "MAT", "speedup"],
        rows,
        figure,
    )


Rule = tuple[tuple[int, int], ...]  # (last rank, most tokens of a branch); behind them 1 token
PAPER: Rule = ((8, 4), (32, 3))
EVERY = 10**6  # a rank behind all
RULES: tuple[Rule, ...] = (
    PAPER,
    (),
    ((EVERY, 2),),
    ((EVERY, 3),),
    ((EVERY, 4),),
    ((EVERY, 8),),
    ((8, 4),),
    ((32, 4),),
    ((4, 4), (16, 3)),
    ((16, 4), (64, 3)),
    ((8, 3), (32, 2)),
    ((8, 6), (32, 4)),
    ((8, 10), (32, 3)),
    ((2, 10), (8, 4), (32, 3)),
)
RULED = (16, 32, 64, 128)  # capacities
PAPERS = 64


def named(rule: Rule) -> str:
    parts = [f"{length}" if last == EVERY else f"{length} to rank {last}" for last, length in rule]
    if not rule or rule[-1][0] != EVERY:
        parts.append("then 1" if rule else "1")
    return ", ".join(parts)


def following(rule: Rule) -> type[LogitSpecDrafter]:
    """LogitSpec with another rule for the length of its branches."""

    def branch_length(rank: int) -> int:
        return next((length for last, length in rule if rank <= last), 1)

    attributes = {"branch_length": staticmethod(branch_length)}
    return type("RuledDrafter", (LogitSpecDrafter,), attributes)


def rule_section(recording: Recording) -> Section:
    """MAT of each rule at each capacity, and the ratio to the paper's rule at the largest."""
    capacities = [nodes for nodes in RULED if nodes <= recording.top_k]
    paper: dict[int, Steps] = {}
    rows: list[Sequence[object]] = []
    for rule in tqdm(RULES, desc="rules"):
        row: list[object] = [named(rule)]
        for nodes in capacities:
            steps = watch(recording, following(rule)(draft_tree_capacity=nodes))
            row.append(f"{recording.tokens / steps.sum():.3f}")
            base = paper.setdefault(nodes, steps)
            if nodes == PAPERS:
                low, high = bootstrap_interval(base, steps)
                row.append(f"{base.sum() / steps.sum():.3f} [{low:.3f}, {high:.3f}]")
        rows.append(row)
    headings = [f"MAT at {nodes}" for nodes in capacities]
    if PAPERS in capacities:
        headings.insert(capacities.index(PAPERS) + 1, "÷ the paper's [95 %]")
    return Section(
        "rules",
        "Why branches of 4, 3 and 1",
        "The most tokens in the branch of a guess, by the rank of the guess. The first row is the "
        "paper's rule. The ratio is of MATs, with a 95 % bootstrap interval over questions, for "
        "which both rules are resampled together. An interval that holds 1 shows no difference.",
        ["tokens of a branch", *headings],
        rows,
    )
