"""How likely the target found its own tokens: log-probabilities of what was generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .draft_tree import DraftTree
from .sampling import Chooser, Sampling, Winners


@dataclass(frozen=True)
class Scored:
    """A generated token, before temperature and filters."""

    token: int
    logprob: float
    best: list[tuple[int, float]]  # the best tokens in its place and theirs, best first


class ScoringChooser(Chooser):
    """Chooses as another one does, and keeps the log-probabilities of what was chosen.

    Args:
        sampling: what the tokens are chosen by.
        prompt_ids: token ids, but for the last.
        count: how many best tokens are kept beside each.

    Attributes:
        scored: the tokens that were committed so far, the last prompt token left out.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], count: int) -> None:
        seed = sampling.seed if sampling.temperature else None
        super().__init__(sampling.processors(), seed, prompt_ids)
        self.greedy = False  # so that every verifier brings the logits here
        self.scored: list[Scored] = []
        self._count = count
        self._next: Scored | None = None  # the token after the committed ones
        self._after: dict[int, Scored] = {}  # the token after each node that was looked at

    def choose(
        self,
        logits: torch.Tensor,
        tree: DraftTree,
        nodes: Sequence[int] | None = None,
        find_winners: Winners | None = None,
    ) -> torch.Tensor:
        chosen = super().choose(logits, tree, nodes, find_winners)
        self._tree = tree
        logs = logits.float().log_softmax(dim=-1)
        own = logs.gather(1, chosen.to(logs.device)[:, None])[:, 0].tolist()
        best = logs.topk(min(self._count, logs.shape[1]))
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        found = zip(chosen.tolist(), own, rows, strict=True)
        for node, (token, logprob, (tokens, theirs)) in zip(
            range(len(tree)) if nodes is None else nodes, found, strict=True
        ):
            self._after[node] = Scored(token, logprob, list(zip(tokens, theirs, strict=True)))
        return chosen

    def commit(self, tokens: Sequence[int]) -> None:
        super().commit(tokens)
        if self._next is not None:
            self.scored.append(self._next)
        node = 0
        for token in tokens[1:]:
            self.scored.append(self._after[node])
            children = range(node + 1, len(self._tree))
            node = next(
                child
                for child in children
                if self._tree.parents[child] == node and self._tree.tokens[child] == token
            )
        self._next = self._after[node]
        self._after = {}
