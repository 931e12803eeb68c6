"""LogitSpec, the paper's method (arXiv 2507.01449): guess the next next token from the last logits,
then extend both the next token and every guess by retrieval from the context."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from .. import origins
from ..draft_tree import DraftTree
from ..listed import ScoredRow, scored_row
from ..ngram_pool import NgramPool
from ..sampling import Foresight
from ..sizing.budget import Capacity, resolve_capacity
from ..sizing.ranks import FixedSize, SizeByRank
from ..sizing.step_cost import Measurable
from .base import Drafter, register
from .foreseen import WIDTH, Foreseer


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
        foresight: in samples, guesses are ranked by which token wins under their noise; not the
            paper's. In the first step, whose logits are the prompt's, they are not.

    Raises:
        InputError: one of the three numbers is below 1.
    """

    options: ClassVar[Mapping[str, str]] = {
        "max_ngram_size": "longest n-gram matched in the context",
        "num_pred_tokens": "longest continuation retrieved",
        "draft_tree_capacity": "most nodes of a draft tree, root included",
        "merge": "share equal prefixes of branches, which the paper does not",
        "foresight": "at a temperature, rank guesses by which token wins under the samples' noise",
    }
    branch_length = staticmethod(branch_length)

    def __init__(
        self,
        max_ngram_size: int = 3,
        num_pred_tokens: int = 20,
        draft_tree_capacity: Capacity = 64,
        *,
        merge: bool = False,
        foresight: bool = False,
    ) -> None:
        self.capacity = self.top_k = resolve_capacity(draft_tree_capacity)
        self.pool = NgramPool(max_ngram_size, num_pred_tokens)
        self.merge = merge
        self._ranks: list[int | None] = []  # of the last tree's nodes: of their branch's guess
        self._last: ScoredRow | None = None  # the last logits, of samples that are foreseen
        self._foreseer = Foreseer(wanted=foresight)
        self.size = FixedSize()
        if draft_tree_capacity == "auto":
            self.size = SizeByRank(self.capacity, self.branch_length(0), num_pred_tokens)

    def prepare(self, target: Measurable) -> None:
        self.size.prepare(target, self.top_k, self.node_top_k)

    def foresee(self, foresight: Foresight | None) -> None:
        self._foreseer.foresee(foresight)
        self.wants_logprobs = self._foreseer.sees
        self.node_top_k = max(WIDTH, self.top_k) if self.wants_logprobs else 0

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        self.size.begin()
        self.pool = NgramPool(self.pool.max_ngram_size, self.pool.num_pred_tokens)
        self.pool.extend(prompt_ids)
        self._foreseer.begin(prompt_ids)
        self._last = None

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        if self._last is not None:
            top_ids = self._foreseer.ranked(self._last, 0)
        tree = DraftTree(root, self.capacity)
        self._ranks = [None]
        for rank, branch in self.branches(root, top_ids):
            tree.add_branch(branch, merge=self.merge)
            self._ranks += [rank] * (len(tree) - len(self._ranks))
            if tree.full:
                break
        return self.size.cut(tree, self._ranks, len(self.pool.ids))

    def branches(
        self, root: int, top_ids: Sequence[int]
    ) -> Iterator[tuple[int | None, Sequence[int]]]:
        """The tree's branches below the root, in the paper's order.

        Returns:
            What is retrieved after the root, with None; then each guess and what is retrieved after
            it, with the rank of the guess.
        """
        context = [*self.pool.ids[-self.pool.max_ngram_size :], root]
        yield None, self.pool.lookup(context)
        for rank, guess in enumerate(top_ids):
            if guess == root:  # its rank, 0 but with foresight, still counts
                continue
            length = self.branch_length(rank)
            retrieved = self.pool.lookup([*context, guess]) if length > 1 else []
            yield rank, [guess, *retrieved[: length - 1]]

    def observe(
        self,
        tree: DraftTree,
        path: Sequence[int],
        top_ids: Sequence[Sequence[int]] = (),
        logprobs: Sequence[Sequence[float]] = (),
    ) -> None:
        self.size.learn(tree, path)
        self._foreseer.commit(len(path))
        last = path[-1]
        known = self.wants_logprobs and top_ids[last]
        self._last = scored_row(top_ids[last], logprobs[last]) if known else None
        self.pool.extend(tree.tokens[node] for node in path)

    def origins(self, tree: DraftTree) -> list[str]:
        def origin(depth: int, rank: int | None) -> str:
            if rank is None:
                return origins.RETRIEVED if depth else origins.NEXT
            return origins.GUESSED if depth == 1 else origins.CONTINUED

        return list(map(origin, tree.depths, self._ranks))

    def forget(self) -> None:
        self.size.forget()
