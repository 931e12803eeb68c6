"""Calibrated trees in Python: grown best first by what each node is worth.

That is its path probability, and in trees of a fixed size PATIENCE to the power of its depth times
that: what follows a sure path can be drafted in the next step, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

from ...listed import Numbers
from ...sizing.acceptance_table import AcceptanceTable
from ...sizing.budget import Budget
from .corrections import Corrections
from .evidence import Evidence
from .source import Candidates, Grades

PRUNING = 0.3  # of the least worth in the last tree: less is not even considered
PATIENCE = 0.92  # what a child that is surely right is worth beside its parent


class Drafted(NamedTuple):
    """A tree, a number of each for every node, the root's first."""

    tokens: list[int]
    parents: list[int]
    paths: list[float]  # path probabilities
    grades: list[Grades]  # the root's: none


class ReadableCore:
    """Collects evidence, grows trees from it, and learns what its candidates were worth.

    compiled.CompiledCore has the same methods.

    Args:
        evidence: looked into for candidates.
        table: how likely a candidate of each grade is right.
        corrections: how likely a candidate is by all its grades together.
        capacity: most nodes of a tree.
        chain_least: above 0 it drafts chains, of the best candidate at each place, which end where
            the path probability falls to this.
    """

    patience = PATIENCE

    def __init__(
        self,
        evidence: Evidence,
        table: AcceptanceTable,
        corrections: Corrections,
        capacity: int,
        *,
        chain_least: float = 0.0,
    ) -> None:
        self.chain_least = chain_least
        if chain_least:
            self.patience = 1.0
        self.evidence = evidence
        self.corrections = corrections
        self.capacity = capacity
        self.use(table)
        self._begin()

    def _begin(self) -> None:
        self._candidates: list[Any] = []  # below the nodes of the last tree, as weigh() noted them
        self._awaited: Any = None  # below the last accepted node
        self._least = 0.0  # what the last tree's last node was worth

    def use(self, table: AcceptanceTable) -> None:
        """Learn from and into this table from now on."""
        self.table = table

    def begin(self, prompt_ids: Sequence[int]) -> bool:
        """Begin a generation: see Evidence.begin()."""
        self._begin()
        return self.evidence.begin(prompt_ids)

    def forget(self) -> None:
        """Drop all evidence."""
        self.evidence.forget()
        self._begin()

    def kept(self) -> dict[str, Numbers]:
        """What begin() keeps of the evidence, see the sources' kept()."""
        return {"answers": self.evidence.earlier.kept(), "rows": self.evidence.rows.kept()}

    def take(self, kept: Mapping[str, Numbers]) -> None:
        """Take in evidence as kept() gives it."""
        self.evidence.earlier.take(kept["answers"])
        self.evidence.rows.take(kept["rows"])

    def draft(self, root: int, top_ids: Sequence[int], budget: Budget | None) -> Drafted:
        """Grow the next tree.

        Args:
            root: the next token.
            top_ids: best tokens of the last logits.
            budget: of a tree that sizes itself, begun; None: it is as large as it may be.
        """
        self._learn_awaited(root)
        if self.chain_least:
            drafted, _ = self.grow(root, top_ids, self.chain_least)
        elif budget is None:
            drafted, whole = self.grow(root, top_ids, self._least * PRUNING)
            if not whole:
                drafted, _ = self.grow(root, top_ids, 0.0)
        else:
            drafted, _ = self.grow(root, top_ids, budget.least, budget)
            for numbers in drafted:
                del numbers[budget.best_nodes :]
        return drafted

    def skip(self, token: int) -> None:
        """Take in a token that nothing was drafted for."""
        self._learn_awaited(token)
        self.evidence.extend([token])

    def _learn_awaited(self, token: int) -> None:
        if self._awaited is not None:
            self.learn(self._awaited, token)
        self._awaited = None

    def grow(
        self, root: int, top_ids: Sequence[int], floor: float, budget: Budget | None = None
    ) -> tuple[Drafted, bool]:
        """Grow a tree best first: the node that is worth most is next.

        Args:
            root: the next token.
            top_ids: best tokens of the last logits.
            floor: candidates worth less than this are left out.
            budget: told of every node; ends the growth.

        Returns:
            The tree, and whether it would have grown alike without a floor.
        """
        tree = Drafted([root], [0], [1.0], [()])
        self._candidates = []
        longest = self.evidence.longest
        contexts = [(*self.evidence.context, root)[-longest:]]
        depths = [0]
        heap: list[tuple[float, int, int, Grades, float]] = []
        # -worth, parent, token, grades, path probability
        patience = self.patience if budget is None else 1.0
        worth = 1.0
        node = 0
        if budget is not None:
            budget.add(worth)
        while True:
            self._least = worth
            if worth > floor:
                candidates = self.look(tree, contexts[node], top_ids)
                weighed, noted = self.weigh(candidates, contexts[node], depths[node])
                self._candidates.append(noted)
                if self.chain_least and weighed:
                    weighed = [max(weighed, key=itemgetter(2))]
                for token, grades, probability in weighed:
                    its = worth * patience * probability
                    if its > floor:
                        path = tree.paths[node] * probability
                        heappush(heap, (-its, node, token, grades, path))
            else:
                self._candidates.append(None)
            node += 1
            if node == self.capacity:
                return tree, True
            if not heap:
                return tree, floor == 0.0
            minus, parent, token, grades, path = heappop(heap)
            worth = -minus
            if budget is not None:
                if budget.enough(worth):
                    return tree, True
                budget.add(worth)
            tree.tokens.append(token)
            tree.parents.append(parent)
            tree.paths.append(path)
            tree.grades.append(grades)
            contexts.append((*contexts[parent], token)[-longest:])
            depths.append(depths[parent] + 1)

    def look(self, tree: Drafted, context: tuple[int, ...], top_ids: Sequence[int]) -> Candidates:
        """The candidates below the last node of a tree.

        Args:
            tree: so far.
            context: the last tokens up to the node, the node's own last.
            top_ids: best tokens of the last logits.
        """
        return self.evidence.look(context, top_ids if len(tree.tokens) == 1 else None)

    def weigh(
        self, candidates: Candidates, context: tuple[int, ...], depth: int
    ) -> tuple[list[tuple[int, Grades, float]], Any]:
        """How likely each candidate is right, given that its parent is.

        Args:
            candidates: from look().
            context: the last tokens up to the node that they are below.
            depth: of that node.

        Returns:
            Token, grades and probability of each, and what learn() is to be given.
        """
        _, named = candidates
        weighed = self.corrections.weigh(named, self.table.probability)
        return list(zip(named, named.values(), weighed.probabilities, strict=True)), weighed

    def learn(self, noted: Any, true: int) -> None:
        """Take in which of the candidates below an accepted node, as weigh() noted them, was
        right."""
        for token, weights in zip(noted.tokens, noted.weights, strict=True):
            for place in weights:
                if self.corrections.named[place]:
                    self.table.learn(place, token == true)
        self.corrections.learn(noted, true)

    def observe(
        self, drafted: Drafted, path: Sequence[int], top_ids: Sequence[Sequence[int]]
    ) -> None:
        """Learn from a verified tree.

        Args:
            drafted: the last tree.
            path: its committed nodes.
            top_ids: the best tokens after each node, as many of each; none: not known.
        """
        tokens, parents = drafted.tokens, drafted.parents
        for node, child in pairwise(path):
            known = self._candidates[node]
            if known is not None:
                self.learn(known, tokens[child])
        self._awaited = self._candidates[path[-1]]
        before = self.evidence.context[-1] if self.evidence.context else -1
        # The most probable nodes come first and shall be remembered, above them the accepted ones.
        for node in (*range(len(tokens) - 1, -1, -1), *path):
            if top_ids[node]:
                parent = tokens[parents[node]] if node else before
                self.evidence.rows.learn(parent, tokens[node], top_ids[node])
        self.evidence.extend([tokens[node] for node in path])
