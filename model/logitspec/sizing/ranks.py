"""Where LogitSpec's trees end when they size themselves: what the guess of each rank is worth."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ..draft_tree import DraftTree
from .acceptance_table import AcceptanceTable
from .budget import Budget
from .step_cost import Measurable

# Probabilities that are believed at first, and how many observations that weighs:
RIGHT_AFTER_ROOT = 0.5  # of a token retrieved after the root
RIGHT_GUESS = 0.3  # of the best guess; of that at rank r so much over r + 1
RIGHT_AFTER_GUESS = 0.4  # of a token retrieved after a right guess
PRIOR_STRENGTH = 10.0


class FixedSize:
    """Trees as large as they are drafted."""

    def prepare(self, target: Measurable, top_k: int, node_top_k: int) -> None:
        """Find out about the target what has to be known, for a drafter with these widths."""

    def begin(self) -> None:
        """Begin a generation."""

    def cut(self, tree: DraftTree, ranks: Sequence[int | None], committed: int) -> DraftTree:
        """The tree that is to be verified.

        Args:
            tree: in the paper's order.
            ranks: of the guess to whose branch each node belongs; None: to the root's.
            committed: tokens so far.
        """
        return tree

    def learn(self, tree: DraftTree, path: Sequence[int]) -> None:
        """Take in the accepted nodes of the last tree that was cut."""

    def forget(self) -> None:
        """Drop what was learnt."""


class SizeByRank(FixedSize):
    """Trees that end where another guess costs more time than it is worth.

    A table learns how often the guess of each rank was right, and each of the tokens retrieved
    after the root or after a right guess, from drafts that were cut off as from any. So every node
    has a path probability, and the budget says how many of the nodes, in the paper's order, are
    worth their time.

    Args:
        guesses: most guesses of a tree.
        branch_length: of the longest branch that begins with a guess.
        num_pred_tokens: longest continuation retrieved after the root.
    """

    def __init__(self, guesses: int, branch_length: int, num_pred_tokens: int) -> None:
        self.budget = Budget()
        self._guesses = guesses
        after_guess = [RIGHT_AFTER_GUESS] * branch_length
        by_rank = [RIGHT_GUESS / (rank + 1) for rank in range(guesses)]
        self.table = AcceptanceTable(
            [*by_rank, *after_guess, *[RIGHT_AFTER_ROOT] * num_pred_tokens], PRIOR_STRENGTH
        )
        self._after_root = guesses + branch_length  # grade of the first token after the root
        self._whole = DraftTree(0, 1)  # the last tree, before it was cut
        self._grades, self._paths = [-1], [1.0]  # of its nodes
        self._awaited: int | None = None  # its last accepted node

    def prepare(self, target: Measurable, top_k: int, node_top_k: int) -> None:
        self.budget.prepare(target, top_k, node_top_k)

    def begin(self) -> None:
        self._awaited = None

    def cut(self, tree: DraftTree, ranks: Sequence[int | None], committed: int) -> DraftTree:
        if self._awaited is not None:  # the root came after the last path
            self._learn_below(self._awaited, tree.tokens[0])
        self._whole = tree
        self._grades = [self._grade(*node) for node in zip(tree.depths, ranks, strict=True)]
        self.budget.begin(committed, tree.capacity)
        paths = self._paths = [1.0]
        self.budget.add(1.0)
        for node in range(1, len(tree)):
            paths.append(paths[tree.parents[node]] * self.table.probability[self._grades[node]])
            self.budget.add(paths[node])
        return tree.first(self.budget.best_nodes)

    def _grade(self, depth: int, rank: int | None) -> int:
        if rank is None:
            return self._after_root + depth - 1  # the root's own is never looked at
        return rank if depth == 1 else self._guesses + depth - 2

    def learn(self, tree: DraftTree, path: Sequence[int]) -> None:
        for node, child in pairwise(path):
            self._learn_below(node, tree.tokens[child])
        self._awaited = path[-1]
        self.budget.learn(sum(self._paths[1 : len(tree)]), len(path) - 1, len(tree))

    def _learn_below(self, parent: int, true: int) -> None:
        tree = self._whole
        for node in range(parent + 1, len(tree)):
            if tree.parents[node] == parent:
                self.table.learn(self._grades[node], tree.tokens[node] == true)

    def forget(self) -> None:
        self.table.reset()
        self.budget.forget()
