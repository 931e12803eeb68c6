"""What drafts for the method calibrated: one interface, written in Python and in C++.

growth.py is the method as it is meant to be read. compiled.py does the same, sum for sum, in a
tenth of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ...sizing.acceptance_table import AcceptanceTable
from ...sizing.budget import Budget

PRUNING = 0.3  # of the least path probability of the last tree: less is not even considered


class Drafted(NamedTuple):
    """A tree, a number of each for every node, the root's first."""

    tokens: list[int]
    parents: list[int]
    paths: list[float]  # path probabilities
    cells: list[int]  # in the acceptance table; the root's is -1


class Core(Protocol):
    """Collects evidence, grows trees from it, and learns what its candidates were worth."""

    def use(self, table: AcceptanceTable) -> None:
        """Learn from and into this table from now on."""

    def set_vocabulary(self, rows: Sequence[Sequence[int]]) -> None:
        """Take the best tokens after each token of the vocabulary, by token, all of one width."""

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Begin a generation: forget the last prompt but for what is kept."""

    def forget(self) -> None:
        """Drop all evidence but the vocabulary's."""

    def draft(self, root: int, top_ids: Sequence[int], budget: Budget | None) -> Drafted:
        """Grow the next tree.

        Args:
            root: the next token.
            top_ids: best tokens of the last logits.
            budget: of a tree that sizes itself, begun; None: it is as large as it may be.
        """

    def observe(
        self, drafted: Drafted, path: Sequence[int], top_ids: Sequence[Sequence[int]]
    ) -> None:
        """Learn from a verified tree.

        Args:
            drafted: the last tree.
            path: its committed nodes.
            top_ids: the best tokens after each node, as many of each; none: not known.
        """
