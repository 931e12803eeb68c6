"""What each part of the method `calibrated` is worth: python -m benchmarks.study --help.

One variant after the other answers the same questions; the accept lengths are what is compared.
Variants that change the evidence run on the same fitted prior, where a grade means what it meant.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from evaluation.command.flags import add_machine_flags
from evaluation.command.parser import Parser, at_least
from evaluation.recordings.format import load_recording
from evaluation.recordings.replaying import Configuration, replay_drafter
from model.logitspec import CalibratedDrafter
from model.logitspec.drafters.calibrated.corrections import STRENGTH, Corrections, Weighed
from model.logitspec.drafters.calibrated.evidence import Evidence
from model.logitspec.drafters.calibrated.growth import Drafted, ReadableCore
from model.logitspec.drafters.calibrated.source import Candidates, Grades, Source
from model.logitspec.errors import InputError
from model.logitspec.sizing.acceptance_table import AcceptanceTable
from model.logitspec.states import Saved, read_state

from .fit_prior import Questionnaire, flat_prior
from .measure import PrintedTable, Results, add_question_flags, run_benchmark

BEGUN = "begun with evidence"
TopIds = Sequence[Sequence[int]]


class Without(ReadableCore):
    """Some sources of evidence say nothing."""

    off: tuple[str, ...] = ()  # their names

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        for source in self.evidence.sources:
            if source.name in self.off:
                source.look = lambda context: (0, {})  # type: ignore[method-assign]

    def look(self, tree: Drafted, context: tuple[int, ...], top_ids: Sequence[int]) -> Candidates:
        if "last logits" in self.off:
            return self.evidence.look(context, None)
        return super().look(tree, context, top_ids)


class OneTokenRows(ReadableCore):
    """Rows are looked up by the last token only."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        learn = self.evidence.rows.learn
        self.evidence.rows.learn = lambda before, token, row: learn(-1, token, row)  # type: ignore[method-assign]


class ThreeTokenRows(ReadableCore):
    """Rows are looked up by the last three tokens first; their grades are those of two."""

    def begin(self, prompt_ids: Sequence[int]) -> bool:
        again = super().begin(prompt_ids)
        if not again:
            self._triples: dict[tuple[int, ...], Sequence[int]] = {}
        return again

    def observe(self, drafted: Drafted, path: Sequence[int], top_ids: TopIds) -> None:
        contexts = [(*self.evidence.context[-2:], drafted.tokens[0])]
        for node in range(1, len(drafted.tokens)):
            above = contexts[drafted.parents[node]]
            contexts.append((*above[-2:], drafted.tokens[node]))
        for node in (*range(len(contexts) - 1, -1, -1), *path):
            if top_ids[node]:
                self._triples[contexts[node]] = top_ids[node]
        super().observe(drafted, path, top_ids)

    def look(self, tree: Drafted, context: tuple[int, ...], top_ids: Sequence[int]) -> Candidates:
        row = self._triples.get(context[-3:])
        if row is None:
            return super().look(tree, context, top_ids)
        pair = self.evidence.rows._pair
        known = pair.get(context[-2:])
        pair[context[-2:]] = row
        found = super().look(tree, context, top_ids)
        del pair[context[-2:]]
        if known is not None:
            pair[context[-2:]] = known
        return found


class AcceptedRows(ReadableCore):
    """Only accepted nodes leave a row."""

    def observe(self, drafted: Drafted, path: Sequence[int], top_ids: TopIds) -> None:
        accepted = set(path)
        kept = [row if node in accepted else [] for node, row in enumerate(top_ids)]
        super().observe(drafted, path, kept)


class PromptRows(CalibratedDrafter):
    """The prompt's tokens leave rows, too, which takes the head over all of the prompt."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity, drafting_core="python")
        self.prompt_top_k = self.node_top_k

    def reset(self, prompt_ids: Sequence[int], top_ids: TopIds = ()) -> None:
        super().reset(prompt_ids, top_ids)
        for before, token, row in zip([-1, *prompt_ids], prompt_ids, top_ids, strict=False):
            self.evidence.rows.learn(before, token, row)


class LatestFollower(ReadableCore):
    """Recency instead of counts: of what followed an n-gram only the latest counts, as if alone."""

    def look(self, tree: Drafted, context: tuple[int, ...], top_ids: Sequence[int]) -> Candidates:
        for source in (self.evidence.ngrams, self.evidence.earlier):
            whole = source._followers
            for n in range(1, len(context) + 1):
                followers = whole.get(context[-n:])
                if isinstance(followers, dict) and len(followers) > 1:
                    latest, times = list(followers.items())[-1]
                    whole[context[-n:]] = latest if times == 1 else {latest: times}
        return super().look(tree, context, top_ids)


class Uncorrected(ReadableCore):
    """The acceptance table and the noisy or, without weights."""

    def weigh(
        self, candidates: Candidates, context: tuple[int, ...], depth: int
    ) -> tuple[list[tuple[int, Grades, float]], Any]:
        _, named = candidates
        grades = [*named.values()]
        known = [1 - self.corrections.wrong(own, self.table.probability) for own in grades]
        return list(zip(named, grades, known, strict=True)), Weighed([*named], known, -1, grades)


class Alone(Corrections):
    """Candidates have the odds that each has alone."""

    def share(self, odds: Sequence[float]) -> tuple[list[float], int]:
        return [own / (1 + own) for own in odds], 0 if odds else -1


class Corrected(ReadableCore):
    """Other corrections."""

    by: type[Corrections]

    def __init__(
        self, evidence: Evidence, table: AcceptanceTable, corrections: Corrections, capacity: int
    ) -> None:
        super().__init__(evidence, table, self.by(evidence.sources), capacity)


class Forgetting(ReadableCore):
    """What was seen of a grade fades by a hundredth with each node that it is seen at."""

    def learn(self, noted: Any, true: int) -> None:
        table: Any = self.table
        grades = self.corrections.grades
        for place in {at for weights in noted.weights for at in weights if at < grades}:
            table.seen[place] *= 0.99
            table.right[place] *= 0.99
        super().learn(noted, true)


class ByDepth(ReadableCore):
    """Depth is a feature: the first, second and third edge and those below have a table and
    corrections of their own."""

    MOST = 3

    def use(self, table: AcceptanceTable) -> None:
        sources, strength = self.evidence.sources, table.strength
        self._own = [
            (AcceptanceTable(table.prior, strength), Corrections(sources))
            for _ in range(self.MOST + 1)
        ]
        super().use(table)

    def weigh(
        self, candidates: Candidates, context: tuple[int, ...], depth: int
    ) -> tuple[list[tuple[int, Grades, float]], Any]:
        depth = min(depth, self.MOST)
        self.table, self.corrections = self._own[depth]
        weighed, noted = super().weigh(candidates, context, depth)
        return weighed, (depth, noted)

    def learn(self, noted: Any, true: int) -> None:
        depth, weighed = noted
        self.table, self.corrections = self._own[depth]
        super().learn(weighed, true)


class CountedTogether(Corrections):
    """Counts each combination of grades; its prior is what the grades give by the noisy or."""

    def __init__(self, sources: Sequence[Source]) -> None:
        super().__init__(sources)
        self._counts: dict[tuple[int, ...], tuple[int, int]] = {}  # seen, right

    def wrong(self, grades: Grades, known: Any) -> float:
        seen, right = self._counts.get(tuple(grades), (0, 0))
        return (seen - right + STRENGTH * super().wrong(grades, known)) / (seen + STRENGTH)

    def learn(self, weighed: Weighed, true: int) -> None:
        for token, weights in zip(weighed.tokens, weighed.weights, strict=True):
            grades = tuple(place for place in weights if place < self.grades)
            seen, right = self._counts.get(grades, (0, 0))
            self._counts[grades] = seen + 1, right + (token == true)
        super().learn(weighed, true)


def flat(capacity: int) -> CalibratedDrafter:
    """Every grade begins with the same probability."""
    drafter = CalibratedDrafter(capacity, drafting_core="python")
    drafter.use_prior(flat_prior(drafter.sources))
    return drafter


def begun_with(state: Saved, capacity: int) -> CalibratedDrafter:
    """It begins with a saved state."""
    drafter = CalibratedDrafter(capacity)
    drafter.warm(state.arrays)
    return drafter


def on_core(core: type[ReadableCore], **attributes: Any) -> Callable[[int], CalibratedDrafter]:
    """Drafters on another core in Python."""
    readable = type(core.__name__, (core,), attributes)
    drafter = type(core.__name__, (CalibratedDrafter,), {"readable": readable})
    return partial(drafter, drafting_core="python")


VARIANTS: Mapping[str, Callable[[int], CalibratedDrafter]] = {
    "as it is": CalibratedDrafter,
    "without this prompt's n-grams": on_core(Without, off=("n-grams",)),
    "without earlier answers": partial(CalibratedDrafter, reset_ngrams=True),
    "without any n-grams": on_core(Without, off=("n-grams", "earlier answers")),
    "without rows": on_core(Without, off=("rows",)),
    "without the last logits": on_core(Without, off=("last logits",)),
    "n-grams up to 3": partial(CalibratedDrafter, max_ngram_size=3),
    "n-grams up to 8": partial(CalibratedDrafter, max_ngram_size=8),
    "the latest follower only": on_core(LatestFollower),
    "rows by one token": on_core(OneTokenRows),
    "rows by three tokens first": on_core(ThreeTokenRows),
    "rows of accepted nodes only": on_core(AcceptedRows),
    "rows of the prompt, too": PromptRows,
    "rows of 4": partial(CalibratedDrafter, row_width=4),
    "rows of 16": partial(CalibratedDrafter, row_width=16),
    "rows not kept": partial(CalibratedDrafter, reset_rows=True),
    "of this prompt only": partial(
        CalibratedDrafter, reset_rows=True, reset_ngrams=True, reset_table=True
    ),
    "last logits to rank 12": partial(CalibratedDrafter, last_width=12),
    "last logits to rank 60": partial(CalibratedDrafter, last_width=60),
    "table not kept": partial(CalibratedDrafter, reset_table=True),
    "prior only, no learning": on_core(ReadableCore, learn=lambda *_: None),
    "no prior": flat,
    "prior weighs 5": partial(CalibratedDrafter, prior_strength=5),
    "prior weighs 100": partial(CalibratedDrafter, prior_strength=100),
    "forgetting": on_core(Forgetting),
    "depth as a feature": on_core(ByDepth),
    "without corrections": on_core(Uncorrected),
    "siblings do not compete": on_core(Corrected, by=Alone),
    "all grades counted together": on_core(Corrected, by=CountedTogether),
    "no patience": on_core(ReadableCore, patience=1.0),
}


def run(args: argparse.Namespace) -> None:
    """Have every variant answer the questions at every capacity, and print a row for each."""
    variants = {**VARIANTS}
    if args.evidence:
        state = read_state(args.evidence, CalibratedDrafter.name, None)
        variants[BEGUN] = partial(begun_with, state)
    wanted = [name.strip() for name in args.variants.split(",")] if args.variants else [*variants]
    for name in wanted:
        if name not in variants:
            raise InputError(f"no variant {name!r}; there are {', '.join(variants)}")
    if args.recording:
        recording = load_recording(args.recording, args.question_stride)
        title, device = f"replay of {recording.description}", "cpu"
    else:
        asked = Questionnaire(args)
        title, device = asked.title, asked.target.device

    def answer(drafter: CalibratedDrafter) -> tuple[int, int]:
        """Tokens and steps."""
        if not args.recording:
            return asked.answer(drafter)
        summary = replay_drafter(recording, Configuration("calibrated", (), ()), drafter)
        return recording.tokens, summary.steps

    results = Results(args, device)
    columns = {"variant": (30, "{variant}")}
    for c in args.capacities:
        columns |= {f"MAT at {c}": (9, f"{{at {c}:.3f}}"), f"÷ {c}": (7, f"{{÷ {c}:.3f}}")}
    table = PrintedTable(title, columns)
    base: dict[int, float] = {}
    for name in wanted:
        row: dict[str, Any] = {"variant": name}
        for capacity in args.capacities:
            tokens, steps = answer(variants[name](capacity))
            mat = tokens / steps
            found = {"variant": name, "capacity": capacity, "mat": mat, "tokens": tokens}
            results.add("variants", found)
            row[f"at {capacity}"] = mat
            row[f"÷ {capacity}"] = mat / base.setdefault(capacity, mat)
        table.add(row)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.study", "What each part of the method calibrated adds.")
    add = parser.add_argument
    add_question_flags(parser, stride=24)
    add(
        "--recording", type=Path, metavar="DIR",
        help="replay this recording (evaluation.record) instead of running the model; "
        "--question-stride then counts its questions",
    )  # fmt: skip
    add("--variants", metavar="A,B,...", help="the first is what the others are compared with")
    text = f"adds the variant {BEGUN!r}, with this state (evaluation.vocabulary)"
    add("--evidence", type=Path, metavar="FILE.npz", help=text)
    add(
        "--capacities", type=at_least(2), nargs="+", default=[64, 16], metavar="C",
        help="nodes of a tree",
    )  # fmt: skip
    add_machine_flags(parser)
    return run_benchmark(parser, argv, run)


if __name__ == "__main__":
    sys.exit(main())
