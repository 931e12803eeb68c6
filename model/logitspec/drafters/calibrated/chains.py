"""Chains of drafts for many requests at once, for engines that verify chains instead of trees.

A chain takes at every place the most probable candidate of the evidence, as trees do. The requests
share the acceptance table, its corrections, the n-grams of answers that ended, and their rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ...errors import require_positive
from ...listed import Numbers
from ...sizing.acceptance_table import AcceptanceTable
from .cores import Core, find_core
from .corrections import Corrections
from .evidence import Evidence
from .growth import Drafted
from .prior import PRIOR, prior_of
from .state import KEPT, NOTHING, check, layout_of, parts

LEAST = 0.02  # path probability of the drafts that are considered
NONE = Drafted([], [], [], [])


class Chains:
    """Drafts chains for requests that come and go.

    The numbers are those of CalibratedDrafter. Memory: of a request what its tokens' n-grams and
    rows take, about half a kB a token; of all that ended MOST_EARLIER n-grams, about 100 MB, and a
    row for each token of the vocabulary.

    Args:
        most_drafts: longest chain, in tokens.
        max_ngram_size: longest n-gram matched.
        row_width: tokens of a row.
        last_width: ranks of the last logits that are candidates.
        prior_strength: how many observations the fixed prior weighs in a grade.
        drafting_core: "native", "python" or "auto".

    Raises:
        InputError: a number is too small, no such core, or it cannot be compiled here.
    """

    def __init__(
        self,
        most_drafts: int,
        max_ngram_size: int = 5,
        row_width: int = 8,
        last_width: int = 24,
        prior_strength: float = 20.0,
        *,
        drafting_core: str = "auto",
    ) -> None:
        require_positive(
            most_drafts=most_drafts, max_ngram_size=max_ngram_size, row_width=row_width,
            last_width=last_width,
        )  # fmt: skip
        self.last_width = last_width
        self._capacity = most_drafts + 1
        self._sizes = max_ngram_size, row_width, last_width
        self._core_wanted = drafting_core
        self._evidence = Evidence(*self._sizes, keep_rows=True, keep_ngrams=True)
        fitted = json.loads(PRIOR.read_text(encoding="utf-8"))
        prior = prior_of(fitted, self._evidence.sources)
        self.table = AcceptanceTable(prior, prior_strength)
        self.corrections = Corrections(self._evidence.sources)
        self._first = self._new_core(self._evidence, None)
        self._idle = [self._first]

    def _new_core(self, evidence: Evidence, shared: Core | None) -> Core:
        known = evidence, self.table, self.corrections, self._capacity
        return find_core(self._core_wanted, known, chain_least=LEAST, shared=shared)

    def begin_with(self, state: Mapping[str, Numbers]) -> None:
        """Know the answers and rows of a state of CalibratedDrafter as those of earlier requests.

        Raises:
            InputError: it is none, or of a drafter with other options.
        """
        check(state, layout_of(self._evidence, self.last_width, self.corrections))
        own = parts(state, sampled=False)
        self._first.take({name: own.get(name, NOTHING) for name in KEPT})

    def begin(self, ids: Sequence[int]) -> Chain:
        """A request's drafts.

        Args:
            ids: its tokens so far, without the one that a draft begins after.
        """
        if not self._idle:
            evidence = Evidence(
                *self._sizes, keep_rows=True, keep_ngrams=True, shared=self._evidence
            )
            self._idle.append(self._new_core(evidence, self._first))
        core = self._idle.pop()
        core.begin(ids)
        return Chain(core)

    def end(self, chain: Chain) -> None:
        """Let others learn from a request that ended; its chain is not to be used again."""
        chain.core.begin(())
        self._idle.append(chain.core)


class Chain:
    """The drafts of one request; see Chains.begin()."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._drafted = NONE

    def draft(self, root: int, top_ids: Sequence[int]) -> tuple[list[int], list[float]]:
        """What may follow.

        Args:
            root: the last token.
            top_ids: best token ids of the logits that chose it, best first; none: not known.

        Returns:
            Tokens, and of each how likely it and all before it are right.
        """
        self._drafted = self.core.draft(root, top_ids, None)
        return self._drafted.tokens[1:], self._drafted.paths[1:]

    def observe(self, verified: int, accepted: int, top_ids: Sequence[Sequence[int]]) -> None:
        """Learn from what became of the last drafts.

        Args:
            verified: how many of them were looked at, the first ones.
            accepted: how many of these were right.
            top_ids: the best token ids after the root and after each of those, best first; none
                where they are not known.
        """
        tokens, parents, paths, grades = self._drafted
        end = verified + 1
        drafted = Drafted(tokens[:end], parents[:end], paths[:end], grades[:end])
        self.core.observe(drafted, range(accepted + 1), top_ids)
        self._drafted = NONE

    def skip(self, tokens: Sequence[int]) -> None:
        """Take in tokens that nothing was drafted for."""
        for token in tokens:
            self.core.skip(token)
