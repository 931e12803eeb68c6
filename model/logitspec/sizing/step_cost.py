"""What a step costs by its nodes, as numbers: live_cost.py learns them, budget.py asks them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

MEASURED_NODES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128)
CONTEXTS = (128, 1024)  # committed tokens


class Cost(Protocol):
    """What trees that size themselves ask: a StepCost, or a LiveCost, which changes.

    Attributes:
        nodes: of the trees whose cost is known, ascending; the last is the most.
        version: another number, another curve.
    """

    @property
    def nodes(self) -> Sequence[int]: ...

    @property
    def version(self) -> int: ...

    def curve(self, context: int) -> list[float]:
        """Seconds of a step over 0, 1, 2, … nodes after so many committed tokens."""


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step over so many nodes, at two context lengths.

    Attributes:
        contexts: the shorter and the longer context, in tokens.
        nodes: ascending, from 1.
        seconds: of each context, of each number of nodes.
        padded: a tree costs as much as the next larger one of `nodes`, as it does in CUDA graphs.
    """

    version: ClassVar[int] = 0
    contexts: Sequence[int]
    nodes: Sequence[int]
    seconds: Sequence[Sequence[float]]
    padded: bool = False

    def curve(self, context: int) -> list[float]:
        """Seconds of a step over 0, 1, 2, … nodes, linear between what was measured, never falling.

        Args:
            context: committed tokens; outside of `contexts` the line is carried on.
        """
        (near, far), (fast, slow) = self.contexts, self.seconds
        part = (context - near) / (far - near)
        at = [a + max(0.0, b - a) * max(0.0, part) for a, b in zip(fast, slow, strict=True)]
        at = rising(at)
        sizes = np.arange(self.nodes[-1] + 1)
        if self.padded:
            curve: list[float] = np.array(at)[np.searchsorted(self.nodes, sizes)].tolist()
        else:
            curve = np.interp(sizes, self.nodes, at).tolist()
        return curve


class Measurable(Protocol):
    """What a drafter may ask about the target before it begins."""

    @property
    def vocab_size(self) -> int:
        """Token ids are smaller than this."""

    def step_cost(self, top_k: int, node_top_k: int = 0) -> Cost:
        """What a step costs by its nodes, with these widths of a drafter."""


def rising(seconds: Sequence[float]) -> list[float]:
    """The nearest sequence that never falls: neighbours that do are replaced by their mean."""
    pools: list[tuple[float, int]] = []  # mean, count
    for value in seconds:
        count = 1
        while pools and pools[-1][0] > value:
            mean, more = pools.pop()
            value = (value * count + mean * more) / (count + more)
            count += more
        pools.append((value, count))
    return [mean for mean, count in pools for _ in range(count)]
