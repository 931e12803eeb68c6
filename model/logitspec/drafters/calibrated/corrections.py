"""How likely a candidate is by the grades of all sources together.

The acceptance table knows how often each grade of a source was right. If sources erred
independently, a token would be wrong only where all are that name it (noisy or). They do not. So
weights are added to the log-odds of that: for the grade of each source, for the choice of sources
that name the token, and for the level of the log-odds. They are learnt from how far each
probability was off, by steps whose length is AdaGrad's (Duchi, Hazan, Singer, Adaptive Subgradient
Methods, JMLR 12, 2011).

Of the candidates below a node one at most is right. So what they share is how often any of them is
right, which is learnt by the sum of their odds. Each has a part of that in proportion to its odds,
as in a conditional logit.

Of samples whose noise is known, a mixture of two estimates is corrected in the same way
(foresight.py): a mean of the two is too careful where they agree.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from math import exp, log, sqrt
from typing import Any, NamedTuple

import numpy as np

from ...listed import Numbers
from .source import Grades, Source, is_named

EDGES = (-3.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # least log-odds of each level but the first
LEVELS = len(EDGES) + 1
GUESSES = ("by both", "by the noise alone", "by the table alone")  # who names a token of a sample
# Least sum of odds of each bin but the first: 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995 as
# probabilities. Near 1 they are narrow, since long chains are worth so much more there.
SUMS = (0.25, 0.67, 1.5, 4.0, 9.0, 19.0, 49.0, 99.0, 199.0)
MOST = 30.0  # log-odds, either way
LEAST = 1e-12  # probability
RATE = 0.2  # of learning
DOUBT = 1.0  # squared errors that a weight begins with
STRENGTH = 20.0  # nodes that the first belief of a sum weighs


class Weighed(NamedTuple):
    """The candidates below a node, a number of each."""

    tokens: Sequence[int]
    probabilities: Sequence[float]  # that each is right, given that the node is
    bin: int  # of the sum of their odds; -1: there is no candidate
    weights: Sequence[Sequence[int]]  # the places of all that were added, first those of the grades


class Corrections:
    """Weights that are added to the log-odds of candidates, and how often any candidate is right.

    Args:
        sources: of evidence.

    Attributes:
        grades: of all sources; they have the first weights.
        named: whether a source names tokens of each grade; False of the other weights.
        weights: of each grade, of each choice of sources, of each level, of each guess at each
            level.
        squares: the squared errors that each weight has seen.
        any_right: by bin, at how many nodes a candidate was right.
        nodes: by bin, of how many.
        count: of the weights.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        names = [is_named(grade) for source in sources for grade in source.grades]
        self.grades = len(names)
        self._levels = self.grades + 2 ** len(sources)
        self.count = self._levels + (1 + len(GUESSES)) * LEVELS
        self.named = names + [False] * (self.count - self.grades)
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

    def weigh(self, named: Mapping[int, Grades], known: Any) -> Weighed:
        """How likely each candidate below a node is right, given that the node is.

        Args:
            named: the grades of each.
            known: the acceptance table's probability of each grade.
        """
        weights: list[Sequence[int]] = []
        odds: list[float] = []
        for grades in named.values():
            logit = log_odds(1 - self.wrong(grades, known))
            own = (*grades, self._choice(grades), self._levels + bisect_right(EDGES, logit))
            for place in own:
                logit += self.weights[place]
            weights.append(own)
            odds.append(exp(min(MOST, max(-MOST, logit))))
        return Weighed([*named], *self.share(odds), weights)

    def wrong(self, grades: Grades, known: Any) -> float:
        """How likely a candidate is wrong, if what its sources say is independent.

        Args:
            grades: of it.
            known: the acceptance table's probability of each grade.
        """
        wrong = 1.0
        for place in grades:
            if self.named[place]:
                wrong *= 1 - known[place]
        return float(wrong)

    def share(self, odds: Sequence[float]) -> tuple[list[float], int]:
        """The probabilities of candidates of which one at most is right, and their sum's bin.

        Args:
            odds: of each, if there were no others.
        """
        if not odds:
            return [], -1
        total = 0.0
        for own in odds:  # as C++ adds; sum() compensates from Python 3.12 on
            total += own
        bin_ = bisect_right(SUMS, total)
        believed = total / (1 + total)
        any_right = (self.any_right[bin_] + STRENGTH * believed) / (self.nodes[bin_] + STRENGTH)
        return [any_right * own / total for own in odds], bin_

    def learn(self, weighed: Weighed, true: int) -> None:
        """Take in which of the candidates below a node that was right is right.

        Args:
            weighed: by weigh().
            true: the token that came, a candidate or not.
        """
        if weighed.bin < 0:
            return
        self.nodes[weighed.bin] += 1
        each = zip(weighed.tokens, weighed.probabilities, weighed.weights, strict=True)
        for token, probability, weights in each:
            self.any_right[weighed.bin] += token == true
            for place in weights:
                self.learn_at(place, (token == true) - probability)

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
        at = self._levels + (1 + guess) * LEVELS + bisect_right(EDGES, logit)
        return 1 / (1 + exp(-min(MOST, max(-MOST, logit + self.weights[at])))), at

    def believe(self) -> None:
        """Begin with what was learnt, so that what is learnt from now on counts for more."""
        known = self.counted()
        known["weights"][1] = DOUBT
        nodes = known["sums"][1]
        known["sums"] *= np.minimum(1, STRENGTH / np.maximum(nodes, 1))
        self._first = known
        self.reset()

    def _choice(self, grades: Grades) -> int:
        """The weight of those sources that name a candidate with these grades."""
        return self.grades + sum(self.named[place] << at for at, place in enumerate(grades))


def log_odds(probability: float) -> float:
    """Of a probability that is kept off 0 and 1."""
    kept = min(1 - LEAST, max(LEAST, probability))
    return log(kept / (1 - kept))
