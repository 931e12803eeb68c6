"""How many drafts a step of a whole batch is worth: learnt from the steps themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..sizing.live_cost import GUESSED, LiveCost, guessed
from ..sizing.step_cost import CONTEXTS, StepCost

REMEMBERED = 512.0  # drafts after which it is mostly forgotten how many were right
GRANTED = 16.0  # drafts that count as having been right as often as expected
SLACK = 0.01  # of the tokens a second, for which no more drafts are made: costs are not so sure
DEAR = 0.02  # of a step's time; where drafting takes more, it rests when nothing is drafted
IDLE = 8  # steps in turn without a draft after which it rests
REST = 16  # steps
TRIES = 4  # steps in turn in which the other kind is tried
WAITS = 32, 4096  # steps between such tries: first, and at most; each wait is twice the last
CHANGED = 128  # most steps until the next try where the requests become twice as many, or half
CAME = 16.0  # choices of even steps after which it is mostly forgotten how many came about
Floats = npt.NDArray[np.float64]


class BatchBudget:
    """Takes of all requests' drafts those with which a step gives most tokens a second.

    A step of R requests and M drafts is expected to give R tokens and the sum E of the drafts'
    path probabilities. It costs what a step over R + M tokens costs: sizing/live_cost.py learns
    that as T. What prompts cost that it reads beside them is the same however many drafts there
    are. The drafts compete: the most probable one, of whichever request, is the first. The M with
    the largest (R + E) / T is taken, often 0 where many requests already fill the machine; and of
    several that are nearly as good the smallest.

    On a GPU vLLM replays a step as one CUDA graph only where each request has `even` drafts, no
    more and no fewer. Such even steps have a cost of their own, and what they give is compared with
    what the others would. Of the two kinds the one that is not chosen is tried now and then.

    Args:
        most_tokens: of a step.

    Attributes:
        even: drafts of each request in an even step; 0: there are none.
        most_even: tokens of an even step.
    """

    def __init__(self, most_tokens: int) -> None:
        self.even = self.most_even = 0
        sizes = sorted({n for power in range(32) for n in (1 << power, 3 << power)})
        self._sizes = [n for n in sizes if n < most_tokens]
        self._sizes.append(max(most_tokens, 2))
        self._kinds = {False: Kind(), True: Kind()}  # of steps: others, and even ones
        self._tried, self._wait = 0, WAITS[0]  # steps of the kind in turn, and until the other's
        self._asked = False  # for an even step
        self._came = 1.0  # of the even steps that were asked for
        self._unknown = 0  # such, before one came about
        self._load = 0  # doublings of the requests
        self._right = self._hoped = 0.0
        self._share = 0.0  # of a step's time that drafting takes
        self._idle = 0  # steps in turn without a draft
        self.rest = 0  # steps for which drafts are not looked for

    def note(
        self, tokens: int, context: int, seconds: float, drafting: float, *, even: bool = False
    ) -> None:
        """Learn from a step that ran.

        Args:
            tokens: that it was over.
            context: tokens of a request, the mean.
            seconds: that it took.
            drafting: seconds of these in which its drafts were made.
            even: each request had as many drafts as an even step wants.
        """
        self._share += (drafting / seconds - self._share) / IDLE
        kind = self._kinds[even]
        if kind.cost is None:
            scale = seconds / guessed(tokens)
            costs = [scale * guessed(n) for n in self._sizes]
            kind.cost = LiveCost(StepCost(CONTEXTS, self._sizes, (costs, costs)), doubt=GUESSED)
        kind.cost.note(tokens, context, seconds)

    def came(self, even: bool) -> None:
        """Take in whether the last step was an even one."""
        if self._asked:
            self._came += (even - self._came) / CAME
        self._asked = False

    def learn(self, hoped: float, right: int, verified: int) -> None:
        """Take in what became of drafts.

        Args:
            hoped: the sum of their path probabilities.
            right: how many were.
            verified: of how many.
        """
        keep = (1 - 1 / REMEMBERED) ** verified
        self._right = self._right * keep + right
        self._hoped = self._hoped * keep + hoped

    @property
    def trust(self) -> float:
        """How often drafts were right, beside what was expected."""
        return (self._right + GRANTED) / (self._hoped + GRANTED)

    def resting(self) -> bool:
        """Count a step; whether drafts are not even to be looked for in it."""
        if self.rest:
            self.rest -= 1
            return True
        return False

    def choose(
        self, paths: Sequence[Sequence[float]], requests: int, context: int, *, even: bool = False
    ) -> list[int]:
        """How many drafts each request gets.

        Args:
            paths: of each, the path probabilities of its drafts, which fall.
            requests: that the next step decodes, those without drafts included.
            context: tokens of a request, the mean.
            even: whether the next step may be an even one. Then a request may get more drafts than
                it has paths.
        """
        every = np.sort(np.concatenate([np.zeros(0), *paths]))[::-1]
        rates = self._rates(every, requests, context)
        if even and self._is_even_better(every, rates, requests, context):
            self._idle = 0
            self._asked = True
            return [self.even] * len(paths)
        if rates is None:
            return [len(own) for own in paths]
        most = int(np.argmax(rates >= (1 - SLACK) * rates.max()))
        if not most:
            self._idle += 1
            if self._idle >= IDLE and self._share > DEAR:
                self._idle, self.rest = IDLE - 1, REST
            self.learn(0, 0, requests)
            return [0] * len(paths)
        self._idle = 0
        least = float(every[most - 1])
        counts = [sum(path > least for path in own) for own in paths]
        left = most - sum(counts)  # drafts as probable as the last one, in the requests' order
        for i, own in enumerate(paths):
            more = min(left, sum(path == least for path in own))
            counts[i] += more
            left -= more
        return counts

    def _rates(self, every: Floats, requests: int, context: int) -> Floats | None:
        """Tokens a second with none, one and more of the drafts; None: not known.

        Args:
            every: path probabilities of all drafts, which fall.
        """
        curve = self._kinds[False].curve(context)
        if curve is None or not requests:
            return None
        first = min(requests, len(curve) - 1)
        every = every[: len(curve) - 1 - first]
        tokens = requests + np.concatenate(([0.0], np.cumsum(every))) * min(1.0, self.trust)
        rates: Floats = tokens / curve[first : first + len(tokens)]
        return rates

    def _is_even_better(
        self, every: Floats, rates: Floats | None, requests: int, context: int
    ) -> bool:
        """Whether an even step is to be next: it gives more than the others, or its turn to be
        tried has come."""
        curve, other = (self._kinds[kind].curve(context) for kind in (True, False))
        size = requests * (1 + self.even)
        if size > min(self.most_even, self._sizes[-1]):
            return False
        if curve is None:  # vLLM is built for even steps, so they come first
            self._unknown += 1
            better = rates is None or self._unknown <= TRIES * 2
        elif rates is None or other is None:
            better = True
        else:
            tokens = requests + every.sum() * min(1.0, self.trust)
            seconds = self._came * curve[size] + (1 - self._came) * other[size]
            better = bool(tokens / seconds >= rates.max())
        return better != self._other_is_tried(requests)

    def _other_is_tried(self, requests: int) -> bool:
        """Count a step; whether the kind that is not the better one is to be tried in it."""
        if self._load != requests.bit_length():
            self._load = requests.bit_length()
            self._wait = min(self._wait, CHANGED)
        self._tried += 1
        if self._tried > self._wait + TRIES:
            self._tried = 0
            self._wait = min(2 * self._wait, WAITS[1])
            for kind in self._kinds.values():
                kind.settle()
        return self._tried > self._wait


class Kind:
    """Steps of one kind.

    Attributes:
        cost: of them; None: none has run.
    """

    def __init__(self) -> None:
        self.cost: LiveCost | None = None
        self._drawn = (-1, -1)  # version and context that the curve is of
        self._curve: Floats = np.zeros(0)

    def settle(self) -> None:
        """Learn from the last steps, however few they were."""
        if self.cost is not None:
            self.cost.settle()

    def curve(self, context: int) -> Floats | None:
        """Seconds by tokens, as they may be."""
        if self.cost is None:
            return None
        if self._drawn != (at := (self.cost.version, context // CONTEXTS[0])):
            self._drawn = at
            self._curve = np.array(self.cost.curve(context))
        return self._curve
