"""Calibrated draft trees, this project's own method: grown best first by how likely each path is.

The evidence for a token is in evidence.py, what it is worth in an acceptance table that learns from
every step; where a tree that sizes itself ends is budget.py's.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from ..budget import Budget, Capacity, resolve_capacity
from ..draft_tree import DraftTree
from ..errors import InputError, require_positive
from ..evidence import (
    MOST_EARLIER,
    MOST_FOLLOWERS,
    AcceptanceTable,
    AnswerEvidence,
    LastEvidence,
    NgramEvidence,
    RowEvidence,
    Source,
    additive_prior,
)
from ..native.compiler import Unavailable
from ..native.drafting import Drafting
from .base import CONTINUED, COPIED, GUESSED, NEXT, RETRIEVED, Drafter, Measurable, register

PRIOR = Path(__file__).with_name("calibrated_prior.json")  # benchmarks/fit_prior.py writes it
PRUNING = 0.3  # of the least path probability of the last tree: less is not even considered

CORES = ("auto", "native", "python")

Candidates = tuple[int, dict[int, int]]  # see evidence.Look, of all sources together


@register("calibrated")
class CalibratedDrafter(Drafter):
    """Ours: guesses weighed by how often such guesses were right, the tree grown best first.

    Below every draft node the candidates are the tokens that some evidence names: what followed
    the longest matching n-gram, here and in earlier answers, the target's best tokens when it last
    stood at such a token (a row of "copy logits"), and, below the root, the last logits. A
    candidate's grades select a cell of the acceptance table, which estimates how likely it is given
    its parent; the product along a path is the path's probability, and the tree takes the most
    probable path next. Every step shows of each candidate below the accepted nodes whether it was
    right, and the table learns it.

    The table, the rows and the n-grams of answers are kept from prompt to prompt.

    Args:
        draft_tree_capacity: most nodes of a draft tree, root included; "auto" ends each tree where
            another node would cost more time than its tokens are worth on this machine.
        max_ngram_size: longest n-gram matched.
        row_width: tokens of a row.
        last_width: ranks of the last logits that are candidates.
        prior_strength: how many observations the fixed prior weighs in a cell.
        vocabulary_rows: for so many token ids, the first, the target's best tokens after that token
            alone are found once per model, and stored: rows for tokens that were not met yet.
        reset_table: begin every prompt with the prior.
        reset_rows: begin every prompt without the rows of earlier ones.
        reset_ngrams: begin every prompt without the n-grams of earlier answers.
        drafting_core: "python" drafts with the code in this file; "native" with the same in C++,
            compiled when first needed (native/drafting.cpp); "auto" with the faster one there is.

    Raises:
        InputError: a number is too small, no such core, or it cannot be compiled here.
    """

    options: ClassVar[Mapping[str, str]] = {
        "draft_tree_capacity": "most nodes of a draft tree, root included",
        "max_ngram_size": "longest n-gram matched in the context",
        "row_width": "tokens of a row of copied logits",
        "last_width": "ranks of the last logits that are candidates",
        "prior_strength": "observations that the fixed prior weighs",
        "vocabulary_rows": "token ids whose successors are found once per model",
        "reset_table": "forget the learnt probabilities after each prompt",
        "reset_rows": "forget the copied logits after each prompt",
        "reset_ngrams": "forget the n-grams of the answer after each prompt",
        "drafting_core": "what drafts: native (C++, compiled when first needed), python, or auto",
    }

    def __init__(
        self,
        draft_tree_capacity: Capacity = 64,
        max_ngram_size: int = 5,
        row_width: int = 8,
        last_width: int = 24,
        prior_strength: float = 20.0,
        vocabulary_rows: int = 16384,
        *,
        reset_table: bool = False,
        reset_rows: bool = False,
        reset_ngrams: bool = False,
        drafting_core: str = "auto",
    ) -> None:
        require_positive(max_ngram_size=max_ngram_size, row_width=row_width, last_width=last_width)
        if not prior_strength > 0 or not vocabulary_rows >= 0:
            raise InputError(
                f"prior_strength is {prior_strength}, vocabulary_rows is {vocabulary_rows}; "
                "give more than 0, and 0 or more"
            )
        self.capacity = resolve_capacity(draft_tree_capacity)
        self.top_k = last_width
        self.node_top_k = row_width
        self.budget = Budget() if draft_tree_capacity == "auto" else None
        self._vocabulary_rows = vocabulary_rows
        self._reset_table = reset_table
        self._ngrams = NgramEvidence(max_ngram_size, stride=1)
        self._rows = RowEvidence(row_width, len(self._ngrams.grades), keep=not reset_rows)
        self._last = LastEvidence(last_width, self._rows.stride * len(self._rows.grades))
        self._earlier = AnswerEvidence(
            max_ngram_size, self._last.stride * len(self._last.grades), keep=not reset_ngrams
        )
        self.sources = (self._ngrams, self._rows, self._last, self._earlier)
        self.table = AcceptanceTable(read_prior(self.sources), prior_strength)
        self._native = self._compiled(drafting_core)
        self.core = "python" if self._native is None else "native"
        self._model: object = None
        self._begin()

    def _compiled(self, core: str) -> Drafting | None:
        """The same in C++, if it is wanted and can be compiled."""
        if core not in CORES:
            raise InputError(f"drafting_core is {core!r}; give {', '.join(CORES)}")
        if core == "python":
            return None
        try:
            return Drafting(
                self.table, self._last.steps, capacity=self.capacity, pruning=PRUNING,
                max_ngram_size=self._ngrams.max_ngram_size, lengths=self._ngrams.lengths,
                row_width=self._rows.width, ranks=self._rows.ranks,
                row_stride=self._rows.stride, last_stride=self._last.stride,
                earlier_stride=self._earlier.stride,
                most_followers=MOST_FOLLOWERS, most_earlier=MOST_EARLIER,
                keep_rows=self._rows.keep, keep_ngrams=self._earlier.keep,
            )  # fmt: skip
        except Unavailable as error:
            if core == "native":
                raise InputError(
                    f"drafting_core cannot be native: {error}; give auto or python"
                ) from error
            warnings.warn(f"calibrated drafts in Python, which is slower: {error}", stacklevel=3)
            return None

    def use_prior(self, prior: Sequence[float]) -> None:
        """Begin anew with another prior, of as many cells.

        Raises:
            ValueError: it has another number of cells.
        """
        if len(prior) != len(self.table.prior):
            raise ValueError(f"a prior of {len(prior)} cells for {len(self.table.prior)}")
        self.forget()
        self.table = AcceptanceTable(prior, self.table.strength)
        if self._native is not None:
            self._native.use(self.table)

    def _begin(self) -> None:
        self.path_probabilities: list[float] = []  # of the last tree's nodes, in its order
        self.cells: list[int] = []  # of the same nodes, in the acceptance table
        self._tree: DraftTree | None = None
        self._candidates: list[Candidates | None] = []  # below the nodes of the last tree
        self._awaited: Candidates | None = None  # below the last accepted node
        self._least = 0.0  # path probability of the last tree's last node
        self._committed = 0

    def prepare(self, model: Measurable) -> None:
        if model is self._model:
            return
        self._model = model
        if self._vocabulary_rows:
            self._rows.vocabulary = model.successors(self._vocabulary_rows, self._rows.width)
            if self._native is not None:
                self._native.set_vocabulary(self._rows.vocabulary)
        if self.budget is not None:
            self.budget.prepare(model, self.top_k, self.node_top_k)

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        if self._native is not None:
            self._native.begin(prompt_ids)
        else:
            for source in self.sources:
                source.begin(prompt_ids)
        if self._reset_table:
            self.table.reset()
        self._begin()
        self._committed = len(prompt_ids)

    def forget(self) -> None:
        if self._native is not None:
            self._native.forget()
        for source in self.sources:
            source.forget()
        self.table.reset()
        self._begin()

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        if self.budget is not None:
            self.budget.begin(self._committed, self.capacity)
        if self._native is not None:
            drafted = self._native.draft(root, top_ids, self.budget)
            self._tokens, self._parents, self.path_probabilities, self.cells = drafted
        else:
            if self._awaited is not None:
                self._learn(self._awaited, root)
            self._awaited = None
            if self.budget is None:
                if not self._grow(root, top_ids, self._least * PRUNING):
                    self._grow(root, top_ids, 0.0)
            else:
                self._grow(root, top_ids, self.budget.least)
                nodes = self.budget.best_nodes
                for numbers in (self._tokens, self._parents, self.path_probabilities, self.cells):
                    del numbers[nodes:]
            self._least = self.path_probabilities[-1]
        self._tree = DraftTree.of(self._tokens, self._parents, self.capacity)
        return self._tree

    def _grow(self, root: int, top_ids: Sequence[int], floor: float) -> bool:
        """Grow a tree best first; candidates under a path probability of `floor` are left out.

        Returns:
            Whether it is the tree that would have grown without a floor.
        """
        probability, budget = self.table.probability, self.budget
        self._tokens, self._parents = [root], [0]
        self.path_probabilities, self.cells = [1.0], [-1]
        self._candidates = []
        longest = max(self._ngrams.max_ngram_size, 2)
        contexts = [(*self._ngrams.context, root)[-longest:]]
        heap: list[tuple[float, int, int, int]] = []  # (-path probability, parent, token, cell)
        path = 1.0
        node = 0
        if budget is not None:
            budget.add(path)
        while True:
            if path > floor:
                base, named = candidates = self._look(contexts[node], top_ids if not node else None)
                self._candidates.append(candidates)
                for token, more in named.items():
                    reached = path * probability[base + more]
                    if reached > floor:
                        heappush(heap, (-reached, node, token, base + more))
            else:
                self._candidates.append(None)
            node += 1
            if node == self.capacity:
                return True
            if not heap:
                return floor == 0.0
            path, parent, token, cell = heappop(heap)
            path = -path
            if budget is not None:
                if budget.enough(path):
                    return True
                budget.add(path)
            self._tokens.append(token)
            self._parents.append(parent)
            self.path_probabilities.append(path)
            self.cells.append(cell)
            contexts.append((*contexts[parent], token)[-longest:])

    def _look(self, context: tuple[int, ...], top_ids: Sequence[int] | None) -> Candidates:
        """All sources together: where a token without evidence stands, and how far others."""
        base, named = self._rows.look(context)
        looks = [self._ngrams.look(context), self._earlier.look(context)]
        if top_ids is not None:
            looks.append(self._last.below_root(context[-1], top_ids))
        for more, others in looks:
            base += more
            for token, step in others.items():
                named[token] = named.get(token, 0) + step
        return base, named

    def _learn(self, candidates: Candidates, true: int) -> None:
        base, named = candidates
        learn = self.table.learn
        for token, more in named.items():
            learn(base + more, token == true)

    def observe(
        self, tree: DraftTree, path: Sequence[int], top_ids: Sequence[Sequence[int]] = ()
    ) -> None:
        self._committed += len(path)
        tokens, parents = tree.tokens, tree.parents
        if self._native is not None:
            is_last = tree is self._tree
            self._native.observe(tokens, parents, path, top_ids, is_last=is_last)
            return
        self._awaited = None
        if tree is self._tree:  # not one that was cut because few tokens are wanted
            for node, child in pairwise(path):
                known = self._candidates[node]
                if known is not None:
                    self._learn(known, tokens[child])
            self._awaited = self._candidates[path[-1]]
        before = self._ngrams.context[-1]
        # The most probable nodes come first and shall be remembered, above them the accepted ones.
        for node in (*range(len(tokens) - 1, -1, -1), *path):
            if top_ids[node]:
                parent = tokens[parents[node]] if node else before
                self._rows.learn(parent, tokens[node], top_ids[node])
        committed = [tokens[node] for node in path]
        self._ngrams.extend(committed)
        self._earlier.extend(committed)

    def origins(self, tree: DraftTree) -> list[str]:
        found = [NEXT]
        for node in range(1, len(tree)):
            cell, above = self.cells[node], found[tree.parents[node]]
            if self._ngrams.names(cell) or self._earlier.names(cell):
                after_guess = above in (GUESSED, CONTINUED, COPIED)
                found.append(CONTINUED if after_guess else RETRIEVED)
            else:
                found.append(GUESSED if self._last.names(cell) else COPIED)
        return found

    def explain(self, node: int) -> str:
        """What the probability of a node of the last tree is made of: one line per edge above it.

        Args:
            node: index in the tree, not the root's.
        """
        lines: list[str] = []
        while node:
            cell, table = self.cells[node], self.table
            evidence = "; ".join(f"{s.name}: {s.grade(cell)}" for s in self.sources)
            lines.append(
                f"token {self._tokens[node]}: {table.probability[cell]:.3f} ({evidence}; right "
                f"{table.right[cell]} of {table.seen[cell]} times, prior {table.prior[cell]:.3f})"
            )
            node = self._parents[node]
        return "\n".join(reversed(lines))


def read_prior(sources: Sequence[Source]) -> list[float]:
    """The fixed prior of every cell: the file's weights of the grades (evidence.additive_prior)."""
    return prior_of(json.loads(PRIOR.read_text(encoding="utf-8")), sources)


def prior_of(fitted: Mapping[str, Any], sources: Sequence[Source]) -> list[float]:
    """The prior of every cell that the weights of a file like that make up."""
    weights = [[fitted[source.name][grade] for grade in source.fitted] for source in sources]
    return additive_prior(fitted["bias"], weights)
