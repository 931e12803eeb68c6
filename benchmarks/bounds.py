"""How far the method calibrated is from the most that can be had:
python -m benchmarks.bounds --help.

It drafts over recordings (evaluation.record) three times: as it is; with a table and corrections
that have learnt from these very answers beforehand, so nothing is lost to estimates that are not
known yet; and knowing which of all candidates is right, so all that is lost is lost to tokens that
no evidence names. Then trees that size themselves are compared with trees of the number of nodes
that turns out to be the fastest, for each question another, by the recorded costs of steps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.asking.methods import CAPACITY
from evaluation.command.parser import Parser, at_least
from evaluation.recordings.format import Recording, load_recording
from evaluation.recordings.replaying import (
    Configuration,
    RecordedRows,
    check_drafter,
    replay_drafter,
    replay_turn,
)
from model.logitspec import CalibratedDrafter, Drafter, VanillaDrafter
from model.logitspec.drafters.calibrated.growth import Drafted, ReadableCore
from model.logitspec.drafters.calibrated.source import Candidates, Grades

from .measure import Figures, Results, run_benchmark

ANY = "any"  # of the sources
COLUMNS = {
    "recording": (42, "{recording}"),
    "nodes": (5, "{capacity}"),
    "as it is": (8, "{as_it_is:.2f}"),
    "learnt before": (13, "{learnt_before:.2f}"),
    "knows": (6, "{knows:.2f}"),
}
TRIED = 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64  # nodes of trees of one size
HINDSIGHT = {
    "recording": (42, "{recording}"),
    "of each question": (16, "{of_each:.3f}"),
    "best of all": (11, "{best_nodes}"),
    "of that": (7, "{of_best:.3f}"),
}
OF_SOURCES = {
    "recording": (42, "{recording}"),
    "source": (15, "{source}"),
    "names": (6, "{named:.3f}"),
    "alone": (6, "{alone:.3f}"),
}


class WatchedCore(ReadableCore):
    """Knows the answer, to count which sources name its tokens.

    Attributes:
        truth: the answer.
        counts: how many tokens were sought, and named by each source.
        alone: how many were named by no other.
    """

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.truth: list[int] = []
        self.counts = {"sought": 0, **{s.name: 0 for s in self.evidence.sources}, ANY: 0}
        self.alone = {s.name: 0 for s in self.evidence.sources}
        self._at = 0  # of the root in the answer
        self._right: list[bool] = []  # the nodes of the tree
        self._depths: list[int] = []

    def begin(self, prompt_ids: Sequence[int]) -> bool:
        self._at = 0
        return super().begin(prompt_ids)

    def look(self, tree: Drafted, context: tuple[int, ...], top_ids: Sequence[int]) -> Candidates:
        if len(tree.tokens) == 1:
            self._right = [True]
            self._depths = [0]
        for node in range(len(self._right), len(tree.tokens)):
            above = tree.parents[node]
            self._depths.append(self._depths[above] + 1)
            token = self._token(self._depths[node])
            self._right.append(self._right[above] and tree.tokens[node] == token)
        return super().look(tree, context, top_ids)

    def _token(self, depth: int) -> int | None:
        """Of the answer, so far below the root."""
        at = self._at + depth
        return self.truth[at] if at < len(self.truth) else None

    def weigh(
        self, candidates: Candidates, context: tuple[int, ...], depth: int
    ) -> tuple[list[tuple[int, Grades, float]], Any]:
        weighed, noted = super().weigh(candidates, context, depth)
        return weighed, (candidates, noted)

    def learn(self, noted: Any, true: int) -> None:
        (_, named), weighed = noted
        self.counts["sought"] += 1
        if true in named:
            graded = zip(self.evidence.sources, named[true], strict=True)
            naming = [source.name for source, place in graded if source.names(place)]
            for name in (*naming, ANY):
                self.counts[name] += 1
            if len(naming) == 1:
                self.alone[naming[0]] += 1
        super().learn(weighed, true)

    def observe(
        self, drafted: Drafted, path: Sequence[int], top_ids: Sequence[Sequence[int]]
    ) -> None:
        self._at += len(path)
        super().observe(drafted, path, top_ids)


class KnowingCore(WatchedCore):
    """Takes right candidates first."""

    patience = 1.0

    def weigh(
        self, candidates: Candidates, context: tuple[int, ...], depth: int
    ) -> tuple[list[tuple[int, Grades, float]], Any]:
        weighed, noted = super().weigh(candidates, context, depth)
        true = self._token(depth + 1) if self._right[-1] else None
        return [(t, g, 1.0 if t == true else p) for t, g, p in weighed], noted


class Watched(CalibratedDrafter):
    """On a core that knows the answer and uses it for counts only."""

    name = "calibrated"
    readable: type[ReadableCore] = WatchedCore

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity, drafting_core="python")

    @property
    def watched(self) -> WatchedCore:
        assert isinstance(self._core, WatchedCore)
        return self._core


class Knowing(Watched):
    """The same, and drafts what is right, as far as it is a candidate."""

    readable = KnowingCore


def steps_over(recording: Recording, drafter: Watched) -> int:
    """Have it draft over all answers; the steps that took."""
    check_drafter(recording, drafter, drafter.name)
    steps = 0
    for question in recording.questions:
        for turn in question.turns:
            drafter.watched.truth = turn.output.tolist()
            rows = RecordedRows(turn, drafter.node_top_k)
            steps += len(replay_turn(turn, drafter, rows).accept_lengths)
    return steps


def hindsight(recording: Recording) -> Figures:
    """The speed of trees that size themselves over those of a fixed size, for each question and for
    all the fastest one. Drafting is timed, so the fastest of many is flattered by noise."""

    def speeds(drafter: Drafter, *options: tuple[str, Any]) -> npt.NDArray[np.float64]:
        configuration = Configuration(drafter.name, options, ())
        return np.array(replay_drafter(recording, configuration, drafter).speeds)

    own = speeds(CalibratedDrafter("auto"), (CAPACITY, "auto"))
    fixed = {n: speeds(CalibratedDrafter(n) if n > 1 else VanillaDrafter()) for n in TRIED}
    best = max(fixed, key=lambda nodes: float(fixed[nodes].mean()))
    of_each = own / np.array([*fixed.values()]).max(axis=0)
    return {
        "of_each": float(of_each.mean()),
        "best_nodes": best,
        "of_best": float(own.mean() / fixed[best].mean()),
    }


def run(args: argparse.Namespace) -> None:
    """Print and keep a row for each recording and capacity, then one for each source, then one for
    each recording."""
    results = Results(args, "cpu")
    recordings = [load_recording(folder, args.question_stride) for folder in args.recording]
    title = "MAT of calibrated as it is, having learnt before, and knowing which candidate is right"
    table = results.table("bounds", title, COLUMNS)
    of_sources = []
    for recording in recordings:
        about = {"recording": recording.path.name, "about": recording.description}
        for capacity in args.capacities:
            plain, learnt, knowing = Watched(capacity), Watched(capacity), Knowing(capacity)
            found = {"as_it_is": recording.tokens / steps_over(recording, plain)}
            learnt.table.take(plain.table.counted())
            learnt.corrections.take(plain.corrections.counted())
            found["learnt_before"] = recording.tokens / steps_over(recording, learnt)
            found["knows"] = recording.tokens / steps_over(recording, knowing)
            table.add({**about, "capacity": capacity, **found})
        counts, alone = plain.watched.counts, plain.watched.alone
        for source in (*alone, ANY):
            shares = [n / counts["sought"] for n in (counts[source], alone.get(source, 0))]
            row = {"source": source, "named": shares[0], "alone": shares[1]}
            of_sources.append({**about, "capacity": capacity, **row})
    title = f"share of the next tokens that a source names, {args.capacities[-1]} nodes; it alone"
    sources = results.table("sources", title, OF_SOURCES)
    for row in of_sources:
        sources.add(row)
    title = "tokens/s of auto over those of the best fixed number of nodes, chosen afterwards"
    of_auto = results.table("hindsight", title, HINDSIGHT)
    for recording in recordings:
        of_auto.add({"recording": recording.path.name, **hindsight(recording)})


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.bounds", "How far calibrated is from all it could draft.")
    add = parser.add_argument
    add(
        "--recording", type=Path, nargs="+", required=True, metavar="DIR",
        help="of evaluation.record",
    )  # fmt: skip
    add("--question-stride", type=at_least(1), default=1, metavar="K", help="every K-th question")
    add(
        "--capacities", type=at_least(2), nargs="+", default=[64, 16], metavar="C",
        help="nodes of a tree",
    )  # fmt: skip
    return run_benchmark(parser, argv, run)


if __name__ == "__main__":
    sys.exit(main())
