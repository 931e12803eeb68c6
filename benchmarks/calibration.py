"""Is the method `calibrated` calibrated? python -m benchmarks.calibration --help.

It answers questions, and every draft's path probability is compared with whether it was accepted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from evaluation.asking.engines import KVEngine, Models
from evaluation.asking.questions import chosen_questions
from evaluation.asking.settings import AnswerSettings, QuestionSettings, TargetSettings
from evaluation.asking.target import Target
from evaluation.command.exits import run_command
from evaluation.command.flags import add_machine_flags, read
from evaluation.command.parser import Parser, at_least
from evaluation.pictures.style import line_style, new_figure, require_matplotlib, save_figure
from model.logitspec import CalibratedDrafter, DraftTree
from model.logitspec.sizing.budget import Capacity

from .fit_prior import answer
from .measure import (
    INTERRUPTED,
    Figures,
    PrintedTable,
    Results,
    add_output_flags,
    add_question_flags,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEPTHS = {
    "all": (1, None),
    "1": (1, 1),
    "2": (2, 2),
    "3": (3, 3),
    "4 to 7": (4, 7),
    "8 on": (8, None),
}
BINS = 10  # of path probability, equally wide
FEWEST = 50  # drafts a point of the picture rests on
Floats = npt.NDArray[np.float64]


class Watched(CalibratedDrafter):
    """Notes of every draft its path probability, its depth and whether it was accepted."""

    name = "calibrated"

    def __init__(self, draft_tree_capacity: Capacity) -> None:
        super().__init__(draft_tree_capacity)
        self.drafts: list[tuple[float, int, bool]] = []
        self.steps: list[tuple[float, int]] = []  # expected and observed accept length

    def observe(
        self, tree: DraftTree, path: Sequence[int], top_ids: Sequence[Sequence[int]] = ()
    ) -> None:
        if all(top_ids):  # not near the end of the answer, where deep nodes are not verified
            accepted = set(path)
            self.drafts += [
                (probability, tree.depths[node], node in accepted)
                for node, probability in enumerate(self.path_probabilities)
                if node
            ]
            self.steps.append((sum(self.path_probabilities), len(path)))
        super().observe(tree, path, top_ids)


def reliability(predicted: Floats, accepted: Floats) -> tuple[list[Figures], float]:
    """Bins of predicted probability with what was observed, and the expected calibration error.

    Args:
        predicted: path probability of every draft.
        accepted: 1 where it was accepted, else 0.

    Returns:
        A row for every bin that is not empty; and the mean over all drafts of the distance between
        the mean prediction and the share accepted of their bin.
    """
    index = np.minimum((predicted * BINS).astype(int), BINS - 1)
    rows: list[Figures] = []
    for i in np.unique(index):
        here = index == i
        rows.append(
            {
                "bin": f"{i / BINS:.1f} to {(i + 1) / BINS:.1f}",
                "drafts": int(here.sum()),
                "predicted": float(predicted[here].mean()),
                "accepted": float(accepted[here].mean()),
            }
        )
    distances = [row["drafts"] * abs(row["predicted"] - row["accepted"]) for row in rows]
    return rows, sum(distances) / len(predicted)


def report(drafter: Watched, results: Results) -> None:
    """Print and keep the tables of all depths, and the accept lengths.

    Args:
        drafter: has answered questions.
        results: where the rows go.
    """
    predicted, depth, accepted = map(np.array, zip(*drafter.drafts, strict=True))
    errors = PrintedTable("expected calibration error", {"depth": 8, "drafts": 8, "error": 7})
    for name, (first, last) in DEPTHS.items():
        here = (depth >= first) & (depth <= (last or depth.max()))
        if not here.any():
            continue
        rows, error = reliability(predicted[here], accepted[here].astype(float))
        results.add("errors", {"depth": name, "drafts": int(here.sum()), "error": error})
        errors.add(name, int(here.sum()), f"{error:.4f}")
        for row in rows:
            results.add("bins", {"depth": name, **row})
    table = PrintedTable(
        "predicted path probability and share accepted, all depths",
        {"predicted": 10, "drafts": 8, "mean": 6, "accepted": 8},
    )
    for row in results.rows("bins"):
        if row["depth"] == "all":
            mean, share = f"{row['predicted']:.3f}", f"{row['accepted']:.3f}"
            table.add(row["bin"], row["drafts"], mean, share)
    expected, observed = np.array(drafter.steps).T
    results.add(
        "steps",
        {"steps": len(observed), "expected": expected.mean(), "observed": observed.mean()},
    )
    print(
        f"\naccept length per step: expected {expected.mean():.3f}, observed {observed.mean():.3f} "
        f"over {len(observed)} steps"
    )
    table = PrintedTable(
        "by the expected accept length", {"expected": 10, "steps": 6, "mean": 6, "observed": 8}
    )
    edges = np.quantile(expected, (0, 0.2, 0.4, 0.6, 0.8, 1))
    for low, high in pairwise(edges):
        here = (expected >= low) & ((expected < high) | (high == edges[-1]))
        if here.any():
            row = {"steps": int(here.sum()), "expected": expected[here].mean()}
            row["observed"] = observed[here].mean()
            results.add("by_expected", {"low": low, "high": high, **row})
            table.add(
                f"{low:.1f} to {high:.1f}", row["steps"], f"{row['expected']:.2f}",
                f"{row['observed']:.2f}",
            )  # fmt: skip


def draw(results: Results, path: Path) -> None:
    """The reliability diagram, a line for every depth."""
    figure = new_figure(5.2, 4.8)
    axes: Axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="calibrated")
    by_depth: Mapping[str, list[Figures]] = {
        name: [r for r in results.rows("bins") if r["depth"] == name and r["drafts"] >= FEWEST]
        for name in DEPTHS
    }
    for index, (name, rows) in enumerate(by_depth.items()):
        axes.plot(
            [row["predicted"] for row in rows],
            [row["accepted"] for row in rows],
            label=f"depth {name}" if name != "all" else "all depths",
            **line_style(index, len(by_depth)),
        )
    axes.set_xlabel("predicted path probability")
    axes.set_ylabel("share of the drafts accepted")
    axes.set_title("reliability of the method calibrated", fontsize=10)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def run(args: argparse.Namespace) -> None:
    """Answer the questions, print, keep and draw what the flags ask for."""
    if args.plot is not None:
        require_matplotlib()
    _, questions = chosen_questions(read(QuestionSettings, args))
    target = Target.resolve(read(TargetSettings, args))
    results = Results(args.json, vars(args), target.device)
    drafter = Watched(args.draft_tree_capacity)
    engine = KVEngine(Models(target, shared=False), drafter)
    tokens, steps = answer(engine, questions, target, read(AnswerSettings, args))
    print(f"{len(questions)} questions of {args.bench_name}: MAT {tokens / steps:.3f}")
    report(drafter, results)
    if args.plot is not None:
        draw(results, args.plot)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m benchmarks.calibration",
        "Compare the path probabilities of the method calibrated with what was accepted.",
    )
    add = parser.add_argument
    add_question_flags(parser, stride=12)
    add("--draft-tree-capacity", type=at_least(2), default=64, metavar="C", help="nodes of a tree")
    add_output_flags(parser, plot=True)
    add_machine_flags(parser)
    args = parser.parse_args(argv)
    return run_command(parser.prog, lambda: run(args), INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
