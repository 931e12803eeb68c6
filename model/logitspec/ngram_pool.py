"""The n-gram pool: which tokens followed an n-gram earlier in the context. Used by drafters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .errors import require_positive


class NgramPool:
    """For every n-gram of the context up to `max_ngram_size`, the continuation worth proposing.

    Among the occurrences of an n-gram with at least one token after them the one with the longest
    available continuation wins, capped at `num_pred_tokens`; among equals the latest
    (docs/method.md, 2). So an occurrence has to be noticed at two ages only: with one token after
    it, when it wins if the n-gram is new (it is the eldest of the young), and with
    `num_pred_tokens` after it, when it wins always (it is the latest of the mature). That makes
    O(max_ngram_size) work per token.
    """

    def __init__(self, max_ngram_size: int, num_pred_tokens: int) -> None:
        require_positive(max_ngram_size=max_ngram_size, num_pred_tokens=num_pred_tokens)
        self.max_ngram_size = max_ngram_size
        self.num_pred_tokens = num_pred_tokens
        self.ids: list[int] = []
        self._start: dict[
            tuple[int, ...], int
        ] = {}  # n-gram -> where its continuation begins in ids

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens to the context."""
        for token in tokens:
            self.ids.append(token)
            for gram, start in self._ngrams_before(len(self.ids) - 1):
                self._start.setdefault(gram, start)
            for gram, start in self._ngrams_before(len(self.ids) - self.num_pred_tokens):
                self._start[gram] = start

    def _ngrams_before(self, start: int) -> Iterable[tuple[tuple[int, ...], int]]:
        """The n-grams that end right before position `start`, each with `start`."""
        for n in range(1, min(self.max_ngram_size, start) + 1):
            yield tuple(self.ids[start - n : start]), start

    def lookup(self, sequence: Sequence[int]) -> list[int]:
        """The continuation of the longest suffix of `sequence` that the context holds.

        Returns:
            At most `num_pred_tokens` tokens; empty when not even the last token is known.
        """
        for n in range(min(self.max_ngram_size, len(sequence)), 0, -1):
            start = self._start.get(tuple(sequence[-n:]))
            if start is not None:
                return self.ids[start : start + self.num_pred_tokens]
        return []
