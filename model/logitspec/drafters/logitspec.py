"""LogitSpec, the paper's method (arXiv 2507.01449): guess the next next token from the last logits,
then extend both the next token and every guess by retrieval from the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from ..budget import Capacity, resolve_capacity
from ..draft_tree import DraftTree
from ..ngram_pool import NgramPool
from ..ranking import Ranking
from .base import CONTINUED, GUESSED, NEXT, RETRIEVED, Drafter, Measurable, register


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
        draft_tree_capacity: most nodes of a draft tree, root included, the paper's C; "auto" ends
            each tree at the rank from which on its guesses would cost more time than they are worth
            on this machine.
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
        draft_tree_capacity: Capacity = 64,
        *,
        merge: bool = False,
    ) -> None:
        self.capacity = resolve_capacity(draft_tree_capacity)
        self.pool = NgramPool(max_ngram_size, num_pred_tokens)
        self.top_k = self.capacity
        self.merge = merge
        self._retrieved = 0  # nodes of the last tree's first branch
        auto = draft_tree_capacity == "auto"
        self.ranking = Ranking(self.capacity, branch_length(0), num_pred_tokens) if auto else None

    def prepare(self, model: Measurable) -> None:
        if self.ranking is not None:
            self.ranking.budget.prepare(model, self.top_k, self.node_top_k)

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        if self.ranking is not None:
            self.ranking.end()
        self.pool = NgramPool(self.pool.max_ngram_size, self.pool.num_pred_tokens)
        self.pool.extend(prompt_ids)

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        if self.ranking is not None:
            self.ranking.learn_last(root)
        tree = DraftTree(root, self.capacity)
        context = [*self.pool.ids[-self.pool.max_ngram_size :], root]
        tree.add_branch(self.pool.lookup(context), merge=self.merge)
        self._retrieved = len(tree) - 1
        if self.ranking is not None:
            self.ranking.note(tree, None)
        for rank, guess in enumerate(top_ids):
            if tree.full:
                break
            if guess == root:  # its rank still counts: the first guess has rank 1
                continue
            length = branch_length(rank)
            retrieved = self.pool.lookup([*context, guess]) if length > 1 else []
            tree.add_branch([guess, *retrieved[: length - 1]], merge=self.merge)
            if self.ranking is not None:
                self.ranking.note(tree, rank)
        return tree if self.ranking is None else self.ranking.cut(tree, len(self.pool.ids))

    def observe(
        self, tree: DraftTree, path: Sequence[int], top_ids: Sequence[Sequence[int]] = ()
    ) -> None:
        if self.ranking is not None:
            self.ranking.learn(tree, path)
        self.pool.extend(tree.tokens[node] for node in path)

    def origins(self, tree: DraftTree) -> list[str]:
        guesses = [GUESSED if depth == 1 else CONTINUED for depth in tree.depths]
        first = 1 + self._retrieved
        return [NEXT, *[RETRIEVED] * (len(guesses[:first]) - 1), *guesses[first:]]

    def forget(self) -> None:
        if self.ranking is not None:
            self.ranking.table.reset()
