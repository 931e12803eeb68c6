"""Measures what a step of a loaded model costs by its nodes, for trees that size themselves.

decoding.py offers it to drafters; benchmarks/step_cost.py prints and draws the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch

from ..cuda_graphs import node_bucket
from ..devices import device_name
from ..draft_tree import DraftTree
from ..instruction_set import describe
from ..kv_cache import KVCache
from ..modeling_llama_kv import LlamaKVForCausalLM
from ..prefill import prefill
from ..storage import remembered
from ..successors import successors
from ..verification import verify
from .step_cost import MEASURED_NODES, StepCost, rising

log = logging.getLogger(__name__)
Key = TypeVar("Key")

CONTEXTS = (128, 1024)  # committed tokens
METHOD = 3  # of measuring: a new number makes what was stored count no more
FEW = 16  # nodes; steps over no more are cheap, and where trees end is decided among them
ROUNDS = (16, 3)  # measurements of each size, of few nodes and of many
SOME_TOKENS = 64  # that every vocabulary has


def step_cost(model: LlamaKVForCausalLM, top_k: int, node_top_k: int = 0) -> StepCost:
    """The step cost of a model with a drafter's widths, measured in a few seconds or remembered.

    It is stored for this model shape, dtype, device and way to run, in the user's cache folder.

    Args:
        top_k: best token ids that are read of the logits that choose the next root.
        node_top_k: the same of every node.
    """
    config = model.config.to_dict()
    key = {
        "shape": {name: config.get(name) for name in SHAPE},
        "dtype": str(model.dtype),
        "device": device_name(model.device),
        "instruction_set": describe() if model.device.type == "cpu" else None,
        "threads": torch.get_num_threads(),
        "kernels": model.kernels.name,
        "graphs": model.graphs,
        "torch": torch.__version__,
        "top_k": top_k,
        "node_top_k": node_top_k,
        "nodes": sizes(model),
        "contexts": CONTEXTS,
        "method": METHOD,
    }
    found = remembered("step-cost", key, lambda: asdict(measure(model, top_k, node_top_k)))
    return StepCost(**found)


SHAPE = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)


def sizes(model: LlamaKVForCausalLM) -> list[int]:
    """The numbers of nodes to measure: where trees are padded, one of each bucket."""
    return (
        sorted({node_bucket(n) for n in MEASURED_NODES}) if model.graphs else list(MEASURED_NODES)
    )


def measure(model: LlamaKVForCausalLM, top_k: int, node_top_k: int) -> StepCost:
    """Measure it, in some ten seconds. Of each size the lower quartile, which a busy machine spoils
    least."""
    log.info("measuring what a step costs by its nodes, once for this model and machine")
    meter = Meter(model, top_k, node_top_k)
    meter.run(*ROUNDS)
    return meter.cost(0.25)


class Meter:
    """Measures the step cost of a model, at once or a little now and then.

    All numbers of nodes take turns, few nodes among themselves.

    Args:
        model: the target, loaded; its cache is used.
        top_k: as in step_cost, and node_top_k.
        rejected: measure trees of which no draft is accepted, whose verification may cost less
            (verification.NativeVerifier); otherwise one is.
    """

    def __init__(
        self, model: LlamaKVForCausalLM, top_k: int, node_top_k: int, *, rejected: bool = False
    ) -> None:
        self._rejected = rejected
        room = model.max_positions - MEASURED_NODES[-1]
        self._model = model
        self._widths = top_k, node_top_k
        self._nodes = sizes(model)
        self._contexts = [min(c, max(1, room // (2 - i))) for i, c in enumerate(CONTEXTS)]
        self._took: dict[tuple[int, int], list[float]] = {}

    def run(self, few: int, many: int) -> None:
        """Measure so many rounds of the sizes up to FEW, and of the larger ones."""
        for context in self._contexts:
            with filled_cache(self._model, context, room=MEASURED_NODES[-1]) as cache:
                root, true = continuation(self._model, cache)
                child = true if not self._rejected else int(not true)
                for rounds, wanted in ((few, True), (many, False)):
                    steps = {
                        n: partial(
                            verify,
                            self._model,
                            wide_tree(n, (root, child), true),
                            cache,
                            *self._widths,
                        )
                        for n in self._nodes
                        if (n <= FEW) is wanted
                    }
                    for n, seconds in interleaved(steps, rounds).items():
                        self._took.setdefault((context, n), []).extend(seconds)

    def cost(self, quantile: float) -> StepCost:
        """What was measured so far: this quantile of each size, smoothed so as never to fall."""
        seconds = [
            rising([float(np.quantile(self._took[context, n], quantile)) for n in self._nodes])
            for context in self._contexts
        ]
        return StepCost(self._contexts, self._nodes, seconds, padded=self._model.graphs)


@contextmanager
def filled_cache(model: LlamaKVForCausalLM, context: int, room: int) -> Iterator[KVCache]:
    """A cache with so many committed tokens of a model, and slots for a tree of `room` nodes."""
    with model.cache(context + node_bucket(room)) as cache:
        fill(model, cache, context)
        yield cache


def fill(model: LlamaKVForCausalLM, cache: KVCache, context: int) -> None:
    """Commit so many tokens to an empty cache."""
    tokens = min(1000, model.config.vocab_size)
    prefill(model, [i % tokens for i in range(context)], cache, top_k=0)


def wide_tree(nodes: int, right: tuple[int, int] = (5, 5), true: int | None = None) -> DraftTree:
    """A tree whose nodes have four children each.

    Args:
        nodes: of the tree.
        right: the root and its first child. A child that is accepted makes the verifier compute
            more than one that is not.
        true: the token that the target has follow the root; no other child of the root has it.
    """
    tree = DraftTree(right[0], nodes)
    if nodes > 1:
        tree.add(right[1], 0)
    while not tree.full:
        token = len(tree) % SOME_TOKENS
        tree.add(SOME_TOKENS - 1 if token == true else token, parent=len(tree) // 4)
    return tree


def continuation(model: LlamaKVForCausalLM, cache: KVCache) -> tuple[int, int]:
    """A root, and the token that the target has follow it."""
    return 5, verify(model, DraftTree(5, 1), cache, 0).next_root


def interleaved(
    variants: Mapping[Key, Callable[[], object]], rounds: int
) -> dict[Key, list[float]]:
    """Seconds of each variant, `rounds` of them.

    Each runs twice in its turn, and the second time counts: a run after one of another kind finds
    other things in the processor's caches, and takes up to a quarter longer.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in variants}
    for _ in range(rounds):
        for key, variant in variants.items():
            variant()
            start = time.perf_counter()
            variant()
            seconds[key].append(time.perf_counter() - start)
    return seconds


@dataclass(frozen=True)
class MeasuredModel:
    """A loaded model as drafters see it (sizing.step_cost.Measurable); equal for one model."""

    model: LlamaKVForCausalLM

    def step_cost(self, top_k: int, node_top_k: int = 0) -> StepCost:
        return step_cost(self.model, top_k, node_top_k)

    def successors(self, count: int, width: int) -> list[list[int]]:
        return successors(self.model, count, width)
