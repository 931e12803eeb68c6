"""How far the method calibrated is from the most that can be had:
python -m benchmarks.bounds --help.

It drafts over recordings (evaluation.record) three times: as it is; with a table and corrections
that have learnt from these very answers beforehand, so nothing is lost to estimates that are not
known yet; and knowing which of all candidates is right, so all that is lost is lost to tokens that
no evidence names.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.command.parser import Parser, at_least
from evaluation.recordings.format import Recording, load_recording
from evaluation.recordings.replaying import RecordedRows, check_drafter, replay_turn
from model.logitspec import CalibratedDrafter
from model.logitspec.drafters.calibrated.evidence import Candidates
from model.logitspec.drafters.calibrated.growth import Drafted, ReadableCore

from .measure import Results, run_benchmark

ANY = "any"  # of the sources
COLUMNS = {
    "recording": (42, "{recording}"),
    "nodes": (5, "{capacity}"),
    "as it is": (8, "{as_it_is:.2f}"),
    "learnt before": (13, "{learnt_before:.2f}"),
    "knows": (6, "{knows:.2f}"),
}
OF_SOURCES = {
    "recording": (42, "{recording}"),
    "source": (15, "{source}"),
    "names": (6, "{named:.3f}"),
    "alone": (6, "{alone:.3f}"),
}


class WatchedCore(ReadableCore):
    """Knows the answer, to count which sources name its tokens; and drafts them if it is to.

    Attributes:
        truth: the answer.
        knows: a candidate that is right is taken first.
        counts: how many tokens were sought, named by each source, and named by no other.
    """

    knows = False

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.truth: list[int] = []
        self.counts = {"sought": 0, **{s.name: 0 for s in self.evidence.sources}, ANY: 0}
        self.alone = {s.name: 0 for s in self.evidence.sources}
        self._at = 0  # of the root in the answer
        self._right: list[bool] = []  # the nodes of the tree

    @property
    def patience(self) -> float:  # type: ignore[override]
        return 1.0 if self.knows else ReadableCore.patience

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
        self, candidates: Candidates, context: tuple[int, ...], depth: int, run: int
    ) -> tuple[list[tuple[int, int, float]], Any]:
        weighed, noted = super().weigh(candidates, context, depth, run)
        if self.knows and self._right[-1]:
            true = self._token(depth + 1)
            weighed = [(t, c, 1.0 if t == true else p) for t, c, p in weighed]
        return weighed, (candidates, noted)

    def learn(self, noted: Any, true: int) -> None:
        (base, named), weighed = noted
        self.counts["sought"] += 1
        if true in named:
            cell = base + named[true]
            naming = [s.name for s in self.evidence.sources if s.names(cell)]
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

    knows = True


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


def run(args: argparse.Namespace) -> None:
    """Print and keep a row for each recording and capacity, then one for each source."""
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
