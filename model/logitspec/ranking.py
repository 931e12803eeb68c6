"""Where LogitSpec's trees end when they size themselves: what the guess of each rank is worth."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .budget import Budget
from .draft_tree import DraftTree
from .evidence import AcceptanceTable

# What trees that size themselves believe at first, and how many observations that weighs:
RETRIEVED = 0.5  # a token retrieved after the root is right
GUESSED = 0.3  # the best guess is; that at rank r so much over r + 1
CONTINUED = 0.4  # a token retrieved after a right guess is
PRIOR_STRENGTH = 10.0


class Ranking:
    """Where a tree that sizes itself ends, by the rank of its guesses.

    A table learns how often the guess of each rank was right, and each of the tokens retrieved
    after the root or after a right guess; so every node has a path probability, and the budget says
    how many of the nodes, in the paper's order, are worth their time.

    Args:
        ranks: of guesses, at most.
        branch_length: of the longest branch that begins with a guess.
        num_pred_tokens: longest continuation retrieved after the root.
    """

    def __init__(self, ranks: int, branch_length: int, num_pred_tokens: int) -> None:
        self.budget = Budget()
        self._ranks = ranks
        continued = [CONTINUED] * branch_length
        guesses = [GUESSED / (rank + 1) for rank in range(ranks)]
        self.table = AcceptanceTable(
            [*guesses, *continued, *[RETRIEVED] * num_pred_tokens], PRIOR_STRENGTH
        )
        self._retrieved = ranks + len(continued)  # cell of the first token retrieved after the root
        self._cells = [-1]  # of the nodes of the last tree
        self._tree: DraftTree | None = None  # the last tree
        self._last: int | None = None  # its last accepted node

    def end(self) -> None:
        """The last tree was the last of its generation."""
        self._last = None

    def note(self, tree: DraftTree, rank: int | None) -> None:
        """Tell that the tree's new nodes belong to the guess of a rank; None: to the root."""
        if rank is None:
            self._cells = [-1]
        for node in range(len(self._cells), len(tree)):
            place = tree.depths[node] - 1
            if rank is None:
                self._cells.append(self._retrieved + place)
            else:
                self._cells.append(self._ranks + place - 1 if place else rank)

    def cut(self, tree: DraftTree, committed: int) -> DraftTree:
        """The tree without the last nodes that are not worth their time."""
        self.budget.begin(committed, tree.capacity)
        paths = [1.0]
        self.budget.add(1.0)
        for node in range(1, len(tree)):
            paths.append(paths[tree.parents[node]] * self.table.probability[self._cells[node]])
            self.budget.add(paths[node])
        self._tree = tree.first(self.budget.best_nodes)
        return self._tree

    def learn(self, tree: DraftTree, path: Sequence[int]) -> None:
        """Take in which drafts below the path's nodes were right, but for the last node's."""
        self._last = None
        if tree is self._tree:  # not one that was cut because few tokens are wanted
            for node, child in pairwise(path):
                self._learn_below(tree, node, tree.tokens[child])
            self._last = path[-1]

    def learn_last(self, root: int) -> None:
        """Take in which token came after the last path."""
        if self._tree is not None and self._last is not None:
            self._learn_below(self._tree, self._last, root)

    def _learn_below(self, tree: DraftTree, parent: int, true: int) -> None:
        for node in range(parent + 1, len(tree)):
            if tree.parents[node] == parent:
                self.table.learn(self._cells[node], tree.tokens[node] == true)
