"""Prompt lookup decoding (Saxena 2023): copy what followed the last tokens earlier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..draft_tree import DraftTree
from ..errors import require_positive
from .base import Drafter, register


@register("pld")
class PromptLookupDrafter(Drafter):
    """Prompt lookup: one chain, copied from the earliest occurrence of the last n-gram.

    The pattern ends with the root; n falls from `max_ngram_size` to 1 until an occurrence is found
    that has `num_pred_tokens` tokens after it. If even one token has none, nothing is drafted. Of
    all occurrences the earliest has most tokens after it, so one per n-gram is remembered.

    Args:
        max_ngram_size: longest n-gram matched.
        num_pred_tokens: how many tokens are copied.

    Raises:
        InputError: one of the two is below 1.
    """

    options: ClassVar[Mapping[str, str]] = {
        "max_ngram_size": "longest n-gram matched in the context",
        "num_pred_tokens": "how many tokens are copied",
    }

    def __init__(self, max_ngram_size: int = 3, num_pred_tokens: int = 10) -> None:
        require_positive(max_ngram_size=max_ngram_size, num_pred_tokens=num_pred_tokens)
        self.max_ngram_size = max_ngram_size
        self.num_pred_tokens = num_pred_tokens
        self.capacity = num_pred_tokens + 1
        self._ids: list[int] = []
        # n-gram -> where the text after its first occurrence begins
        self._start: dict[tuple[int, ...], int] = {}

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        self._ids, self._start = [], {}
        self._extend(prompt_ids)

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        tree = DraftTree(root, self.capacity)
        length = len(self._ids) + 1  # the root counts: it may be the last token copied
        pattern = [*self._ids[-self.max_ngram_size :], root]
        for n in range(min(self.max_ngram_size, len(pattern)), 0, -1):
            start = self._start.get(tuple(pattern[-n:]), length)
            end = start + self.num_pred_tokens
            if end <= length:
                tree.add_branch([*self._ids[start:end], root][: self.num_pred_tokens])
                break
        return tree

    def observe(
        self, tree: DraftTree, path: Sequence[int], top_ids: Sequence[Sequence[int]] = ()
    ) -> None:
        self._extend([tree.tokens[node] for node in path])

    def _extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._ids.append(token)
            end = len(self._ids)
            for n in range(1, min(self.max_ngram_size, end) + 1):
                self._start.setdefault(tuple(self._ids[end - n :]), end)
