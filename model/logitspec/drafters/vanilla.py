"""Plain autoregressive decoding: a tree of one node, so every step commits one token."""

from __future__ import annotations

from collections.abc import Sequence

from ..draft_tree import DraftTree
from .base import Drafter, register


@register("vanilla")
class VanillaDrafter(Drafter):
    """No drafts: plain decoding in this project's own loop, one token a step."""

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        pass

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        return DraftTree(root, self.capacity)
