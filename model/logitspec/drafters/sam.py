"""SAM-Decoding (Hu et al., ACL 2025, arXiv 2411.10666) alone: copies what followed the longest
suffix of the context where it occurred first. Its other form is sam_recycling.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..draft_tree import DraftTree
from ..errors import InputError, require_positive
from ..suffix_automaton import SuffixAutomaton
from .base import Drafter, register


@register("sam")
class SamDrafter(Drafter):
    """SAM-Decoding: one chain, copied from the first place of the longest suffix seen before.

    A suffix automaton of prompt and answer finds the longest suffix of the context, root included,
    that occurred before. The chain has at most `alpha` tokens for each token matched. It is the
    published method without a corpus.

    Args:
        n_predicts: most tokens of a chain, root included.
        alpha: drafted tokens per token matched.

    Raises:
        InputError: n_predicts is below 1, or alpha no number from 0.
    """

    options: ClassVar[Mapping[str, str]] = {
        "n_predicts": "most tokens of a copied chain, root included",
        "alpha": "drafted tokens per token matched",
    }

    def __init__(self, n_predicts: int = 40, alpha: float = 4.0) -> None:
        require_positive(n_predicts=n_predicts)
        if not 0 <= alpha < math.inf:
            raise InputError(f"alpha is {alpha}; give a number, 0 or more")
        self.capacity = n_predicts
        self._alpha = alpha
        self._text = SuffixAutomaton()

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        self._text = SuffixAutomaton()
        self._text.extend(prompt_ids)

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        tree = DraftTree(root, self.capacity)
        state, matched = self._text.match(root)
        count = min(self.capacity - 1, int(self._alpha * matched))
        tree.add_branch(self._text.continuation(state, count))
        return tree

    def observe(
        self, tree: DraftTree, path: Sequence[int], top_ids: Sequence[Sequence[int]] = ()
    ) -> None:
        self._text.extend([tree.tokens[node] for node in path])
