"""What the acceptance table's cells leave out, learnt from every candidate that is seen.

A cell that was seen seldom knows little but its prior. So weights are added to a cell's log-odds:
one for the grade of each source, and one for the level of the log-odds. They are learnt from
how far each probability was off, by steps whose length is AdaGrad's (Duchi, Hazan, Singer, Adaptive
Subgradient Methods, JMLR 12, 2011).

Nor does a cell know of the other candidates, of which one at most is right. So what the candidates
below a node share is how often any of them is right, which is learnt by the sum of their
probabilities. Each has a part of that in proportion to its odds, as in a conditional logit.

Of samples whose noise is known, a mixture of two estimates is corrected in the same way
(foresight.py): a mean of the two is too careful where they agree.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import exp, log, sqrt
from typing import Any, NamedTuple

import numpy as np

from ...listed import Numbers
from .evidence import Source

EDGES = (-3.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # least log-odds of each level but the first
LEVELS = len(EDGES) + 1
GUESSES = ("by both", "by the noise alone", "by the table alone")  # who names a token of a sample
SUMS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5)  # least of each bin but the first
MOST = 30.0  # log-odds, either way
LEAST = 1e-12  # probability
RATE = 0.2  # of learning
DOUBT = 1.0  # squared errors that a weight begins with
STRENGTH = 20.0  # nodes that the first belief of a sum weighs


class Weighed(NamedTuple):
    """The candidates below a node, a number of each."""

    tokens: Sequence[int]
    cells: Sequence[int]  # of the acceptance table
    probabilities: Sequence[float]  # that each is right, given that the node is
    bin: int  # of the sum of what these would be alone; -1: there is no candidate
    levels: Sequence[int]  # of their log-odds by the table


class Corrections:
    """Weights that are added to the log-odds of an acceptance table's cells, and what sums mean.

    Args:
        sources: of evidence.

    Attributes:
        weights: of the levels, of each source's grades, of all guesses and levels.
        squares: the squared errors that each weight has seen.
        any_right: by bin, at how many nodes a candidate was right.
        nodes: by bin, of how many.
        count: of the weights.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._grades = [(source.stride, len(source.grades)) for source in sources]
        *self._begins, self._mixed = accumulate((n for _, n in self._grades), initial=LEVELS)
        self.count = self._mixed + len(GUESSES) * LEVELS
        # Lists, which Python reads fastest; arrays where compiled code learns
        self.weights: Any = [0.0] * self.count
        self.squares: Any = [DOUBT] * self.count
        self.any_right: Any = [0.0] * (len(SUMS) + 1)
        self.nodes: Any = [0.0] * (len(SUMS) + 1)
        self._first = self.counted()

    def reset(self) -> None:
        """Forget what was learnt."""
        self.take(self._first)

    def counted(self) -> dict[str, Numbers]:
        """What was learnt."""
        return {
            "weights": np.array([self.weights, self.squares]),
            "sums": np.array([self.any_right, self.nodes]),
        }

    def take(self, counted: Mapping[str, Numbers]) -> None:
        """Go on from what counted() gave."""
        self.weights[:], self.squares[:] = counted["weights"].tolist()
        self.any_right[:], self.nodes[:] = counted["sums"].tolist()

    def weigh(self, tokens: Sequence[int], cells: Sequence[int], known: Any) -> Weighed:
        """How likely each candidate below a node is right, given that the node is.

        Args:
            tokens: of the candidates.
            cells: of the candidates, in the acceptance table.
            known: that table's probabilities, by cell.
        """
        levels: list[int] = []
        odds: list[float] = []
        for cell in cells:
            logit = log_odds(known[cell])
            levels.append(bisect_right(EDGES, logit))
            for place in (levels[-1], *self._places(cell)):
                logit += self.weights[place]
            odds.append(exp(min(MOST, max(-MOST, logit))))
        return Weighed(tokens, cells, *self.share(odds), levels)

    def share(self, odds: Sequence[float]) -> tuple[list[float], int]:
        """The probabilities of candidates of which one at most is right, and their sum's bin.

        Args:
            odds: of each, if there were no others.
        """
        if not odds:
            return [], -1
        total = whole = 0.0
        for own in odds:
            total += own
            whole += own / (1 + own)
        bin_ = bisect_right(SUMS, whole)
        believed = whole / sqrt(sqrt(1 + whole * whole * whole * whole))
        whole_share = (self.any_right[bin_] + STRENGTH * believed) / (self.nodes[bin_] + STRENGTH)
        return [whole_share * own / total for own in odds], bin_

    def learn(self, weighed: Weighed, true: int) -> None:
        """Take in which of the candidates below a node that was right is right.

        Args:
            weighed: by weigh().
            true: the token that came, a candidate or not.
        """
        if weighed.bin < 0:
            return
        self.nodes[weighed.bin] += 1
        each = zip(*weighed[:3], weighed.levels, strict=True)
        for token, cell, probability, level in each:
            self.any_right[weighed.bin] += token == true
            error = (token == true) - probability
            for place in (level, *self._places(cell)):
                self.learn_at(place, error)

    def learn_at(self, place: int, error: float) -> None:
        """Change a weight.

        Args:
            place: of the weight.
            error: 1 if a candidate was right that it was added to, else 0, less its probability.
        """
        self.squares[place] += error * error
        self.weights[place] += RATE * error / sqrt(self.squares[place])

    def correct_mixture(self, probability: float, guess: int) -> tuple[float, int]:
        """The probability of a token of a sample, and which weight was added to its log-odds.

        Args:
            probability: by the mixture.
            guess: which of GUESSES it is.
        """
        logit = log_odds(probability)
        at = self._mixed + guess * LEVELS + bisect_right(EDGES, logit)
        return 1 / (1 + exp(-min(MOST, max(-MOST, logit + self.weights[at])))), at

    def believe(self) -> None:
        """Begin with what was learnt, so that what is learnt from now on counts for more."""
        known = self.counted()
        known["weights"][1] = DOUBT
        nodes = known["sums"][1]
        known["sums"] *= np.minimum(1, STRENGTH / np.maximum(nodes, 1))
        self._first = known
        self.reset()

    def _places(self, cell: int) -> list[int]:
        """The weights of a cell's grades."""
        known = zip(self._begins, self._grades, strict=True)
        return [begin + cell // stride % count for begin, (stride, count) in known]


def log_odds(probability: float) -> float:
    """Of a probability that is kept off 0 and 1."""
    kept = min(1 - LEAST, max(LEAST, probability))
    return log(kept / (1 - kept))
