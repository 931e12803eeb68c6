"""What a step costs, learnt from the steps that run: decoding.py tells them, budget.py asks."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from math import exp, log
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from .step_cost import StepCost

# Standard deviations, all of logarithms of seconds:
NOISE = 0.06  # of a step around the belief
SPEED = 0.1  # how far the speed of the whole machine may be from what it was
DRIFT = 0.03  # how far that moves from a step to the next
CHANGE = 0.01  # how far the cost of one size moves against the others, from a step to the next
DOUBT = 0.2  # how far the cost of one size may be from what it was at the start, against others
GUESSED = 0.7  # the same where only one size was measured

ALIKE = 2.5  # doublings of the nodes after which little is known from one size about another
ROUGH = 0.1  # how much of a change is not shared even with near sizes
FAR_ALIKE = 0.9  # how much is known at one context from the other
BOLD = 0.4  # standard deviations by which numbers are drawn
USUAL = 3.0  # standard deviations up to which a step counts in full; beyond, ever less
FADING = 20000.0  # steps in which a size that does not run fades into the guess

BATCH = 16  # steps that are learnt from together, but for the first ones
MOST = 4  # of its steps of one size that count: they share the machine's noise
STORE_EVERY = 32  # steps after which it is worth storing

Floats = npt.NDArray[np.float64]


class LiveCost:
    """The cost of a step by its nodes, which follows the steps that run.

    What is believed are the logarithms of the seconds at `nodes`, at two contexts, as a mean and a
    covariance. The longer context grows with those that steps run behind. Every step moves the
    beliefs as a Kalman filter does. That all sizes change alike, as on a busy machine, is taken for
    likely; that one changes against the others for less so. Old steps are forgotten, and a step
    that is far from what is believed counts little.

    The curve that sizes trees is drawn anew every few steps, near what is believed and farther from
    it where less is known: so trees try sizes that may be better. What is believed of a size that
    does not run fades into a guess, which is cheap: so it is tried again, however dear it was.

    Args:
        start: what is believed first.
        store: takes the fields of a StepCost that are to be kept for the next process.
        doubt: DOUBT or GUESSED.
    """

    def __init__(
        self,
        start: StepCost,
        store: Callable[[Mapping[str, Any]], None] | None = None,
        doubt: float = DOUBT,
    ) -> None:
        self.nodes = start.nodes
        self.version = 0
        self._start = start
        self._store = store
        self._lock = threading.Lock()
        self._mean = np.log(np.array(start.seconds, dtype=np.float64)).ravel()
        doublings = np.log2(start.nodes)
        apart = np.abs(doublings - doublings[:, None])
        alike = (1 - ROUGH) * np.exp(-((apart / ALIKE) ** 2) / 2) + ROUGH * np.exp(-apart)
        alike = np.kron([[1, FAR_ALIKE], [FAR_ALIKE, 1]], alike)
        self._doubt = doubt**2 * alike + SPEED**2  # the covariance
        self._aging = CHANGE**2 * alike + DRIFT**2
        self._guess = np.tile(np.log([guessed(n) for n in start.nodes]), 2)
        self._first = np.repeat([0, len(start.nodes)], len(start.nodes))  # one node, by context
        self.steps = self._unstored = 0
        self._noted: list[tuple[int, int, float]] = []  # steps: nodes, context, seconds
        self._drawn = -1  # the version that the curve was drawn for
        self._chance = np.random.default_rng(0)

    def note(self, nodes: int, context: int, seconds: float) -> None:
        """Learn from a step that ran.

        Args:
            nodes: verified; more than the largest size says nothing.
            context: tokens that were committed before.
            seconds: of the target, without drafting.
        """
        with self._lock:
            self.steps += 1
            self._unstored += 1
            if nodes <= self.nodes[-1] and seconds > 0:
                self._noted.append((nodes, context, seconds))
            if self.steps < BATCH or len(self._noted) >= BATCH:
                self._catch_up()

    def note_prompt(self, tokens: int, held: int, seconds: float) -> None:
        """Learn from a prompt that was read, if it is longer than what is known reaches.

        In one go over many tokens each costs least. So a step over n nodes behind half of the
        prompt takes no less than n of its tokens did.

        Args:
            tokens: read, held ones left out.
            held: tokens that were committed before.
            seconds: of the reading.
        """
        with self._lock:
            if held + tokens <= self._start.contexts[1] or tokens < self.nodes[-1]:
                return
            self._catch_up()
            self._reach(held + tokens)
            context = held + tokens // 2
            for nodes in reversed(self.nodes):
                least = log(nodes * seconds / tokens)
                if self._look(nodes, context)[0] < least:
                    self._learn(nodes, context, least, MOST)
            self.version += 1

    def _reach(self, context: float) -> None:
        """Double the longer context until it is no shorter than this one: what is believed there is
        the line carried on, and so is how little is known."""
        near, far = self._start.contexts
        if context <= far:
            return
        reached = far
        while reached < context:
            reached *= 2
        part = (reached - near) / (far - near)
        fast, slow = np.exp(self._mean).reshape(2, -1)
        there = fast + np.maximum(0.0, slow - fast) * part
        of_slow = np.where(slow > fast, part * slow / there, 0.0)  # of a change of its logarithm
        count = len(fast)
        carried = np.eye(2 * count)
        carried[count:] = np.hstack([np.diag(1 - of_slow), np.diag(of_slow)])
        self._doubt = carried @ self._doubt @ carried.T
        self._mean[count:] = np.log(there)
        self._start = replace(self._start, contexts=(near, reached))
        self._drawn = -1

    def settle(self) -> None:
        """Learn from what was noted, without waiting for more."""
        with self._lock:
            self._catch_up()

    def _catch_up(self) -> None:
        """Learn from what was noted: of steps over as many nodes, from the median."""
        self._reach(max((context for _, context, _ in self._noted), default=0))
        count = len(self._noted)
        self._doubt += count * self._aging
        self._mean += count * (self._mean[self._first] + self._guess - self._mean) / FADING
        alike: dict[int, list[tuple[float, int]]] = {}
        for nodes, context, seconds in self._noted:
            alike.setdefault(nodes, []).append((log(seconds), context))
        for nodes, steps in alike.items():
            logs, contexts = zip(*steps, strict=True)
            self._learn(nodes, median(contexts), median(logs), len(steps))
        self._noted.clear()
        self.version += 1

    def _learn(self, nodes: int, context: float, took: float, count: int) -> None:
        """Move the belief by what `count` steps took, a logarithm of seconds."""
        believed, at, weights = self._look(nodes, context)
        moves = self._doubt[:, at] @ weights
        known = float(weights @ moves[at])
        surprise = took - believed
        unusual = surprise**2 / (known + NOISE**2) / USUAL**2 / count
        gain = moves / ((known + NOISE**2 / min(count, MOST)) * max(1.0, unusual))
        self._mean += gain * surprise
        self._doubt -= np.outer(gain, moves)

    def _look(self, nodes: int, context: float) -> tuple[float, Sequence[int], Floats]:
        """The logarithm of the seconds that are believed, and what it depends on: of which means,
        and how much on each."""
        right = bisect_left(self.nodes, nodes)
        left = right
        if self.nodes[right] > nodes and not self._start.padded:
            left = right - 1
        share = (nodes - self.nodes[left]) / max(1, self.nodes[right] - self.nodes[left])
        (near, far), count = self._start.contexts, len(self.nodes)
        part = max(0.0, (context - near) / (far - near))  # at most 1, see _reach()
        fast, slow = (
            exp((1 - share) * self._mean[first + left] + share * self._mean[first + right])
            for first in (0, count)
        )
        believed = log(fast + max(0.0, slow - fast) * part)
        at = [left, right, count + left, count + right]
        weights = np.array([(1 - part) * (1 - share), (1 - part) * share])
        weights = np.append(weights, np.array([part * (1 - share), part * share]))
        return believed, at, weights

    @property
    def cost(self) -> StepCost:
        """What is believed now."""
        with self._lock:
            self._catch_up()
            seconds = np.exp(self._mean).reshape(2, -1).tolist()
        return replace(self._start, seconds=seconds)

    def curve(self, context: int) -> list[float]:
        """As StepCost.curve, of numbers that may be so, by what is believed."""
        with self._lock:
            self._reach(context)
            if self._drawn != self.version:
                self._drawn = self.version
                root = np.linalg.cholesky(self._doubt + 1e-9 * np.eye(len(self._mean)))
                self._draw = BOLD * root @ self._chance.normal(size=len(self._mean))
            seconds = np.exp(self._mean + self._draw).reshape(2, -1).tolist()
        return replace(self._start, seconds=seconds).curve(context)

    def store(self) -> None:
        """Keep the numbers for the next process, if there is enough that is new."""
        if self._store is not None and self._unstored >= STORE_EVERY:
            self._unstored = 0
            self._store(asdict(self.cost))


def guessed(nodes: int) -> float:
    """What a step over so many nodes costs, in steps over one, on a machine that nothing is known
    of: a further node costs a fiftieth."""
    return 1 + (nodes - 1) / 50
