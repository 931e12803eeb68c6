"""SAM-Decoding with Token Recycling (Hu et al., ACL 2025, arXiv 2411.10666): a copied chain where
the match is long, Token Recycling's tree elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from .. import origins
from ..draft_tree import DraftTree
from ..errors import require_positive
from ..listed import Numbers
from ..suffix_automaton import SuffixAutomaton
from .base import Drafter, register
from .token_recycling import SUCCESSORS, TokenRecyclingDrafter

# Its fixed tree of 60 nodes below the root, written as CHILDREN of token_recycling.py.
CHILDREN = {
    "": 7,
    "0": 6, "1": 5, "2": 3, "3": 2, "4": 2, "5": 1, "6": 1,
    "00": 3, "01": 2, "02": 2, "03": 1, "04": 1,
    "10": 3, "11": 2, "12": 1, "13": 1, "20": 1, "21": 1, "30": 1, "40": 1, "50": 1,
    "000": 2, "001": 1, "010": 1, "100": 2, "110": 1, "200": 1,
    "0000": 2, "0010": 1, "1000": 1,
}  # fmt: skip


@register("sam_recycling")
class SamRecyclingDrafter(Drafter):
    """SAM-Decoding with Token Recycling: a copied chain if the match is long, else a fixed tree.

    The longest suffix of the context, root included, that occurred before is matched as in `sam`.
    Of `len_threshold` tokens or more, what followed its first place is copied; while fewer than
    n_predicts tokens follow there, its next shorter suffix with more places counts instead.
    A shorter match drafts Token Recycling's tree, with another shape. Its rows are learnt from
    every verified node and from the prompt, and kept across prompts. The two are never merged. It
    is the published method without a corpus.

    Args:
        draft_tree_capacity: most nodes, root included; of the fixed tree (60 nodes below the root)
            the first ones in breadth-first order.
        n_predicts: most tokens of a chain, root included; published: 40, and 16 for code.
        len_threshold: shortest match, in tokens, that is copied after.

    Raises:
        InputError: a number is below 1.
    """

    options: ClassVar[Mapping[str, str]] = {
        "draft_tree_capacity": "most nodes of a draft tree, root included",
        "n_predicts": "most tokens of a copied chain, root included",
        "len_threshold": "shortest match that is copied after instead of drafting the fixed tree",
    }
    node_top_k = prompt_top_k = SUCCESSORS

    def __init__(
        self, draft_tree_capacity: int = 61, n_predicts: int = 40, len_threshold: int = 5
    ) -> None:
        require_positive(
            draft_tree_capacity=draft_tree_capacity,
            n_predicts=n_predicts,
            len_threshold=len_threshold,
        )
        self._recycling = TokenRecyclingDrafter(draft_tree_capacity, CHILDREN)
        self._longest = min(n_predicts, draft_tree_capacity)
        self.capacity = max(self._recycling.capacity, self._longest)
        self._len_threshold = len_threshold
        self._text = SuffixAutomaton()
        self._origin = origins.COPIED  # of the last tree's drafts

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        self._text = SuffixAutomaton()
        self._text.extend(prompt_ids)
        self._recycling.learn(prompt_ids, top_ids)

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        state, matched = self._text.match(root)
        if matched < self._len_threshold:
            self._origin = origins.COPIED
            return self._recycling.draft(root, top_ids)
        self._origin = origins.RETRIEVED
        tree = DraftTree(root, self.capacity)
        state = self._text.followed_by(state, self._longest)
        tree.add_branch(self._text.continuation(state, self._longest - 1))
        return tree

    def observe(
        self, tree: DraftTree, path: Sequence[int], top_ids: Sequence[Sequence[int]] = ()
    ) -> None:
        self._text.extend([tree.tokens[node] for node in path])
        self._recycling.observe(tree, path, top_ids)

    def origins(self, tree: DraftTree) -> list[str]:
        return [origins.NEXT, *[self._origin] * (len(tree) - 1)]

    def forget(self) -> None:
        self._recycling.forget()

    def state(self) -> dict[str, Numbers]:
        return self._recycling.state()

    def restore(self, state: Mapping[str, Numbers]) -> None:
        self._recycling.restore(state)
