"""REST (He et al., NAACL 2024, arXiv 2311.08252): the draft is what most often followed the end of
the context in a datastore of documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import ClassVar

import numpy as np

from ..datastore import COMMAND, SEPARATOR, Ints, open_datastore
from ..draft_tree import DraftTree
from ..errors import InputError, require_positive
from ..sizing.step_cost import Measurable
from .base import Drafter, register

SHORTEST = 2  # tokens of a suffix of the context, the root included
FEW = 32  # continuations


@register("rest")
class RestDrafter(Drafter):
    """REST: the most frequent continuations of the context's end in a datastore of documents.

    The longest suffix of the context, root included, that occurs in the datastore is looked up. Of
    what follows its first `max_hits` occurrences, in the order of the suffix array, every prefix is
    counted. The most frequent prefixes are the tree; of equally frequent ones the shorter, then the
    lexicographically smaller. Nothing is learnt.

    Args:
        datastore: the file, built by `python -m data.datastore`.
        draft_tree_capacity: most nodes of a draft tree, root included.
        max_ngram_size: longest suffix looked up; the shortest is SHORTEST.
        num_pred_tokens: longest continuation.
        max_hits: most occurrences that are counted.
        published_cut: as the authors' code does, keep of these prefixes, those with the fewest
            different tokens first, only as many as hold a tree's tokens when each is counted whole.

    Raises:
        InputError: there is no datastore, it is torn, or a number makes no sense.
    """

    options: ClassVar[Mapping[str, str]] = {
        "datastore": f"file to draft from, which `{COMMAND}` builds",
        "draft_tree_capacity": "most nodes of a draft tree, root included",
        "max_ngram_size": "longest suffix of the context looked up, root included",
        "num_pred_tokens": "longest continuation retrieved",
        "max_hits": "most occurrences that are counted",
        "published_cut": "drop the longest branches as the authors' code does, not their paper",
    }

    def __init__(
        self,
        datastore: str | None = None,
        draft_tree_capacity: int = 65,
        max_ngram_size: int = 16,
        num_pred_tokens: int = 10,
        max_hits: int = 5000,
        *,
        published_cut: bool = False,
    ) -> None:
        if datastore is None:
            raise InputError(
                "the method rest drafts from a datastore and is given none; name one with "
                "--datastore FILE of evaluation.run or evaluation.inference_rest, --grid "
                "datastore=FILE of evaluation.replay, or RestDrafter(FILE) in Python; "
                f"`{COMMAND}` builds it"
            )
        require_positive(
            draft_tree_capacity=draft_tree_capacity,
            num_pred_tokens=num_pred_tokens,
            max_hits=max_hits,
        )
        if max_ngram_size < SHORTEST:
            raise InputError(f"max_ngram_size is {max_ngram_size}; give {SHORTEST} or more")
        self.capacity = draft_tree_capacity
        self._name, self._store = datastore, open_datastore(datastore)
        self.tokenizer, self.drafts_from = self._store.tokenizer, self._store.sha256
        self._longest, self._length, self._most = max_ngram_size, num_pred_tokens, max_hits
        self._published_cut = published_cut
        self._context: list[int] = []  # the last committed tokens

    def prepare(self, target: Measurable) -> None:
        if self._store.vocab_size > target.vocab_size:
            raise InputError(
                f"the datastore {self._name} holds ids up to {self._store.vocab_size - 1}, the "
                f"model has {target.vocab_size}; build it anew with the model's own tokenizer"
            )

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        self._context = list(prompt_ids[-self._longest :])

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        tree = DraftTree(root, self.capacity)
        context = [*self._context, root][-self._longest :]
        found = self._store.continuations(context, SHORTEST, self._most, self._length)
        branches = most_frequent(found, self.capacity - 1)
        if self._published_cut:
            branches = cut(branches, self.capacity - 1)
        for branch in branches:
            tree.add_branch(branch, merge=True)
        return tree

    def observe(
        self, tree: DraftTree, path: Sequence[int], top_ids: Sequence[Sequence[int]] = ()
    ) -> None:
        committed = [tree.tokens[node] for node in path]
        self._context = [*self._context, *committed][-self._longest :]


def most_frequent(continuations: Ints, most: int) -> list[tuple[int, ...]]:
    """The most frequent prefixes of a Datastore's continuations, every one after its own."""
    if continuations.shape[1] < FEW:
        return most_frequent_of_few(continuations, most)
    # The columns are sorted: those with an equal prefix stand side by side.
    begins = np.ones(continuations.shape, np.bool_)  # a prefix that the column before has not
    np.not_equal(continuations[:, 1:], continuations[:, :-1], out=begins[:, 1:])
    for above, row in pairwise(begins):
        row |= above
    first = np.flatnonzero(begins)  # of every prefix, the shorter ones first
    counts = np.diff(first, append=begins.size)
    ended = continuations == SEPARATOR
    if ended.any():
        for above, row in pairwise(ended):
            row |= above
        counts[ended.ravel()[first]] = 0
    least = 1
    if 0 < most < len(counts):
        least = max(least, np.partition(counts, -most)[-most])
    kept = [np.flatnonzero(counts > least), np.flatnonzero(counts == least)]
    best = np.concatenate(kept)[:most]
    best = best[np.argsort(-counts[best], kind="stable")]
    depths, columns = np.divmod(first[best], continuations.shape[1])
    ends = zip((depths + 1).tolist(), columns.tolist(), strict=True)
    return [tuple(continuations[:end, column].tolist()) for end, column in ends]


def most_frequent_of_few(continuations: Ints, most: int) -> list[tuple[int, ...]]:
    """The same, faster than a dozen calls of numpy, whose code is not in the cache after a step."""
    counts: dict[tuple[int, ...], int] = {}
    for column in continuations.T.tolist():
        prefix: tuple[int, ...] = ()
        for token in column:
            if token == SEPARATOR:
                break
            prefix += (token,)
            counts[prefix] = counts.get(prefix, 0) + 1
    return sorted(counts, key=lambda prefix: (-counts[prefix], len(prefix)))[:most]


def cut(branches: list[tuple[int, ...]], most: int) -> list[tuple[int, ...]]:
    """The branches with the fewest different tokens, as long as these are `most` in all."""
    ordered = sorted(branches, key=lambda branch: len(set(branch)))
    totals = accumulate(len(set(branch)) for branch in ordered)
    return [branch for branch, total in zip(ordered, totals, strict=True) if total <= most]
