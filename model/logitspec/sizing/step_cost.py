"""What a step costs by its nodes, as numbers: measuring.py finds them, budget.py asks them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

MEASURED_NODES = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    10,
    12,
    16,
    24,
    32,
    48,
    64,
    96,
    128,
)


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step over so many nodes, at two context lengths.

    Attributes:
        contexts: the shorter and the longer context, in tokens.
        nodes: ascending, from 1.
        seconds: of each context, of each number of nodes.
        padded: a tree costs as much as the next larger one of `nodes`, as it does in CUDA graphs.
    """

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
        curve = [at[0]]
        for n in range(1, self.nodes[-1] + 1):
            i = bisect_left(self.nodes, n)  # the first that is not smaller
            if self.padded or self.nodes[i] == n:
                curve.append(at[i])
            else:
                left, right = self.nodes[i - 1], self.nodes[i]
                curve.append(at[i - 1] + (at[i] - at[i - 1]) * (n - left) / (right - left))
        return curve


class Measurable(Protocol):
    """What a drafter may ask about the target before it begins."""

    def step_cost(self, top_k: int, node_top_k: int = 0) -> StepCost:
        """What a step costs by its nodes (measuring.step_cost)."""

    def successors(self, count: int, width: int) -> list[list[int]]:
        """The best tokens after each of the first token ids alone (successors.successors)."""


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
