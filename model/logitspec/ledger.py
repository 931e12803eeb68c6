"""The books of one generation: what came out, in how many steps, and where the time went.

decoding.py enters every step here; no decision depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from .acceptance import Verdict
from .draft_tree import DraftTree


@dataclass
class DecodingResult:
    """One generation: what came out, in how many steps, and where the time went.

    A step is one verification forward; prefill is none. sum(accept_lengths) == len(tokens) always.
    Seconds are wall time per phase, summed over the steps. On a GPU `verify` is the time to start
    the forward and `accept`, which needs its result, holds the wait for it; the cache moves of
    `commit` run behind the next step's work.
    """

    prompt_tokens: int
    tokens: list[int] = field(default_factory=list)  # generated ids, EOS included
    accept_lengths: list[int] = field(default_factory=list)  # tokens committed per step
    tree_sizes: list[int] = field(default_factory=list)  # nodes verified per step, root included
    step_seconds: list[float] = field(default_factory=list)  # wall time per step
    # Per step: 1 when drafts followed the last accepted node and all were wrong, else 0
    misses: list[int] = field(default_factory=list)
    # Per step that a token came after: the rank, in the logits that chose the root, of the token
    # after the root; -1 when it is not among the drafter's top_k. None of a step without these.
    next_next_ranks: list[int] = field(default_factory=list)
    cached_tokens: int = 0  # of the prompt: an earlier generation had read them
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0  # with what the drafter does with the prompt
    build_seconds: float = 0.0  # the tree to the device; where it is of a new size, its CUDA graph
    verify_seconds: float = 0.0  # the target's forward: layers and head
    accept_seconds: float = 0.0  # acceptance, and its result to the host
    commit_seconds: float = 0.0  # cache, drafter's observe, bookkeeping

    @property
    def steps(self) -> int:
        return len(self.accept_lengths)

    @property
    def mean_accepted_tokens(self) -> float:
        """MAT: tokens per verification forward."""
        return len(self.tokens) / self.steps


TARGET_PHASES = ("build", "verify", "accept")  # of a step


class Ledger:
    """Keeps a DecodingResult while its generation runs.

    Attributes:
        target_seconds: of this step so far, what was not drafting.
    """

    def __init__(
        self, prompt_tokens: int, cached_tokens: int = 0, eos_token_ids: Collection[int] = ()
    ) -> None:
        self.result = DecodingResult(prompt_tokens, cached_tokens=cached_tokens)
        self._eos_token_ids = eos_token_ids
        self.target_seconds = 0.0
        self._clock = time.perf_counter()

    def begin_step(self, before: Verdict) -> None:
        """Begin a step whose root a verdict chose; the time since the last belongs to no phase."""
        self._top_ids = before.top_ids
        self.target_seconds = 0.0
        self._step_began = self._clock = time.perf_counter()

    def lap(self, phase: str, *, in_model: float = 0.0) -> None:
        """Count the time since the last lap to a phase.

        Args:
            phase: prefill, draft, build, verify, accept or commit.
            in_model: seconds of it in which the model ran, which count to verify.
        """
        now = time.perf_counter()
        if phase in TARGET_PHASES:
            self.target_seconds += now - self._clock
        self._count(phase, now - self._clock - in_model)
        self._count("verify", in_model)
        self._clock = now

    def _count(self, phase: str, seconds: float) -> None:
        name = f"{phase}_seconds"
        setattr(self.result, name, getattr(self.result, name) + seconds)

    def enter(self, tree: DraftTree, path: Sequence[int], verdict: Verdict, *, ended: bool) -> None:
        """Enter a step with its committed path; the time since the last lap is commit.

        `tree` is as it was verified; `ended`: the last committed node ends the generation.
        """
        result = self.result
        result.tokens += [tree.tokens[node] for node in path]
        result.accept_lengths.append(len(path))
        result.tree_sizes.append(len(tree))
        result.misses.append(int(not ended and has_drafts_below(tree, path)))
        if self._top_ids and tree.tokens[0] not in self._eos_token_ids:
            accepted = verdict.path
            next_next = tree.tokens[accepted[1]] if len(accepted) > 1 else verdict.next_root
            known = next_next in self._top_ids
            result.next_next_ranks.append(self._top_ids.index(next_next) if known else -1)
        self.lap("commit")
        result.step_seconds.append(self._clock - self._step_began)


def has_drafts_below(tree: DraftTree, path: Sequence[int]) -> bool:
    """Whether a draft followed the path's tokens, on the path or on a branch that equals it."""
    tokens = [tree.tokens[node] for node in path]
    twins = {0}
    for node in range(1, len(tree)):
        if tree.parents[node] in twins and node not in tree.probes:
            depth = tree.depths[node]
            if depth == len(path):
                return True
            if tree.tokens[node] == tokens[depth]:
                twins.add(node)
    return False
