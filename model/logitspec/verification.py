"""Verification of a draft tree: the tree to the device, one forward, what the target accepts.

decoding.py asks `find_verifier` for a way to do it. On a GPU a step is a captured CUDA graph
(cuda_graphs.py), on the native layers of a CPU the head is computed for the nodes that need it, and
everywhere else the operators run as they are written.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import torch

from .acceptance import TreeTensors, Verdict, accept, longest_path
from .cpu.layers import best_tokens, log_probabilities, one_thread, winners
from .cuda_graphs import GraphVerifier
from .draft_tree import DraftTree
from .kv_cache import KVCache
from .modeling_llama_kv import LlamaKVForCausalLM
from .sampling import Chooser, greedy

ROWS = 6  # rows that the native head computes in the time of one: a tile of cpu/matrices.h


class Verifier(Protocol):
    """One step in three calls, so that each can be timed; nothing is committed.

    Attributes:
        head_seconds: what of the last accept() was the model's head, computed only then.
        wants_best: whether the next forward's best token ids are asked for; a CUDA graph finds
            them in any case.
        wants_logprobs: whether the log-probabilities of these tokens are, too, of samples.
        nodes: that the step runs over; more than the tree's where it is padded.
    """

    head_seconds: float
    wants_best: bool
    wants_logprobs: bool

    @property
    def nodes(self) -> int: ...

    def build(self, tree: DraftTree) -> None:
        """Take the tree to the device."""

    def forward(self) -> None:
        """Run the target over it. On a GPU: have it run."""

    def accept(self) -> Verdict:
        """What the target agrees with; waits for the device."""


def find_verifier(
    model: LlamaKVForCausalLM,
    cache: KVCache,
    top_k: int,
    node_top_k: int = 0,
    chooser: Chooser | None = None,
    largest: int = 0,
) -> Verifier:
    """The verifier of a model over a cache; graphs are kept with the cache and used again.

    Args:
        cache: where it writes; never committed to.
        top_k: best token ids to report of the logits that choose the next root.
        node_top_k: the same of every node.
        chooser: of the target's tokens; None: greedy.
        largest: most nodes of the trees to come, see GraphVerifier; 0: each runs at its own size.
    """
    chooser = chooser or greedy()
    if not model.graphs:
        kind = EagerVerifier if model.native is None else NativeVerifier
        return kind(model, cache, top_k, node_top_k, chooser)
    key = (top_k, node_top_k, chooser.greedy)
    if key not in cache.graphs:
        cache.graphs[key] = GraphVerifier(model, cache, top_k, node_top_k, chooser)
    known: GraphVerifier = cache.graphs[key]
    known.chooser, known.largest = chooser, largest
    return known


def verify(
    model: LlamaKVForCausalLM, tree: DraftTree, cache: KVCache, top_k: int, node_top_k: int = 0
) -> Verdict:
    """One forward over all nodes of the tree and what the target accepts; commits nothing."""
    step = find_verifier(model, cache, top_k, node_top_k)
    step.build(tree)
    step.forward()
    return step.accept()


class EagerVerifier:
    """Every operator is called as it comes."""

    head_seconds = 0.0
    wants_best = True
    wants_logprobs = False

    def __init__(
        self,
        model: LlamaKVForCausalLM,
        cache: KVCache,
        top_k: int,
        node_top_k: int,
        chooser: Chooser,
    ) -> None:
        self._model = model
        self._cache = cache
        vocab = model.config.vocab_size
        self._asked = (min(top_k, vocab), min(node_top_k, vocab))
        self._chooser = chooser

    @property
    def nodes(self) -> int:
        return len(self._tree)

    def build(self, tree: DraftTree) -> None:
        self._tree = tree
        self._tensors = TreeTensors.upload(tree, self._model.device)

    def forward(self) -> None:
        # Not by calling the model: accelerate takes what it is called with to a device of its own.
        logits = self._model.logits(self._hidden_states())
        self._logits = logits.to(self._model.device)

    @property
    def _widths(self) -> tuple[int, int]:
        """How many best token ids to find of the last logits, and of each node's."""
        return self._asked if self.wants_best else (0, 0)

    def _hidden_states(self) -> torch.Tensor:
        """[n, hidden] of the tree's nodes."""
        length, tensors = self._cache.length, self._tensors
        return self._model.hidden_states(
            tensors.tokens,
            tensors.depths + length,
            self._cache,
            last_position=length + max(self._tree.depths),
            tree_mask=tensors.ancestors,
        )

    def accept(self) -> Verdict:
        return accept(
            self._logits, self._tree, self._chooser, *self._widths, self._tensors,
            logprobs=self.wants_logprobs,
        )  # fmt: skip


class NativeVerifier(EagerVerifier):
    """On the native layers, where the head is computed for the nodes that need it.

    The head is a fifth of a large tree's arithmetic, and only the nodes of the accepted path need
    it. Unless the drafter wants every node's best tokens, accept() computes it for these nodes and
    for guesses at them, a few rows at a time.
    """

    def forward(self) -> None:
        self._x = self._hidden_states()
        self._top_k, self._node_top_k = self._widths
        self._all_logits = self._model.logits(self._x) if self._node_top_k else None
        self._rows: dict[int, torch.Tensor] = {}  # [vocab], of the nodes that are looked at
        self._best: dict[int, list[int]] = {}  # best tokens after these nodes, best first
        self._logprobs: list[list[float]] = []  # of every node's, if they are asked for
        self.head_seconds = 0.0

    def _look_at(self, nodes: Sequence[int]) -> None:
        """Find the logits and best tokens after these nodes, and of others that cost no more."""
        if self._all_logits is not None:
            nodes, logits = range(len(self._tree)), self._all_logits
        else:
            nodes = with_drafts_below(self._tree, nodes, ROWS if nodes[0] else 1)
            start = time.perf_counter()
            logits = self._model.logits(self._x[nodes])
            self.head_seconds += time.perf_counter() - start
        # Few nodes: so many of each that the last one's need not be looked for again
        count = max(1, self._node_top_k, self._top_k if len(nodes) <= ROWS else 0)
        found = best_tokens(logits, count)
        foresight = self._chooser.foresight if self.wants_logprobs and self._node_top_k else None
        if foresight is not None:
            asked = found[:, : self._node_top_k]
            self._logprobs = log_probabilities(logits, asked, foresight).tolist()
        best = found.tolist()
        self._rows.update(zip(nodes, logits.unbind(), strict=True))
        self._best.update(zip(nodes, best, strict=True))

    def _choose(self, nodes: Sequence[int]) -> list[int]:
        """The target's tokens after these nodes."""
        missing = [node for node in nodes if node not in self._rows]
        if missing:
            self._look_at(missing)
        if self._chooser.greedy:
            return [self._best[node][0] for node in nodes]
        with one_thread():
            rows = torch.stack([self._rows[node] for node in nodes])
            return self._chooser.choose(rows, self._tree, nodes, winners).tolist()

    def accept(self) -> Verdict:
        path, next_root = longest_path(self._tree, self._choose)
        best = self._best[path[-1]]
        if len(best) < self._top_k:
            (best,) = best_tokens(self._rows[path[-1]][None], self._top_k).tolist()
        width = self._node_top_k
        all_best = [self._best[node][:width] for node in range(len(self._tree))] if width else []
        return Verdict(path, next_root, best[: self._top_k], all_best, self._logprobs)


def with_drafts_below(tree: DraftTree, nodes: Sequence[int], count: int) -> list[int]:
    """These nodes, ascending, and the drafts below them, the first ones, until they are `count`."""
    found = list(nodes)
    below = set(nodes)
    for node in range(nodes[0] + 1, len(tree)):
        if len(found) >= count:
            break
        if tree.parents[node] in below and node not in below:
            below.add(node)
            found.append(node)
    return found
