"""Is the method `calibrated` calibrated? python -m benchmarks.calibration --help.

It answers questions, and every draft's path probability is compared with whether it was accepted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise
from math import inf
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evaluation.command.flags import add_machine_flags
from evaluation.command.parser import Parser, at_least
from evaluation.pictures.style import new_figure, save_figure
from model.logitspec import CalibratedDrafter, DraftTree
from model.logitspec.sampling import Sampling
from model.logitspec.sizing.budget import Capacity

from .fit_prior import Questionnaire
from .measure import Figures, Results, add_question_flags, lines, run_benchmark

DEPTHS = {
    "all": (1, inf), **{str(n): (n, n) for n in range(1, 9)}, "9 on": (9, inf)
}  # fmt: skip
SHOWN = "all", "1", "2", "4", "8"  # in the picture
BINS = 10  # of path probability, equally wide
FEWEST = 50  # drafts a point of the picture rests on
ERRORS = {"depth": (8, "{depth}"), "drafts": (8, "{drafts}"), "error": (7, "{error:.4f}")}
OF_BINS = {
    "predicted": (10, "{bin}"),
    "drafts": (8, "{drafts}"),
    "mean": (6, "{predicted:.3f}"),
    "accepted": (8, "{accepted:.3f}"),
}
BY_EXPECTED = {
    "expected": (10, "{low:.1f} to {high:.1f}"),
    "steps": (6, "{steps}"),
    "mean": (6, "{expected:.2f}"),
    "observed": (8, "{observed:.2f}"),
    "ratio": (6, "{ratio:.3f}"),
    "standard error": (14, "{noise:.3f}"),
}
Floats = npt.NDArray[np.float64]


class Watched(CalibratedDrafter):
    """Notes of every draft its path probability, its depth and whether it was accepted."""

    name = "calibrated"

    def __init__(self, draft_tree_capacity: Capacity) -> None:
        super().__init__(draft_tree_capacity)
        self.drafts: list[tuple[float, int, bool]] = []
        self.steps: list[tuple[float, int]] = []  # expected and observed accept length

    def observe(
        self,
        tree: DraftTree,
        path: Sequence[int],
        top_ids: Sequence[Sequence[int]] = (),
        logprobs: Sequence[Sequence[float]] = (),
    ) -> None:
        accepted = set(path)
        verified = [  # all but deep nodes near the end of the answer
            (probability, tree.depths[node], node in accepted)
            for node, probability in enumerate(self.path_probabilities)
            if top_ids[node]
        ]
        self.drafts += verified[1:]
        self.steps.append((sum(probability for probability, _, _ in verified), len(path)))
        super().observe(tree, path, top_ids, logprobs)


def reliability(predicted: Floats, accepted: Floats) -> tuple[list[Figures], float]:
    """Bins of predicted probability with what was observed, and the expected calibration error.

    `accepted` is 1 where a draft was, else 0. The error is the mean over all drafts of the distance
    between the mean prediction and the share accepted of their bin.
    """
    index = np.minimum((predicted * BINS).astype(int), BINS - 1)
    rows: list[Figures] = []
    for i in np.unique(index):
        here = index == i
        means = {"predicted": predicted[here].mean(), "accepted": accepted[here].mean()}
        name = f"{i / BINS:.1f} to {(i + 1) / BINS:.1f}"
        rows.append({"bin": name, "drafts": int(here.sum()), **means})
    distances = [row["drafts"] * abs(row["predicted"] - row["accepted"]) for row in rows]
    return rows, sum(distances) / len(predicted)


def report(drafter: Watched, results: Results) -> None:
    """Print and keep the tables of all depths, and the accept lengths."""
    predicted, depth, accepted = map(np.array, zip(*drafter.drafts, strict=True))
    table = results.table("errors", "expected calibration error", ERRORS)
    bins: list[Figures] = []
    for name, (first, last) in DEPTHS.items():
        here = (depth >= first) & (depth <= last)
        if here.any():
            rows, error = reliability(predicted[here], accepted[here].astype(float))
            table.add({"depth": name, "drafts": int(here.sum()), "error": error})
            bins += [{"depth": name, **row} for row in rows]
    title = "predicted path probability and share accepted, all depths"
    table = results.table("bins", title, OF_BINS)
    for row in bins:
        if row["depth"] == "all":
            table.add(row)
        else:
            results.add("bins", row)
    expected, observed = np.array(drafter.steps).T
    both = beside(expected, observed)
    results.add("steps", both)
    print(
        "\naccept length per step: expected {expected:.3f}, observed {observed:.3f} over {steps} "
        "steps, ratio {ratio:.3f}, standard error {noise:.3f}".format(**both)
    )
    table = results.table("by_expected", "by the expected accept length", BY_EXPECTED)
    edges = np.quantile(expected, (0, 0.2, 0.4, 0.6, 0.8, 1))
    for low, high in pairwise(edges):
        here = (expected >= low) & ((expected < high) | (high == edges[-1]))
        if here.any():
            table.add({"low": low, "high": high, **beside(expected[here], observed[here])})


def beside(expected: Floats, observed: Floats) -> Figures:
    """The means over some steps, their ratio, and its standard error: the observed accept lengths
    scatter around the expected ones."""
    count, mean = len(observed), observed.mean()
    return {
        "steps": count, "expected": expected.mean(), "observed": mean,
        "ratio": expected.mean() / mean,
        "noise": (observed - expected).std() / count**0.5 * expected.mean() / mean**2,
    }  # fmt: skip


def draw(bins: Sequence[Figures], path: Path) -> None:
    """The reliability diagram, a line for every depth."""
    figure = new_figure(5.2, 4.8)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="calibrated")
    names = {name: f"depth {name}" for name in DEPTHS} | {"all": "all depths"}
    shown = [
        {**row, "name": names[row["depth"]]}
        for row in bins
        if row["drafts"] >= FEWEST and row["depth"] in SHOWN
    ]
    lines(axes, shown, "{name}", "predicted", "accepted")
    axes.set(xlabel="predicted path probability", ylabel="share of the drafts accepted")
    axes.set_title("reliability of the method calibrated", fontsize=10)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def run(args: argparse.Namespace) -> None:
    """Answer the questions, print, keep and draw what the flags ask for."""
    asked = Questionnaire(args)
    results = Results(args, asked.target.device)
    drafter = Watched(args.draft_tree_capacity)
    tokens, steps = asked.answer(drafter, Sampling(args.temperature))
    print(f"{asked.title}: MAT {tokens / steps:.3f}")
    report(drafter, results)
    if args.plot is not None:
        draw(results.content["bins"], args.plot)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m benchmarks.calibration",
        "Compare the path probabilities of the method calibrated with what was accepted.",
    )
    add_question_flags(parser, stride=12)
    add = parser.add_argument
    add("--draft-tree-capacity", type=at_least(2), default=64, metavar="C", help="nodes of a tree")
    add(
        "--temperature", type=float, default=0.0, metavar="T",
        help="of samples; 0: the best tokens",
    )  # fmt: skip
    add_machine_flags(parser)
    return run_benchmark(parser, argv, run, plot=True)


if __name__ == "__main__":
    sys.exit(main())
