"""The paper's drafts as chains, and how likely they are right, which the paper does not ask."""

from __future__ import annotations

from collections.abc import Sequence

from ..drafters.logitspec import branch_length
from ..ngram_pool import NgramPool
from ..sizing.acceptance_table import AcceptanceTable

MAX_NGRAM_SIZE = 3  # the paper's N
WIDTH = 2  # best tokens of the last logits: the last token itself, and the guess
RETRIEVED, GUESSED = 0, 1
GRADED = 8  # places of a chain that are told apart
PRIOR, STRENGTH = (0.6, 0.3), 20.0  # probability that a draft is right, given the one before it


class Retrieving:
    """How often retrieved and guessed drafts were right, by their place in the chain."""

    def __init__(self) -> None:
        self.table = AcceptanceTable([p for p in PRIOR for _ in range(GRADED)], STRENGTH)

    def begin(self, ids: Sequence[int], most_drafts: int) -> RetrievedChain:
        """The drafts of a request, see chains.Chains.begin()."""
        return RetrievedChain(self.table, ids, most_drafts)


class RetrievedChain:
    """The drafts of one request, see chains.Chain."""

    def __init__(self, table: AcceptanceTable, ids: Sequence[int], most_drafts: int) -> None:
        self._table = table
        self._most = most_drafts
        self._pool = NgramPool(MAX_NGRAM_SIZE, most_drafts)
        self._pool.extend(ids)
        self._tokens: list[int] = []  # the root, then the last drafts
        self._grades: list[int] = []  # of these drafts

    def draft(self, root: int, top_ids: Sequence[int]) -> tuple[list[int], list[float]]:
        context = [*self._pool.ids[-MAX_NGRAM_SIZE:], root]
        drafts, kind = self._pool.lookup(context), RETRIEVED
        guess = next((token for token in top_ids if token != root), None)
        if not drafts and guess is not None:
            length = branch_length(1)
            drafts, kind = [guess, *self._pool.lookup([*context, guess])[: length - 1]], GUESSED
        drafts = drafts[: self._most]
        self._tokens = [root, *drafts]
        self._grades = [kind * GRADED + min(at, GRADED - 1) for at in range(len(drafts))]
        path, paths = 1.0, []
        for grade in self._grades:
            path *= self._table.probability[grade]
            paths.append(path)
        return drafts, paths

    def observe(self, verified: int, accepted: int, top_ids: Sequence[Sequence[int]]) -> None:
        for at, grade in enumerate(self._grades[:verified]):
            if at <= accepted:
                self._table.learn(grade, at < accepted)
        self._pool.extend(self._tokens[: accepted + 1])

    def skip(self, tokens: Sequence[int]) -> None:
        self._pool.extend(tokens)
