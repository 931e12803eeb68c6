"""Calibrated draft trees, this project's own method: grown best first by how likely each path is.

The evidence for a token is in evidence.py. What each grade of it is worth is in an acceptance table
that learns from every step, and what all of it together is worth in corrections.py. growth.py grows
the trees, and sizing/budget.py ends those that size themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, cast

from ... import origins
from ...draft_tree import DraftTree
from ...errors import InputError, require_positive
from ...listed import Numbers, are_answers, cut_scored
from ...sampling import Foresight
from ...sizing.acceptance_table import AcceptanceTable
from ...sizing.budget import Budget, Capacity, resolve_capacity
from ...sizing.step_cost import Measurable
from ..base import Drafter, register
from .compiled import CompiledCore
from .cores import Core, find_core
from .corrections import Corrections
from .evidence import MOST_EARLIER, Evidence
from .foresight import ForesightTable, SampledCore
from .growth import Drafted, ReadableCore
from .prior import PRIOR, SAMPLED_PRIOR, prior_of
from .source import Source
from .state import KEPT, NOTHING, STATES, check, layout_of, parts, with_answers

SAMPLED_WIDTH, CHEAP_SAMPLED_WIDTH = 128, 32  # finding more tokens takes more time


class State(NamedTuple):
    """What a drafter knows and learns, of best tokens or of samples whose noise is known."""

    evidence: Evidence
    table: AcceptanceTable
    corrections: Corrections
    foresight_table: ForesightTable | None  # of samples
    core: Core


@register("calibrated")
class CalibratedDrafter(Drafter):
    """Ours: guesses weighed by how often such guesses were right, the tree grown best first.

    Below every draft node the candidates are the tokens that some evidence names: what followed
    the longest matching n-gram, here and in earlier answers, the target's best tokens when it last
    stood at such a token (a row of "copy logits"), and, below the root, the last logits. An
    acceptance table knows how often candidates of each grade were right. A candidate that several
    sources name is likelier, which weights correct that are learnt on line. The candidates below a
    node share what there is. So each has a probability, given its parent; the product along a path
    is the path's. The tree takes the node next that is worth most: the most probable one, or one
    nearer to the root that is nearly as probable. Every step shows of each candidate below the
    accepted nodes whether it was right, and all of it is learnt from that.

    The table, its corrections, the rows and the n-grams of answers are kept from prompt to prompt.

    Of a sample the noise is known before it is drawn, so drafts are the tokens that win under it
    (foresight.py). That has a table, rows and n-grams of its own.

    Args:
        draft_tree_capacity: most nodes of a draft tree, root included; "auto" ends each tree where
            another node would cost more time than its tokens are worth on this machine.
        max_ngram_size: longest n-gram matched.
        row_width: tokens of a row.
        last_width: ranks of the last logits that are candidates.
        prior_strength: how many observations the fixed prior weighs in a grade.
        reset_table: begin every prompt with the prior.
        reset_rows: begin every prompt without the rows of earlier ones.
        reset_ngrams: begin every prompt without the n-grams of earlier answers.
        sampled_row_width: tokens of a row, of samples; 0: 128, and 32 where trees size themselves.
        blind: draft samples without looking at their noise.
        drafting_core: "python" drafts with growth.py; "native" with the same in C++, compiled when
            first needed (drafting.cpp); "auto" with the faster one there is.

    Raises:
        InputError: a number is too small, no such core, or it cannot be compiled here.
    """

    options: ClassVar[Mapping[str, str]] = {
        "draft_tree_capacity": "most nodes of a draft tree, root included",
        "max_ngram_size": "longest n-gram matched in the context",
        "row_width": "tokens of a row of copied logits",
        "last_width": "ranks of the last logits that are candidates",
        "prior_strength": "observations that the fixed prior weighs in each grade",
        "reset_table": "forget the learnt probabilities after each prompt",
        "reset_rows": "forget the copied logits after each prompt",
        "reset_ngrams": "forget the n-grams of the answer after each prompt",
        "sampled_row_width": "the same at a temperature; if left out, 128, and 32 with auto",
        "blind": "at a temperature, draft without looking at the noise of the samples",
        "drafting_core": "what drafts: native (C++, compiled when first needed), python, or auto",
    }

    readable = ReadableCore  # the core in Python

    def __init__(
        self,
        draft_tree_capacity: Capacity = 64,
        max_ngram_size: int = 5,
        row_width: int = 8,
        last_width: int = 24,
        prior_strength: float = 20.0,
        *,
        reset_table: bool = False,
        reset_rows: bool = False,
        reset_ngrams: bool = False,
        sampled_row_width: int = 0,
        blind: bool = False,
        drafting_core: str = "auto",
    ) -> None:
        require_positive(max_ngram_size=max_ngram_size, row_width=row_width, last_width=last_width)
        if sampled_row_width < 0:
            raise InputError(f"sampled_row_width is {sampled_row_width}; give 0 or more")
        self.capacity = resolve_capacity(draft_tree_capacity)
        self.top_k = last_width
        self.budget = Budget(learns=True) if draft_tree_capacity == "auto" else None
        self._reset_table = reset_table
        self._blind = blind
        self._core_wanted = drafting_core
        self._make_evidence = partial(
            Evidence, max_ngram_size, row_width, last_width,
            keep_rows=not reset_rows, keep_ngrams=not reset_ngrams,
        )  # fmt: skip
        self._prior_strength = prior_strength
        usual = SAMPLED_WIDTH if self.budget is None else CHEAP_SAMPLED_WIDTH
        self._widths = row_width, max(row_width, sampled_row_width or usual)
        self._states: dict[bool, State] = {}
        self._use(sampled=False)
        self.core = "native" if isinstance(self._core, CompiledCore) else "python"
        self._committed = 0  # tokens of prompt and answer
        self.drafted = Drafted([], [], [], [])  # the last tree
        self._begun_with: dict[str, Numbers] = {}  # what warm() was given

    def _use(self, *, sampled: bool) -> None:
        """Go on with what is known of samples whose noise is known, or with what is of the rest."""
        if sampled not in self._states:
            evidence = self._make_evidence()
            file = SAMPLED_PRIOR if sampled else PRIOR
            fitted = json.loads(file.read_text(encoding="utf-8"))
            prior = prior_of(fitted, evidence.sources)
            self._states[sampled] = self._state(evidence, prior, fitted.get("foresight"))
        known = self._states[sampled]
        self.evidence, self.table, self.corrections, self.foresight_table, self._core = known
        self.wants_logprobs = sampled
        self.node_top_k = self._widths[sampled]

    def _state(
        self, evidence: Evidence, prior: Sequence[float], foresight: Mapping[str, Any] | None
    ) -> State:
        table = AcceptanceTable(prior, self._prior_strength)
        corrections = Corrections(evidence.sources)
        learnt = None if foresight is None else ForesightTable(foresight)
        known = evidence, table, corrections
        core = find_core(self._core_wanted, (*known, self.capacity), learnt, readable=self.readable)
        return State(*known, learnt, core)

    @property
    def sources(self) -> Sequence[Source]:
        """Of evidence; the acceptance table has a place for every grade of each."""
        return self.evidence.sources

    @property
    def path_probabilities(self) -> list[float]:
        """Of the last tree's nodes, in its order."""
        return self.drafted.paths

    def use_prior(self, prior: Sequence[float], foresight: Mapping[str, Any] | None = None) -> None:
        """Begin anew with another prior.

        Args:
            prior: a probability for each grade of the acceptance table.
            foresight: that of a foresight table, if the prior is one of samples.

        Raises:
            ValueError: it has another number of grades.
        """
        if len(prior) != len(self.table.prior):
            raise ValueError(f"a prior of {len(prior)} grades for {len(self.table.prior)}")
        self.forget()
        if foresight is None:
            self.use_table(AcceptanceTable(prior, self._prior_strength))
            return
        self._states[True] = self._state(self._make_evidence(), prior, foresight)
        self._use(sampled=True)

    def use_table(self, table: AcceptanceTable) -> None:
        """Learn from and into another table from now on."""
        sampled = self.wants_logprobs
        self._states[sampled] = self._states[sampled]._replace(table=table)
        self.table = table
        self._core.use(table)

    @property
    def wants_best(self) -> bool:  # type: ignore[override]
        return self.budget is None or self.budget.rest <= 1

    def foresee(self, foresight: Foresight | None) -> None:
        if self._blind:
            foresight = None
        self._use(sampled=foresight is not None)
        if foresight is not None:
            cast("SampledCore | CompiledCore", self._core).foresee(foresight)

    def prepare(self, target: Measurable) -> None:
        if self.budget is not None:
            self.budget.prepare(target, self.top_k, self.node_top_k)

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        self._core.begin(prompt_ids)
        self.drafted = Drafted([], [], [], [])
        if self._reset_table:
            self._reset_tables()
        if self.budget is not None:
            self.budget.begin_generation(sampled=self.wants_logprobs)
        self._committed = len(prompt_ids)

    def _reset_tables(self) -> None:
        self.table.reset()
        self.corrections.reset()
        if self.foresight_table is not None:
            self.foresight_table.reset()

    def forget(self) -> None:
        self._forget()
        self._take(self._begun_with)

    def _forget(self) -> None:
        for sampled in self._states:
            self._use(sampled=sampled)
            self._core.forget()
            self._reset_tables()
        self._use(sampled=False)
        if self.budget is not None:
            self.budget.forget()
        self.drafted = Drafted([], [], [], [])

    def state(self) -> dict[str, Numbers]:
        found: dict[str, Numbers] = {"layout": self._layout}
        for sampled, known in self._states.items():
            kept = {**known.table.counted(), **known.corrections.counted(), **known.core.kept()}
            if known.foresight_table is not None:
                kept |= known.foresight_table.counted()
            found |= {f"{STATES[sampled]}{name}": numbers for name, numbers in kept.items()}
        return found

    def restore(self, state: Mapping[str, Numbers]) -> None:
        self._check(state)
        self._forget()
        self._take(self._cut(state))

    def warm(self, state: Mapping[str, Numbers]) -> None:
        if "answers" in state:
            if not are_answers(state["answers"]):
                raise InputError("the answers are no lists of token ids with a -1 behind each")
            state = with_answers(state)
            count = max(len(state[f"{begin}answers"]) for begin in STATES.values())
            most = MOST_EARLIER // self.evidence.ngrams.max_ngram_size
            if count > most:
                raise InputError(
                    f"answers and texts of {count} tokens are more than the {most} that are kept; "
                    "give fewer"
                )
        self._check(state)
        state = self._cut(state)
        self._forget()
        self._take(state)
        for known in self._states.values():
            known.table.believe()
            known.corrections.believe()
            if known.foresight_table is not None:
                known.foresight_table.believe()
        self._begun_with = {n: a for n, a in state.items() if n.rpartition(".")[2] in KEPT}

    @property
    def _layout(self) -> Numbers:
        return layout_of(self.evidence, self.top_k, self.corrections)

    def _check(self, state: Mapping[str, Numbers]) -> None:
        check(state, self._layout)

    def _cut(self, state: Mapping[str, Numbers]) -> Mapping[str, Numbers]:
        """The state with rows of samples that are no wider than this drafter's."""
        begin = STATES[True]
        if f"{begin}scored" not in state:
            return state
        rows = state[f"{begin}scored"], state.get(f"{begin}logs", NOTHING)
        scored, logs = cut_scored(*rows, self._widths[True])
        return {**state, f"{begin}scored": scored, f"{begin}logs": logs}

    def _take(self, state: Mapping[str, Numbers]) -> None:
        rows = 0
        for sampled in STATES:
            own = parts(state, sampled=sampled)
            if not own:
                continue
            self._use(sampled=sampled)
            self._core.take({name: own.get(name, NOTHING) for name in KEPT})
            rows = max(rows, len(own.get("rows", NOTHING)) // (2 + self.evidence.rows.width))
            if "grades" in own:
                self.table.take(own)
            if "weights" in own:
                self.corrections.take(own)
            if self.foresight_table is not None and "bins" in own:
                self.foresight_table.take(own)
        self._use(sampled=False)
        if self.budget is not None:
            self.budget.taught(rows)

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        if self.budget is not None:
            if self.budget.rest:
                self.drafted = Drafted([root], [0], [1.0], [()])
                return DraftTree(root, self.capacity)
            self.budget.begin(self._committed, self.capacity)
        self.drafted = self._core.draft(root, top_ids, self.budget)
        return DraftTree.of(self.drafted.tokens, self.drafted.parents, self.capacity)

    def observe(
        self,
        tree: DraftTree,
        path: Sequence[int],
        top_ids: Sequence[Sequence[int]] = (),
        logprobs: Sequence[Sequence[float]] = (),
    ) -> None:
        if len(tree) != len(self.drafted.tokens):
            raise ValueError(f"a tree of {len(tree)} nodes is not the last that was drafted")
        self._committed += len(path)
        if self.budget is not None and self.budget.rest:
            self.budget.rest -= 1
            self._core.skip(tree.tokens[0])
            return
        told = [logprobs] if self.wants_logprobs else []
        self._core.observe(self.drafted, path, top_ids, *told)
        if self.budget is not None:
            self.budget.learn(sum(self.path_probabilities[1:]), len(path) - 1, len(tree))

    def origins(self, tree: DraftTree) -> list[str]:
        found = [origins.NEXT]
        known = self.evidence
        for node in range(1, len(tree)):
            graded = zip(self.sources, self.drafted.grades[node], strict=True)
            naming = [source for source, place in graded if source.names(place)]
            if known.ngrams in naming or known.earlier in naming:
                after_root = found[tree.parents[node]] in (origins.NEXT, origins.RETRIEVED)
                found.append(origins.RETRIEVED if after_root else origins.CONTINUED)
            else:
                found.append(origins.GUESSED if known.last in naming else origins.COPIED)
        return found

    def explain(self, node: int) -> str:
        """What the probability of a node of the last tree is made of: one line per edge above it.

        The sources' probabilities are those before all corrections.

        Args:
            node: index in the tree, not the root's.
        """
        lines: list[str] = []
        tokens, parents, paths, _ = self.drafted
        while node:
            evidence, table = [], self.table
            for source, at in zip(self.sources, self.drafted.grades[node], strict=True):
                evidence.append(f"{source.name}: {source.grade(at)}")
                if source.names(at):
                    evidence[-1] += (
                        f", right {table.right[at]} of {table.seen[at]} times, prior "
                        f"{table.prior[at]:.3f}, now {table.probability[at]:.3f}"
                    )
            probability = paths[node] / paths[parents[node]]
            lines.append(f"token {tokens[node]}: {probability:.3f} ({'; '.join(evidence)})")
            node = parents[node]
        return "\n".join(reversed(lines))
