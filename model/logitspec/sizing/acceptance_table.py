"""How likely drafts are right, by their cell: learnt from what was accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..listed import Numbers

COUNTED = ("cells", "seen", "right")


class AcceptanceTable:
    """How likely a draft of a cell is right, given that its parent is.

    The share of the right ones among those seen, with the prior counting as so many of them.

    Args:
        prior: what is believed of each cell before anything was seen.
        strength: how many observations the prior weighs.
    """

    def __init__(self, prior: Sequence[float], strength: float) -> None:
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
        """The cells that were seen, how often, and how often they were right."""
        seen, right = np.array(self.seen, np.int64), np.array(self.right, np.int64)
        cells = np.flatnonzero(seen)
        return {"cells": cells, "seen": seen[cells], "right": right[cells]}

    def take(self, counted: Mapping[str, Numbers]) -> None:
        """Go on from what counted() gave."""
        self.reset()
        for cell, seen, right in zip(*(counted[n].tolist() for n in COUNTED), strict=True):
            self.seen[cell], self.right[cell] = seen, right
            self._estimate(cell)

    def believe(self) -> None:
        """Make the prior of what was learnt, so that what is learnt from now on counts for more."""
        self.prior[:] = self.probability
        self.reset()

    def learn(self, cell: int, right: bool) -> None:
        """Take in whether a draft of a cell, whose parent was right, was right."""
        self.seen[cell] += 1
        self.right[cell] += right
        self._estimate(cell)

    def _estimate(self, cell: int) -> None:
        self.probability[cell] = (self.right[cell] + self.strength * self.prior[cell]) / (
            self.seen[cell] + self.strength
        )
