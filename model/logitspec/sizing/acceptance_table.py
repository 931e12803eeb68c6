"""How likely drafts are right, by their grade: learnt from what was accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

import numpy as np

from ..errors import InputError
from ..listed import Numbers

COUNTED = ("grades", "seen", "right")


class AcceptanceTable:
    """How likely a draft of a grade is right, given that its parent is.

    The share of the right ones among those seen, with the prior counting as so many of them.

    Args:
        prior: what is believed of each grade before anything was seen.
        strength: how many observations the prior weighs.

    Raises:
        InputError: that is no number above 0.
    """

    def __init__(self, prior: Sequence[float], strength: float) -> None:
        if not 0 < strength < inf:
            raise InputError(f"prior_strength is {strength}; give a number above 0")
        # Lists, which Python reads fastest; arrays where compiled code learns
        self.prior: Any = [float(probability) for probability in prior]
        self.strength = strength
        self.probability: Any = list(self.prior)
        self.nothing: Any = [0] * len(self.prior)
        self.seen: Any = list(self.nothing)
        self.right: Any = list(self.nothing)

    def reset(self) -> None:
        """Forget what was learnt; the prior remains."""
        self.probability[:] = self.prior
        self.seen[:] = self.right[:] = self.nothing

    def counted(self) -> dict[str, Numbers]:
        """The grades that were seen, how often, and how often they were right."""
        seen, right = np.array(self.seen, np.int64), np.array(self.right, np.int64)
        grades = np.flatnonzero(seen)
        return {"grades": grades, "seen": seen[grades], "right": right[grades]}

    def take(self, counted: Mapping[str, Numbers]) -> None:
        """Go on from what counted() gave."""
        self.reset()
        for grade, seen, right in zip(*(counted[n].tolist() for n in COUNTED), strict=True):
            self.seen[grade], self.right[grade] = seen, right
            self._estimate(grade)

    def believe(self) -> None:
        """Make the prior of what was learnt, so that what is learnt from now on counts for more."""
        self.prior[:] = self.probability
        self.reset()

    def learn(self, grade: int, right: bool) -> None:
        """Take in whether a draft of a grade, whose parent was right, was right."""
        self.seen[grade] += 1
        self.right[grade] += right
        self._estimate(grade)

    def _estimate(self, grade: int) -> None:
        self.probability[grade] = (self.right[grade] + self.strength * self.prior[grade]) / (
            self.seen[grade] + self.strength
        )
