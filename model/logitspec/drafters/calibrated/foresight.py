"""Drafts of samples: which token will win is guessed with the noise, which is known beforehand.

A sampled token is the one whose log-probability and noise are the largest sum (sampling.py). The
noise of every token at every position to come is known. The log-probabilities are not, but those
after the last token like a node's are near them: its row. So the tokens of a row are ranked by the
sum, and the softmax of the sums says how likely each is to win, if the row is not far from the
truth. How often such a token did win is learnt (`ForesightTable`).

The other estimate is the acceptance table's, which knows n-grams and no noise. A mixture of the two
is taken. Its share is learnt, too: for each kind of row and each level of the table's most probable
candidate, how often one explained the right token better than the other. The mixture is corrected
(corrections.py), for each candidate alone: those below a node may sum up to more than 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp, log
from typing import Any, NamedTuple

import numpy as np

from ...listed import Numbers, ScoredRow, list_scored, scored_of, scored_row, without_filtered
from ...sampling import Foresight, noise_of, states_of
from ...sizing.acceptance_table import AcceptanceTable
from .corrections import Corrections
from .evidence import MOST_ROWS, Evidence, RowEvidence
from .growth import Drafted, ReadableCore
from .source import Candidates, Grades

FORESEEN = 32  # most tokens of a row that are candidates, those that win most likely
KIND_NAMES = tuple(  # of rows
    f"{kind}{', below the root' * below}" for kind in RowEvidence.KINDS for below in (0, 1)
)
KINDS = len(KIND_NAMES)
BINS = 24  # of the log-odds that a token wins
LEAST, WIDTH = -8.0, 0.5  # where the first of them begins, and how wide each is
LEVELS = 8  # of the acceptance table's most probable candidate
MIDDLES = LEAST + WIDTH * (np.arange(BINS) + 0.5)
STRENGTH = 20.0  # how many observations the prior weighs in a bin
FIRST_COUNT = 4.0  # and how many in a share
REST = 1e-3  # least probability of all tokens that a row does not hold
EULER = 0.5772156649015329  # mean of the noise


class ForesightTable:
    """How often tokens that were foreseen to win did, and how the two estimates mix.

    Args:
        fitted: by kind the line of the prior's log-odds, and the first shares by level.

    Attributes:
        prior: [KINDS * BINS] what is believed before anything was seen.
        seen, right: [KINDS * BINS] of the bin's tokens.
        share, count: [KINDS * LEVELS] the acceptance table's share in the mixture is their ratio.
    """

    def __init__(self, fitted: Mapping[str, Any]) -> None:
        lines = [fitted[name]["bias"] + fitted[name]["slope"] * MIDDLES for name in KIND_NAMES]
        self.prior = 1 / (1 + np.exp(-np.concatenate(lines)))
        self.first_share = np.array([fitted[name]["shares"] for name in KIND_NAMES]).ravel()
        self.seen, self.right = np.zeros((2, KINDS * BINS))
        self.share, self.count = np.empty((2, KINDS * LEVELS))
        self.reset()

    def reset(self) -> None:
        """Forget what was learnt."""
        self.seen[:] = self.right[:] = 0
        self.share[:], self.count[:] = FIRST_COUNT * self.first_share, FIRST_COUNT

    def counted(self) -> dict[str, Numbers]:
        """What was learnt."""
        return {
            "bins": np.stack((self.right, self.seen)),
            "shares": np.stack((self.share, self.count)),
        }

    def take(self, counted: Mapping[str, Numbers]) -> None:
        """Go on from what counted() gave."""
        self.right[:], self.seen[:] = counted["bins"]
        self.share[:], self.count[:] = counted["shares"]

    def believe(self) -> None:
        """Make the prior of what was learnt, so that what is learnt from now on counts for more."""
        self.prior[:] = (self.right + STRENGTH * self.prior) / (self.seen + STRENGTH)
        self.first_share[:] = self.share / self.count
        self.reset()

    def probability(self, at: int) -> float:
        """How likely a token of this bin of a kind is to win."""
        weighed = self.right[at] + STRENGTH * self.prior[at]
        return float(weighed / (self.seen[at] + STRENGTH))


FLAT_FORESIGHT = {  # to begin a fit with
    name: {"bias": 0.0, "slope": 0.8, "shares": [0.5] * LEVELS} for name in KIND_NAMES
}


class Guess(NamedTuple):
    """A candidate of a node: what both estimates say of it."""

    token: int
    grades: Grades
    known: float  # its probability without the noise; 0 where no evidence names it
    bin: int  # of the foresight table; -1: it is not among the row's
    foreseen: float  # the foresight table's probability; 0 where it has none
    probability: float  # by both
    weight: int  # which corrected that


class Guesses(NamedTuple):
    """The candidates below a node, and where their mixture is learnt; -1: there was no row."""

    all: list[Guess]
    mixture: int


def level(probabilities: Iterable[float]) -> int:
    """Which of LEVELS the largest of some probabilities is on; the first, where there are none."""
    return min(LEVELS - 1, int(LEVELS * max(probabilities, default=0.0)))


def foresee(row: ScoredRow, state: int) -> list[tuple[int, int]]:
    """The tokens of a row that win most likely, first that one, and the bin of each's odds.

    Args:
        row: tokens and log-probabilities.
        state: of the noise at their position.
    """
    sums: list[tuple[float, int, int]] = []
    held = 0.0
    for token, logprob in zip(*row, strict=True):
        held += exp(logprob)
        sums.append((-(logprob + noise_of(state, token)), len(sums), token))
    sums = sorted(sums)[:FORESEEN]
    best = -sums[0][0]
    weights = [exp(-minus - best) for minus, _, _ in sums]
    whole = exp(log(max(REST, 1 - held)) + EULER - best)
    for weight in weights:
        whole += weight
    found = []
    for (_, _, token), weight in zip(sums, weights, strict=True):
        rest = whole - weight
        place = (log(weight / rest) - LEAST) / WIDTH if weight and rest > 0 else BINS * bool(weight)
        found.append((token, 0 if place < 0 else BINS - 1 if place >= BINS else int(place)))
    return found


class SampledCore(ReadableCore):
    """As growth.ReadableCore, of samples whose noise is known.

    Args:
        foresight_table: learnt from and into.
    """

    def __init__(
        self,
        evidence: Evidence,
        table: AcceptanceTable,
        corrections: Corrections,
        capacity: int,
        foresight_table: ForesightTable,
    ) -> None:
        self.learnt = foresight_table
        self._older: dict[int, ScoredRow] = {}
        self._single: dict[int, ScoredRow] = {}
        super().__init__(evidence, table, corrections, capacity)

    def foresee(self, foresight: Foresight) -> None:
        """The samples to come."""
        self._stream = foresight.stream

    def begin(self, prompt_ids: Sequence[int]) -> bool:
        self._committed = len(prompt_ids)
        if super().begin(prompt_ids):
            return True
        if self.evidence.rows.keep:
            self._older = self._all_rows()
        self._single = {}
        self._pair: dict[tuple[int, ...], ScoredRow] = {}
        return False

    def _all_rows(self) -> dict[int, ScoredRow]:
        """What is kept for the next prompt."""
        return {**self._older, **self._single} if self.evidence.rows.keep else {}

    def forget(self) -> None:
        super().forget()
        self._older, self._single, self._pair = {}, {}, {}

    def kept(self) -> dict[str, Numbers]:
        scored, logs = list_scored(self._all_rows())
        return super().kept() | {"scored": scored, "logs": logs}

    def take(self, kept: Mapping[str, Numbers]) -> None:
        super().take(kept)
        self._older.update(scored_of(kept["scored"], kept["logs"]))

    def weigh(
        self, candidates: Candidates, context: tuple[int, ...], depth: int
    ) -> tuple[list[tuple[int, Grades, float]], Any]:
        unnamed, named = candidates
        by_table, noted = super().weigh(candidates, context, depth)
        known = {token: probability for token, _, probability in by_table}
        guesses: list[Guess] = []
        mixture, share = -1, 1.0
        row, kind = self._find_row(context)
        if row is not None:
            kind = 2 * kind + (depth == 0)
            mixture = kind * LEVELS + level(known.values())
            share = float(self.learnt.share[mixture] / self.learnt.count[mixture])
            (state,) = states_of(self._stream, [self._committed + depth + 1])
            for token, place in foresee(row, state):
                at = kind * BINS + place
                grades = named.get(token, unnamed)
                own = known.get(token, 0.0), self.learnt.probability(at)
                guesses.append(self._guess(token, grades, at, *own, share))
        chosen = {guess.token for guess in guesses}
        guesses += [
            self._guess(token, grades, -1, known[token], 0.0, share)
            for token, grades in named.items()
            if token not in chosen
        ]
        weighed = [(guess.token, guess.grades, guess.probability) for guess in guesses]
        return weighed, (noted, Guesses(guesses, mixture))

    def _guess(
        self, token: int, grades: Grades, at: int, known: float, foreseen: float, share: float
    ) -> Guess:
        mixed = share * known + (1 - share) * foreseen
        kind = 2 if at < 0 else 0 if known else 1
        return Guess(
            token, grades, known, at, foreseen, *self.corrections.correct_mixture(mixed, kind)
        )

    def _find_row(self, context: tuple[int, ...]) -> tuple[ScoredRow | None, int]:
        """The row of a node, and of which kind it is."""
        places = (self._pair, context[-2:]), (self._single, context[-1]), (self._older, context[-1])
        for kind, (rows, key) in enumerate(places):
            row = rows.get(key)  # type: ignore[attr-defined]
            if row is not None:
                return row, kind
        return None, 0

    def learn(self, noted: Any, true: int) -> None:
        by_table, guesses = noted
        super().learn(by_table, true)
        learnt = self.learnt
        for guess in guesses.all:
            self.corrections.learn_at(guess.weight, (guess.token == true) - guess.probability)
            if guess.bin >= 0:
                learnt.seen[guess.bin] += 1
                learnt.right[guess.bin] += guess.token == true
            if guess.token == true and guesses.mixture >= 0:
                at = guesses.mixture
                share = learnt.share[at] / learnt.count[at]
                known, foreseen = share * guess.known, (1 - share) * guess.foreseen
                learnt.share[at] += known / (known + foreseen)
                learnt.count[at] += 1

    def observe(
        self,
        drafted: Drafted,
        path: Sequence[int],
        top_ids: Sequence[Sequence[int]],
        logprobs: Sequence[Sequence[float]] = (),
    ) -> None:
        before = self.evidence.context[-1] if self.evidence.context else -1
        super().observe(drafted, path, top_ids)
        tokens, parents = drafted.tokens, drafted.parents
        for node in (*range(len(tokens) - 1, -1, -1), *path):
            if top_ids[node]:
                if len(self._pair) >= MOST_ROWS:
                    self._pair = {}
                parent = tokens[parents[node]] if node else before
                row = without_filtered(scored_row(top_ids[node], logprobs[node]))
                self._single[tokens[node]] = self._pair[parent, tokens[node]] = row
        self._committed += len(path)

    def skip(self, token: int) -> None:
        super().skip(token)
        self._committed += 1
