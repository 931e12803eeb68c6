"""LogitSpec, the paper's method (arXiv 2507.01449): guess the next next token from the last logits,
then extend both the next token and every guess by retrieval from the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..draft_tree import DraftTree
from ..errors import require_positive
from ..ngram_pool import NgramPool
from .base import Drafter, register


def branch_length(rank: int) -> int:
    """Most tokens in the branch of the guess at `rank`, the guess included (docs/method.md, 3)."""
    if rank <= 8:
        return 4
    return 3 if rank <= 32 else 1


@register("logitspec")
class LogitSpecDrafter(Drafter):
    """The paper's: retrieval after the next token and after guesses at the next next token.

    Args:
        max_ngram_size: longest n-gram matched, the paper's N.
        num_pred_tokens: longest continuation retrieved, the paper's T.
        draft_tree_capacity: most nodes of a draft tree, root included, the paper's C.
        merge: share equal prefixes of branches (a trie) instead of keeping the branches apart as
            the paper does; which low ranks fit is all that changes.

    Raises:
        InputError: one of the three numbers is below 1.
    """

    options: ClassVar[Mapping[str, str]] = {
        "max_ngram_size": "longest n-gram matched in the context",
        "num_pred_tokens": "longest continuation retrieved",
        "draft_tree_capacity": "most nodes of a draft tree, root included",
        "merge": "share equal prefixes of branches, which the paper does not",
    }

    def __init__(
        self,
        max_ngram_size: int = 3,
        num_pred_tokens: int = 20,
        draft_tree_capacity: int = 64,
        *,
        merge: bool = False,
    ) -> None:
        require_positive(draft_tree_capacity=draft_tree_capacity)
        self.pool = NgramPool(max_ngram_size, num_pred_tokens)
        self.capacity = draft_tree_capacity
        self.top_k = draft_tree_capacity
        self.merge = merge

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        self.pool = NgramPool(self.pool.max_ngram_size, self.pool.num_pred_tokens)
        self.pool.extend(prompt_ids)

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        tree = DraftTree(root, self.capacity)
        context = [*self.pool.ids[-self.pool.max_ngram_size :], root]
        tree.add_branch(self.pool.lookup(context), merge=self.merge)
        for rank, guess in enumerate(top_ids):
            if tree.full:
                break
            if guess == root:  # its rank still counts: the first guess has rank 1
                continue
            length = branch_length(rank)
            retrieved = self.pool.lookup([*context, guess]) if length > 1 else []
            tree.add_branch([guess, *retrieved[: length - 1]], merge=self.merge)
        return tree

    def observe(
        self, tree: DraftTree, path: Sequence[int], top_ids: Sequence[Sequence[int]] = ()
    ) -> None:
        self.pool.extend(tree.tokens[node] for node in path)
