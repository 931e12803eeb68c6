"""How many nodes a draft tree is worth: what drafters whose capacity is "auto" ask."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ..errors import InputError, require_positive
from .step_cost import MEASURED_NODES, Cost, Measurable

Capacity = int | Literal["auto"]

AUTO_CAPACITY = MEASURED_NODES[-1]  # most nodes of a tree that sizes itself
CURVE_STRIDE = 64  # committed tokens after which the curve is taken anew, if no sooner


def resolve_capacity(capacity: Capacity) -> int:
    """Most nodes of a draft tree for a value of draft_tree_capacity.

    Raises:
        InputError: it is neither a number above 0 nor "auto".
    """
    if capacity == "auto":
        return AUTO_CAPACITY
    if not isinstance(capacity, int):
        raise InputError(f"draft_tree_capacity is {capacity!r}; give a number or auto")
    require_positive(draft_tree_capacity=capacity)
    return capacity


REMEMBERED = 64.0  # steps after which it is mostly forgotten how many drafts were right
GRANTED = 8.0  # drafts that count as having been right as often as expected
DRAFTING = 1.5e-4  # seconds of a step that drafting takes: the draft, the best tokens, learning
EARLY = 4.0  # in step n of an answer drafts count n / (n + EARLY): early losses weigh most
EARLY_SAMPLED = 10.0  # the same of samples, whose drafts are right less often
LOSS = 0.3  # steps' time that drafting may lose before it rests
LESSON = 0.02  # later tokens that a verified node is worth, whose best tokens become a row
LESSONS = 20000.0  # nodes after which it is half of that
GIVEN = 0.1  # most of the tokens a second that are given up for it
REST = 16  # steps of the first rest; each that follows without a gain is twice as long
LONGEST_REST = 128


class Budget:
    """Ends each tree where its expected tokens per second are most.

    A tree of n nodes whose path probabilities sum up to E is expected to give E tokens in T(n)
    seconds; the n with the largest E / T(n) is taken. Drafts count as much as those of the last
    steps were right beside what was expected of them, so where they are not, drafting ends; that is
    forgotten again, and then they are tried again.

    A node is worth more than its own token where the drafter learns from it what follows. Then E
    has a little for each node, which decides where further nodes cost next to nothing, as on a GPU;
    but not if more than a share GIVEN of the tokens a second were lost for it.

    Where drafting takes more time than its tokens are worth, it rests for some steps, in which
    nothing is looked up, and then looks again.

    Args:
        cost: of a step of the model on this machine; None: prepare() finds it.
        learns: whether the drafter learns from every node that is verified.
    """

    def __init__(self, cost: Cost | None = None, *, learns: bool = False) -> None:
        self._model: Measurable | None = None
        self._widths: tuple[int, int] | None = None
        self._cost = cost
        self._taken: tuple[int, int] | None = None  # context and version of the curve
        self._right = self._hoped = 0.0  # of the drafts of the last steps
        self.trust = 1.0  # how often drafts were right, beside what was expected
        self._steps = 0  # of this answer
        self._learns = learns
        self._verified = 0  # nodes
        self._early = EARLY
        self._gain = 0.0  # of the last steps, in steps' time
        self.rest = 0  # steps that are not to be drafted for
        self._next_rest = REST

    def prepare(self, model: Measurable, top_k: int, node_top_k: int) -> None:
        """Find what a step of this model costs with these widths of a drafter."""
        if model != self._model or self._widths != (top_k, node_top_k):
            self._model, self._widths = model, (top_k, node_top_k)
            self._cost = model.step_cost(top_k, node_top_k)
            self._taken = None

    def begin(self, context: int, capacity: int = 1) -> None:
        """Begin a tree.

        Args:
            context: committed tokens.
            capacity: most nodes of the tree.

        Raises:
            InputError: what a step costs is not known, or not for so many nodes.
        """
        if self._cost is None:
            raise InputError(
                "draft_tree_capacity is auto, and what a step costs is not known; "
                "call the drafter's prepare(MeasuredModel(model)) first, or give a number"
            )
        if capacity > self._cost.nodes[-1]:
            raise InputError(
                f"the step costs end at {self._cost.nodes[-1]} nodes, trees that size themselves "
                f"have up to {capacity}; give costs up to that, or a number as the capacity"
            )
        taken = context // CURVE_STRIDE, self._cost.version
        if taken != self._taken:
            self._taken = taken
            curve = np.array(self._cost.curve(context))
            sizes = np.array(self._cost.nodes)  # a rise is least up to one of these
            further = sizes - np.arange(len(curve))[:, None]
            with np.errstate(invalid="ignore", divide="ignore"):
                rises = np.where(further > 0, (curve[sizes] - curve[:, None]) / further, np.inf)
            # By n nodes: seconds of a step, and of each further node, at the number best for that
            self.curves = (curve, rises.min(axis=1))
            self.curve: list[float] = self.curves[0].tolist()
            self._cheapest: list[float] = self.curves[1].tolist()
            self._cheapest_of_all = min(self._cheapest) / self.curve[1]
        self.nodes = self._best_nodes = self.plain_nodes = 0
        self.expected = self._best_rate = self._plain_rate = 0.0
        # A tree of the root alone gives 1 / curve[1]; what pays less nowhere pays.
        self._steps += 1
        self.weight = self.trust * self._steps / (self._steps + self._early)  # what drafts count
        self.lesson = LESSON / (1 + self._verified / LESSONS) if self._learns else 0.0
        self.least = max(0.0, self._cheapest_of_all - self.lesson) / self.weight

    def add(self, probability: float) -> None:
        """Tell the path probability of the tree's next node, the root's 1 first."""
        self.nodes += 1
        self.expected += probability * self.weight if self.nodes > 1 else 1.0
        seconds = self.curve[self.nodes]
        plain = self.expected / seconds
        if plain > self._plain_rate:
            self._plain_rate, self.plain_nodes = plain, self.nodes
        rate = (self.expected + self.lesson * (self.nodes - 1)) / seconds
        if rate > self._best_rate and plain >= (1 - GIVEN) * self._plain_rate:
            self._best_rate, self._best_nodes = rate, self.nodes

    def enough(self, probability: float) -> bool:
        """Whether no node that follows can pay, if none is more probable than this."""
        worth, cheapest = probability * self.weight, self._cheapest[self.nodes]
        pays = worth > self._plain_rate * cheapest
        return not pays and worth + self.lesson <= self._best_rate * cheapest

    def learn(self, hoped: float, right: int, nodes: int) -> None:
        """Take in what became of a tree.

        Args:
            hoped: the sum of its drafts' path probabilities.
            right: drafts that were.
            nodes: of the tree; more than plain_nodes, if that is set, were taken to learn from.
        """
        self._verified += nodes
        self._right += right - self._right / REMEMBERED
        self._hoped += hoped - self._hoped / REMEMBERED
        self.trust = (self._right + GRANTED) / (self._hoped + GRANTED)
        price = (self.curve[min(nodes, self.plain_nodes or nodes)] + DRAFTING) / self.curve[1] - 1
        self._gain += right - price - self._gain / REMEMBERED
        if self._gain > 0:
            self._next_rest = REST
        elif self._gain < -LOSS:
            self.rest, self._next_rest = self._next_rest, min(2 * self._next_rest, LONGEST_REST)
            self._gain = -LOSS / 2  # so a look that gains nothing is short

    def taught(self, rows: int) -> None:
        """Take in that the drafter begins with so many rows, as if as many nodes were verified."""
        self._verified += rows

    def begin_generation(self, *, sampled: bool = False) -> None:
        """Look whether drafting pays; where it did not in the last generation, more briefly."""
        self._steps = 0
        self._early = EARLY_SAMPLED if sampled else EARLY
        self.rest, self._next_rest = 0, max(REST, self._next_rest // 4)
        self._gain = max(self._gain, -LOSS / 2)

    def forget(self) -> None:
        """Drop what was learnt of drafts."""
        self._right = self._hoped = self._gain = 0.0
        self._verified = 0
        self.trust = 1.0
        self.rest, self._next_rest = 0, REST

    @property
    def best_nodes(self) -> int:
        """How many of the nodes to keep, the first ones."""
        return self._best_nodes
