"""Token Recycling (Luo et al., ACL 2025, arXiv 2408.08696): what the target last ranked after a
token is the draft after that token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from .. import origins
from ..draft_tree import DraftTree
from ..errors import InputError, require_positive
from ..listed import (
    Numbers,
    are_scored,
    count_tokens,
    list_rows,
    list_scored,
    rows_of,
    scored_of,
)
from ..sampling import Foresight
from .base import Drafter, register
from .foreseen import OPTION, WIDTH, Foreseer

SUCCESSORS = 8  # columns of the adjacency matrix

# The published static tree. A node is written as its ranks from the root down, "03" being the
# fourth choice after the root's first; the number says how many children it has.
CHILDREN = {
    "": 8,
    "0": 8, "1": 4, "2": 3, "3": 2, "4": 1, "5": 1, "6": 1, "7": 1,
    "00": 8, "01": 3, "02": 2, "03": 1, "04": 1, "05": 1, "06": 1, "07": 1,
    "10": 2, "11": 1, "20": 1, "30": 1, "40": 1, "50": 1,
    "000": 5, "001": 2, "002": 1, "003": 1, "004": 1,
    "010": 1, "020": 1, "100": 1, "200": 1, "300": 1,
    "0000": 3, "0001": 1, "0002": 1, "0010": 1, "0100": 1, "1000": 1,
    "00000": 2, "00010": 1,
}  # fmt: skip


def static_tree(children: Mapping[str, int] = CHILDREN) -> list[tuple[int, int]]:
    """(parent, rank) of a tree's nodes below the root, breadth first.

    Node 0 is the root, entry i describes node i + 1.
    """
    nodes: list[tuple[int, int]] = []
    names = [""]
    for parent, name in enumerate(names):  # the list grows while it is walked
        for rank in range(children.get(name, 0)):
            nodes.append((parent, rank))
            names.append(f"{name}{rank}")
    return nodes


@register("recycling")
class TokenRecyclingDrafter(Drafter):
    """Token Recycling: a fixed tree filled with each token's last known successors.

    After every step the `SUCCESSORS` best tokens after each verified node, accepted or not, become
    the row of that node's token (the last node of a token wins). Rows are kept across prompts, so a
    run starts cold and warms up. Below a token that was never verified nothing is drafted, and the
    places of the fixed tree that stay empty are not used otherwise.

    Args:
        draft_tree_capacity: most nodes, root included; of the published tree (80 nodes below the
            root) the first ones in breadth-first order.
        children: another fixed tree, written as CHILDREN.
        foresight: in samples, rows are ranked by which token wins under their noise; not published.

    Raises:
        InputError: the capacity is below 1.
    """

    options: ClassVar[Mapping[str, str]] = {
        "draft_tree_capacity": "most nodes of a draft tree, root included, of the published 81",
        "foresight": OPTION,
    }

    def __init__(
        self,
        draft_tree_capacity: int = 81,
        children: Mapping[str, int] = CHILDREN,
        *,
        foresight: bool = False,
    ) -> None:
        require_positive(draft_tree_capacity=draft_tree_capacity)
        self._shape = static_tree(children)[: draft_tree_capacity - 1]
        self.capacity = len(self._shape) + 1
        self._successors: dict[int, Sequence[int]] = {}
        self._foreseer = Foreseer(wanted=foresight)
        self.foresee(None)

    def foresee(self, foresight: Foresight | None) -> None:
        self._foreseer.foresee(foresight)
        self.wants_logprobs = self._foreseer.sees
        self.node_top_k = WIDTH if self.wants_logprobs else SUCCESSORS

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        self._foreseer.begin(prompt_ids)  # nothing is learnt from the prompt, nothing forgotten

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        tree = DraftTree(root, self.capacity)
        placed = {0: 0}  # node of the static tree -> node of this one
        known: dict[int, Sequence[int]] = {}  # of a placed node: its successors
        for node, (parent, rank) in enumerate(self._shape, start=1):
            if parent in placed:
                if parent not in known:
                    known[parent] = self._after(tree, placed[parent])
                if rank < len(known[parent]):
                    placed[node] = tree.add(known[parent][rank], placed[parent])
        return tree

    def _after(self, tree: DraftTree, node: int) -> Sequence[int]:
        """What may follow a node, the likeliest first."""
        foreseen = self._foreseer.after(tree, node)
        return self._successors.get(tree.tokens[node], ()) if foreseen is None else foreseen

    def observe(
        self,
        tree: DraftTree,
        path: Sequence[int],
        top_ids: Sequence[Sequence[int]] = (),
        logprobs: Sequence[Sequence[float]] = (),
    ) -> None:
        self._foreseer.commit(len(path))
        if self.wants_logprobs:
            self._foreseer.learn(tree.tokens, top_ids, logprobs)
        else:
            self.learn(tree.tokens, top_ids)

    def learn(self, tokens: Sequence[int], rows: Sequence[Sequence[int]]) -> None:
        """Take in the best tokens after each of some tokens."""
        known = zip(tokens, rows, strict=True)
        self._successors.update((token, row) for token, row in known if row)

    def origins(self, tree: DraftTree) -> list[str]:
        return [origins.NEXT, *[origins.COPIED] * (len(tree) - 1)]

    def forget(self) -> None:
        self._successors.clear()
        self._foreseer.rows.clear()

    def state(self) -> dict[str, Numbers]:
        scored, logs = list_scored(self._foreseer.rows)
        return {"rows": list_rows(self._successors), "scored": scored, "logs": logs}

    def restore(self, state: Mapping[str, Numbers]) -> None:
        scored, logs = (state.get(name, np.empty(0, np.int64)) for name in ("scored", "logs"))
        if (
            set(state) not in ({"rows"}, {"rows", "scored", "logs"})
            or count_tokens(state["rows"]) is None
            or not are_scored(scored, logs)
        ):
            raise InputError("the state makes no sense, it may be damaged")
        self._successors = {**rows_of(state["rows"])}
        self._foreseer.rows = scored_of(scored, logs)
