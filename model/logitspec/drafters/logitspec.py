"""LogitSpec, the paper's method (arXiv 2507.01449): guess the next next token from the last logits,
then extend both the next token and every guess by retrieval from the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from ..budget import Budget, Capacity, resolve_capacity
from ..draft_tree import DraftTree
from ..evidence import AcceptanceTable
from ..ngram_pool import NgramPool
from .base import Drafter, register

if TYPE_CHECKING:
    from ..modeling_llama_kv import LlamaKVForCausalLM

# What trees that size themselves believe at first, and how many observations that weighs:
RETRIEVED = 0.5  # a token retrieved after the root is right
GUESSED = 0.3  # the best guess is; that at rank r so much over r + 1
CONTINUED = 0.4  # a token retrieved after a right guess is
PRIOR_STRENGTH = 10.0


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
        auto = draft_tree_capacity == "auto"
        self.ranking = Ranking(num_pred_tokens, self.capacity) if auto else None

    def prepare(self, model: LlamaKVForCausalLM) -> None:
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

    def forget(self) -> None:
        if self.ranking is not None:
            self.ranking.table.reset()


class Ranking:
    """Where a tree that sizes itself ends, by the rank of its guesses.

    A table learns how often the guess of each rank was right, and each of the tokens retrieved
    after the root or after a right guess; so every node has a path probability, and the budget says
    how many of the nodes, in the paper's order, are worth their time.
    """

    def __init__(self, num_pred_tokens: int, ranks: int) -> None:
        self.budget = Budget()
        self._ranks = ranks
        continued = [CONTINUED] * branch_length(0)
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
        self.budget.begin(committed)
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
