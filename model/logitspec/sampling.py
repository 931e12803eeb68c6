"""What the target itself says after a node: its logits, processed as transformers does, and noise.

The noise is Gumbel's, added to the processed logits, so that the largest sum is a sample of their
softmax. It is a function of the seed, the position of the token that is chosen, and the token: runs
with one seed choose alike wherever their logits are alike, whatever trees they verify. A draft is
accepted if it is what was chosen, so the output is the target's own at any temperature.

Source: Gumbel-max, e.g. Maddison, Tarlow, Minka, A* Sampling, arXiv 1411.0030; the generator is
splitmix64 (Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, OOPSLA 2014).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, cast

import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process

from .devices import sent
from .draft_tree import DraftTree
from .errors import InputError

# Processors that look at no context: one call serves rows of different lengths.
ROWWISE = tuple(
    getattr(logits_process, name)
    for name in (
        "EpsilonLogitsWarper",
        "EtaLogitsWarper",
        "InfNanRemoveLogitsProcessor",
        "LogitNormalization",
        "MinPLogitsWarper",
        "SuppressTokensLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopHLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "TypicalLogitsWarper",
    )
    if hasattr(logits_process, name)  # TopH is younger than the transformers that we begin at
)


Winners = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]

COLDEST = 1e-4  # temperature; logits divided by less than that are no longer float32 numbers


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the target's logits.

    Attributes:
        temperature: of the softmax; 0 takes the best token.
        top_k: only the best so many tokens; 0: all.
        top_p: only the best tokens that make up this much probability, in (0, 1].
        min_p: only tokens with at least this share of the best one's probability, in [0, 1].
        repetition_penalty: what logits of tokens in the context are divided by (multiplied, where
            negative), over 0; 1 changes nothing.
        seed: of the noise, 0 to 2^63 - 1.

    Raises:
        InputError: a number outside its range, or a filter of samples at temperature 0.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        ranges: tuple[tuple[str, type, Callable[[Any], bool], str], ...] = (
            (
                "temperature",
                Real,
                lambda t: t == 0 or COLDEST <= t < math.inf,
                f"0, which is greedy, or {COLDEST} or more",
            ),
            ("top_k", Integral, lambda k: k >= 0, "0 (all tokens) or more"),
            ("top_p", Real, lambda p: 0 < p <= 1, "more than 0 and at most 1"),
            ("min_p", Real, lambda p: 0 <= p <= 1, "from 0 to 1"),
            ("repetition_penalty", Real, lambda r: 0 < r < math.inf, "more than 0"),
            ("seed", Integral, lambda seed: 0 <= seed < 2**63, "0 or more, and less than 2^63"),
        )
        for name, kind, fits, wanted in ranges:
            value = getattr(self, name)
            if not isinstance(value, kind) or not fits(value):
                raise InputError(f"{name} is {value!r}; give {wanted}")
            if kind is Integral:  # numpy's are too small for the noise
                object.__setattr__(self, name, int(cast("int", value)))
        if self.temperature == 0 and (self.top_k or self.top_p < 1 or self.min_p):
            raise InputError(
                "top_k, top_p and min_p choose among samples, and temperature 0 takes none; "
                "give a temperature above 0 or leave them out"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of transformers' GenerationConfig that say the same."""
        found: dict[str, Any] = {"do_sample": self.temperature > 0}
        if self.temperature > 0:
            found |= {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
            found |= {"min_p": self.min_p} if self.min_p else {}
        return found | {"repetition_penalty": self.repetition_penalty}

    def processors(self) -> LogitsProcessorList:
        """transformers' processors, in the order in which its generate() calls them."""
        found = LogitsProcessorList()
        if self.repetition_penalty != 1:
            penalty = float(self.repetition_penalty)
            found.append(logits_process.RepetitionPenaltyLogitsProcessor(penalty))
        if self.temperature > 0:
            if self.temperature != 1:
                found.append(logits_process.TemperatureLogitsWarper(float(self.temperature)))
            if self.top_k:
                found.append(logits_process.TopKLogitsWarper(self.top_k))
            if self.top_p < 1:
                found.append(logits_process.TopPLogitsWarper(float(self.top_p)))
            if self.min_p:
                found.append(logits_process.MinPLogitsWarper(float(self.min_p)))
        return found

    def chooser(self, prompt_ids: Sequence[int]) -> Chooser:
        """What chooses for a generation after this prompt.

        Args:
            prompt_ids: token ids, but for the last, which is the root of the first tree.
        """
        seed = self.seed if self.temperature else None
        return Chooser(self.processors(), seed, prompt_ids)


FILTERS = {
    logits_process.TemperatureLogitsWarper: "temperature",
    logits_process.TopKLogitsWarper: "top_k",
    logits_process.TopPLogitsWarper: "top_p",
    logits_process.MinPLogitsWarper: "min_p",
}


@dataclass(frozen=True)
class Foresight:
    """What is known of samples before they are drawn: the noise, and what makes logits odds.

    Attributes:
        stream: of the noise, 64 bits.
        temperature: as in Sampling, and the other filters.
    """

    stream: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def log_probabilities(self, best: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Of each row's best tokens, [n, k] float32; of those that are filtered out, -inf.

        Filters are followed as far as the k best tokens tell: close to the truth, not the truth.

        Args:
            best: [n, k] their logits, best first.
            logits: [n, vocab] all of a row's.
        """
        log_sums = (logits.float() / self.temperature).logsumexp(dim=-1, keepdim=True)
        logs = best.float() / self.temperature - log_sums
        if 0 < self.top_k < logs.shape[1]:
            logs = logs[:, : self.top_k].log_softmax(dim=-1)
        odds = logs.exp()
        kept = odds >= self.min_p * odds[:, :1]
        if self.top_p < 1:
            kept &= odds.cumsum(dim=-1) - odds < self.top_p  # the first that reaches it is kept
        whole = torch.where(kept, odds, 0).sum(dim=-1, keepdim=True)
        scaled = (logs - whole.log()).clamp(max=0)  # rounding may leave one a little above
        logs = torch.where(kept.all(dim=-1, keepdim=True), logs, scaled)
        logs = logs.masked_fill(~kept, -math.inf)
        missing = best.shape[1] - logs.shape[1]
        return torch.nn.functional.pad(logs, (0, missing), value=-math.inf)


class Chooser:
    """Chooses the target's own token after nodes of a tree; one generation long.

    Args:
        processors: of transformers, called with the ids up to a node and its logits in float32.
        seed: of the noise; None: no noise, the best token after processing.
        ids: the token ids before the first tree's root.

    Attributes:
        greedy: the best token of the logits as they are is chosen, of equal ones the first.
        foresight: what a drafter can know of the samples to come; None: nothing is drawn, or others
            than temperature, top-k, top-p and min-p decide, too.
        rowwise: no processor looks at the context, so that all nodes can be asked for at once;
            otherwise ask for those that are reached, as a processor may refuse other contexts.
    """

    def __init__(
        self, processors: LogitsProcessorList, seed: int | None, ids: Iterable[int]
    ) -> None:
        self._processors = processors
        self._stream = None if seed is None else mixed(seed)
        self._ids = list(ids)
        self._ends: Callable[[int, Sequence[int]], bool] = lambda before, path: False
        self.foresight = self._find_foresight()
        self.greedy = not processors and seed is None
        self.rowwise = all(type(processor) in ROWWISE for processor in processors)

    def _find_foresight(self) -> Foresight | None:
        if self._stream is None:
            return None
        found: dict[str, Any] = {}
        for processor in self._processors:
            name = FILTERS.get(type(processor))
            if name is None or name in found:
                return None
            found[name] = getattr(processor, name)
        return Foresight(self._stream, **found)

    def until(self, length: int, begin: int, eos_token_ids: Collection[int]) -> None:
        """Where the generation ends: no processor is asked what follows, as transformers asks none.

        Args:
            length: of prompt and answer at most, in tokens.
            begin: of the answer.
            eos_token_ids: the first of these in the answer ends it.
        """

        def ends(before: int, path: Sequence[int]) -> bool:
            own = path[max(0, begin - before) :]
            return before + len(path) >= length or any(token in eos_token_ids for token in own)

        self._ends = ends

    def commit(self, tokens: Sequence[int]) -> None:
        """Go on behind these tokens."""
        self._ids += tokens

    def choose(
        self,
        logits: torch.Tensor,
        tree: DraftTree,
        nodes: Sequence[int] | None = None,
        find_winners: Winners | None = None,
    ) -> torch.Tensor:
        """The token after each of these nodes: [m] int64, where the logits are.

        Args:
            logits: [m, vocab], the target's after these nodes.
            tree: that they are nodes of; its root comes after the committed ids.
            nodes: of it; None: all of them.
            find_winners: a faster way to do what the function winners does.
        """
        if self.greedy:
            return logits.max(dim=-1).indices
        if nodes is None:
            nodes = range(len(tree))
        scores = logits.to(torch.float32, copy=True)  # a processor may write into it
        if self.rowwise:
            ids = torch.zeros(len(nodes), 1, dtype=torch.int64, device=scores.device)
            scores = self._processors(ids, scores)
        else:
            context = sent(self._ids, scores.device)
            for row, node in enumerate(nodes):
                path = tree.path_tokens(node)
                if self._ends(len(self._ids), path):
                    continue  # whatever it chooses is not used
                ids = torch.cat((context, sent(path, scores.device)))[None]
                scores[row : row + 1] = self._processors(ids, scores[row : row + 1])
        if self._stream is not None:
            positions = [len(self._ids) + tree.depths[node] + 1 for node in nodes]
            return (find_winners or winners)(scores, states_of(self._stream, positions))
        return scores.max(dim=-1).indices


def greedy() -> Chooser:
    """Chooses the best token, always."""
    return Chooser(LogitsProcessorList(), None, ())


MASK = 2**64 - 1
STRIDE = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mixed(number: int) -> int:
    """splitmix64's output for a state of 64 bits."""
    number = (number + STRIDE) & MASK
    number = (number ^ number >> 30) * FIRST & MASK
    number = (number ^ number >> 27) * SECOND & MASK
    return number ^ number >> 31


def noise_of(state: int, token: int) -> float:
    """The noise of one token: a column of sampling.gumbel."""
    bits = mixed(state + token * STRIDE & MASK) >> 12
    return -math.log(-math.log((bits + 0.5) * 2.0**-52))


def signed(number: int) -> int:
    """The same 64 bits as a signed number, as torch has them."""
    return number - 2**64 if number >= 2**63 else number


def states_of(stream: int, positions: Iterable[int]) -> list[int]:
    """The generator's state at each of these positions, as torch has it.

    Args:
        stream: 64 bits that tell runs apart.
        positions: of the tokens that are chosen, in whatever stream of numbers.
    """
    return [signed(mixed(stream ^ mixed(position))) for position in positions]


def gumbel(states: Sequence[int], count: int, device: torch.device) -> torch.Tensor:
    """Gumbel noise [m, count], float64: a row for each state, the same on every device.

    Args:
        states: from states_of.
        count: columns; the first are the same whatever the count.
        device: where to make it.
    """
    x = torch.arange(1, count + 1, device=device) * signed(STRIDE)
    x = sent(states, device)[:, None] + x
    # >> keeps the sign: the mask takes what it shifts in away
    x = (x ^ ((x >> 30) & 2**34 - 1)) * signed(FIRST)
    x = (x ^ ((x >> 27) & 2**37 - 1)) * signed(SECOND)
    x = x ^ ((x >> 31) & 2**33 - 1)
    uniform = (((x >> 12) & 2**52 - 1).double() + 0.5) * 2.0**-52  # in (0, 1), both ends out
    return uniform.log_().neg_().log_().neg_()


def winners(scores: torch.Tensor, states: Sequence[int]) -> torch.Tensor:
    """The token of each row whose score and noise are the largest sum: [m] int64.

    Args:
        scores: [m, vocab] float32.
        states: of the noise, a row each.
    """
    return (scores + gumbel(states, scores.shape[1], scores.device)).max(dim=-1).indices
