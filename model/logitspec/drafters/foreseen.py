"""Copied logits at a temperature, for methods that rank them: by which token wins under the noise.

The noise of every sample to come is known (sampling.py). So of the tokens that the target ranked
best when it last stood at such a place, the one whose log-probability and noise are the largest sum
is the likeliest sample, not the one with the largest log-probability.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..draft_tree import DraftTree
from ..listed import ScoredRow, scored_row, without_filtered
from ..sampling import Foresight, noise_of, states_of

WIDTH = 32  # tokens of a row; those that win are seldom among the few best
OPTION = "at a temperature, rank copied logits by which token wins under the samples' noise"


class Foreseer:
    """Ranks the tokens of rows by how likely each is to be drawn.

    Args:
        wanted: whether it is to; else nothing is foreseen.

    Attributes:
        sees: whether the next generation is one of samples whose noise is known, and wanted.
        rows: by token, what the target ranked best when it last stood there, of such samples.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._stream = 0
        self._committed = 0  # tokens of prompt and answer
        self.sees = False
        self.rows: dict[int, ScoredRow] = {}

    def foresee(self, foresight: Foresight | None) -> None:
        """See Drafter.foresee()."""
        self.sees = self._wanted and foresight is not None
        if foresight is not None:
            self._stream = foresight.stream

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Begin a generation."""
        self._committed = len(prompt_ids)

    def commit(self, count: int) -> None:
        """So many tokens were committed."""
        self._committed += count

    def learn(
        self,
        tokens: Sequence[int],
        top_ids: Sequence[Sequence[int]],
        logprobs: Sequence[Sequence[float]],
    ) -> None:
        """Take in rows: the best tokens after each of some tokens, none where not known."""
        for token, row, logs in zip(tokens, top_ids, logprobs, strict=True):
            if row:
                self.rows[token] = scored_row(row, logs)

    def after(self, tree: DraftTree, node: int) -> list[int] | None:
        """What may follow a node, the likeliest first; None: no row tells, or none is wanted."""
        row = self.rows.get(tree.tokens[node]) if self.sees else None
        return None if row is None else self.ranked(row, tree.depths[node])

    def ranked(self, row: ScoredRow, depth: int) -> list[int]:
        """The tokens of a row, the likeliest to be drawn first; those that were filtered out last.

        Args:
            row: after a token like the node's.
            depth: of the node.
        """
        (state,) = states_of(self._stream, [self._committed + depth + 1])
        tokens, logs = without_filtered(row)
        sums = {t: log + noise_of(state, t) for t, log in zip(tokens, logs, strict=True)}
        ranked = sorted(sums, key=lambda token: -sums[token])
        return [*ranked, *row[0][len(tokens) :]]
