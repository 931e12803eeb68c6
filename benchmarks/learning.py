"""How soon trees that size themselves are as good as with the true step costs:
python -m benchmarks.learning --help.

The method calibrated drafts over a recording. What its steps take is the recorded cost with the
noise of a machine; what it knows of that it learns from these steps (sizing/live_cost.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.command.parser import Parser
from evaluation.recordings.format import RecordedQuestion, load_recording
from evaluation.recordings.replaying import RecordedRows, replay_turn
from model.logitspec import CalibratedDrafter, DraftTree
from model.logitspec.errors import InputError
from model.logitspec.sizing.budget import Budget
from model.logitspec.sizing.live_cost import DOUBT, GUESSED, LiveCost
from model.logitspec.sizing.measuring import completed
from model.logitspec.sizing.step_cost import CONTEXTS, MEASURED_NODES, Cost, Measurable, StepCost

from .measure import Results, run_benchmark

FIRST = 100  # steps that are told apart from those after them
GROUPS = 4  # parts of the recording, each begun anew
TIMES = 8  # that each part is drafted over, with other noise
JITTER = 0.05  # standard deviation of the logarithm of a step's seconds
PREEMPTED = 0.01  # share of the steps that take three to ten times as long
STARTS = {  # sizes measured before, and how many times too dear more than one node is
    "nothing but one node": ((1,), 1.0),
    "1, 2 and 8 nodes": ((1, 2, 8), 1.0),
    "1, 2, 4, 8, 16 and 32 nodes": ((1, 2, 4, 8, 16, 32), 1.0),
    "all sizes, twice as dear": (MEASURED_NODES, 2.0),
    "all sizes, half as dear": (MEASURED_NODES, 0.5),
}


def noisy(chance: np.random.Generator, seconds: float) -> float:
    """What a step of so many seconds may take."""
    preempted = chance.uniform(3, 10) if chance.random() < PREEMPTED else 1.0
    return float(seconds * preempted * np.exp(chance.normal(0, JITTER)))


def started(true: StepCost, sizes: Sequence[int], dear: float, seed: int) -> LiveCost:
    """A step cost that knows so many sizes and nothing yet of the steps."""
    chance = np.random.default_rng(seed)
    lines = []
    for context in CONTEXTS:
        curve = true.curve(context)
        known = {
            n: curve[n] * (dear if n > 1 else 1.0) * float(np.exp(chance.normal(0, JITTER)))
            for n in sizes
        }
        lines.append(completed(known, MEASURED_NODES))
    start = StepCost(CONTEXTS, MEASURED_NODES, lines)
    return LiveCost(start, doubt=DOUBT if len(sizes) > 1 else GUESSED)


class Watched(CalibratedDrafter):
    """Notes what each of its steps gives and takes, and lets the cost that it asks learn that."""

    name = "calibrated"

    def __init__(self, true: StepCost, cost: Cost, seed: int = 0) -> None:
        super().__init__("auto")
        self.budget = Budget(cost)
        self._true, self._cost = true, cost
        self._chance = np.random.default_rng(seed)
        self.steps: list[tuple[int, float]] = []  # tokens, seconds

    def prepare(self, target: Measurable) -> None:
        """It has its cost."""

    def observe(
        self,
        tree: DraftTree,
        path: Sequence[int],
        top_ids: Sequence[Sequence[int]] = (),
        logprobs: Sequence[Sequence[float]] = (),
    ) -> None:
        seconds = self._true.curve(self._committed)[len(tree)]
        self.steps.append((len(path), seconds))
        if isinstance(self._cost, LiveCost):
            self._cost.note(len(tree), self._committed, noisy(self._chance, seconds))
        super().observe(tree, path, top_ids, logprobs)

    def answer(self, questions: Sequence[RecordedQuestion]) -> tuple[float, float]:
        """Tokens per second of the first steps and of those after them."""
        for question in questions:
            for turn in question.turns:
                replay_turn(turn, self, RecordedRows(turn, self.node_top_k))
        if len(self.steps) < 2 * FIRST:
            raise InputError(
                f"a quarter of the recording has {len(self.steps)} steps, {2 * FIRST} are needed; "
                "record more questions"
            )
        tokens, seconds = np.array(self.steps).T
        first, after = slice(FIRST), slice(FIRST, None)
        return tuple(float(tokens[part].sum() / seconds[part].sum()) for part in (first, after))  # type: ignore[return-value]


def run(args: argparse.Namespace) -> None:
    """Print for each start the shares of the tokens per second of one who knows the costs."""
    recording = load_recording(args.recording)
    true = recording.step_cost(0, 8)
    size = -(-len(recording.questions) // GROUPS)
    groups = [
        recording.questions[at : at + size] for at in range(0, len(recording.questions), size)
    ]
    ideal = np.array([Watched(true, true).answer(group) for group in groups])
    results = Results(args, "cpu")
    table = results.table(
        "starts",
        f"replay of {recording.description}: share of the tokens/s with the true step costs",
        {
            "start": (30, "{start}"),
            f"first {FIRST}": (10, "{first:.3f}"),
            "after": (8, "{after:.3f}"),
        },
    )
    for name, (sizes, dear) in STARTS.items():
        found = [
            Watched(true, started(true, sizes, dear, seed), seed).answer(groups[seed % len(groups)])
            for seed in range(TIMES * len(groups))
        ]
        first, after = (np.reshape(found, (TIMES, -1, 2)) / ideal).mean(axis=(0, 1))
        table.add({"start": name, "first": float(first), "after": float(after)})


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m benchmarks.learning", "How soon trees that size themselves know what steps cost."
    )
    parser.add_argument(
        "--recording", type=Path, required=True, metavar="DIR", help="of evaluation.record"
    )
    return run_benchmark(parser, argv, run)


if __name__ == "__main__":
    sys.exit(main())
