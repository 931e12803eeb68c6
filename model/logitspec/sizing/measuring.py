"""Measures what a step of a loaded model costs by its nodes, where nothing is known of it yet.

decoding.py offers it to drafters whose trees size themselves; recordings measure with the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import RLock
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch

from ..cuda_graphs import node_bucket
from ..devices import device_name
from ..draft_tree import DraftTree
from ..instruction_set import describe
from ..kv_cache import KVCache
from ..modeling_llama_kv import LlamaKVForCausalLM
from ..storage import recall, remember
from ..verification import verify
from .live_cost import DOUBT, GUESSED, LiveCost, guessed
from .step_cost import CONTEXTS, MEASURED_NODES, StepCost, rising

Key = TypeVar("Key")

METHOD = 4  # of finding a step cost: a new number makes what was stored count no more
START_SECONDS = 0.5  # that a model of which nothing is stored is measured for
ROUNDS = 3  # most times that each size is measured for that
# The sizes that say most about the others, and at which context, in the order they are measured
TELLING = (
    *((1, 0), (8, 0), (2, 0), (32, 0), (1, 1), (8, 1), (4, 0), (16, 0), (64, 0)),
    *((32, 1), (128, 0), (64, 1), (128, 1)),
)
SOME_TOKENS = 64  # that every vocabulary has

SHAPE = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
Widths = tuple[int, int]  # a drafter's top_k and node_top_k
LIVE: WeakKeyDictionary[LlamaKVForCausalLM, dict[Widths, LiveCost]] = WeakKeyDictionary()
# Of the prompt with most tokens to read: these, tokens that were committed before, seconds
READ: WeakKeyDictionary[LlamaKVForCausalLM, tuple[int, int, float]] = WeakKeyDictionary()
FINDING = RLock()  # measurements would disturb each other


def live_cost(model: LlamaKVForCausalLM, top_k: int, node_top_k: int = 0) -> LiveCost:
    """The step cost of a model with a drafter's widths, one for all that ask in this process.

    It begins with what an earlier process stored for this model shape, dtype, device and way to
    run, in the user's cache folder, and with what a step over one node takes now; where nothing is
    stored, with what START_SECONDS of measuring tell.

    Args:
        top_k: best token ids that are read of the logits that choose the next root.
        node_top_k: the same of every node.
    """
    with FINDING:
        known = LIVE.setdefault(model, {})
        if (top_k, node_top_k) not in known:
            known[top_k, node_top_k] = begin(model, top_k, node_top_k)
            if model in READ:
                known[top_k, node_top_k].note_prompt(*READ[model])
        return known[top_k, node_top_k]


def known_cost(model: LlamaKVForCausalLM, top_k: int, node_top_k: int = 0) -> LiveCost | None:
    """The same, if somebody asked for it before."""
    return LIVE.get(model, {}).get((top_k, node_top_k))


def note_prompt(model: LlamaKVForCausalLM, tokens: int, held: int, seconds: float) -> None:
    """Tell all step costs of a model what reading a prompt took, also those that are asked for
    later: see LiveCost.note_prompt()."""
    with FINDING:
        if tokens > READ.get(model, (0, 0, 0.0))[0]:
            READ[model] = tokens, held, seconds
        for cost in LIVE.get(model, {}).values():
            cost.note_prompt(tokens, held, seconds)


def begin(model: LlamaKVForCausalLM, top_k: int, node_top_k: int) -> LiveCost:
    """A step cost that nothing was learnt into yet."""
    config = model.config.to_dict()
    key = {
        "shape": {name: config.get(name) for name in SHAPE},
        "dtype": str(model.dtype),
        "stored": model.stored,
        "device": device_name(model.device),
        "instruction_set": describe() if model.device.type == "cpu" else None,
        "threads": torch.get_num_threads(),
        "kernels": model.kernels.name,
        "graphs": model.graphs,
        "torch": torch.__version__,
        "top_k": top_k,
        "node_top_k": node_top_k,
        "nodes": sizes(model),
        "method": METHOD,
    }
    store = partial(remember, "step-cost", key)
    meter = Meter(model, top_k, node_top_k)
    stored = read(recall("step-cost", key), sizes(model), padded=model.graphs)
    if stored is None:
        meter.run(START_SECONDS)
        return LiveCost(meter.cost, store, DOUBT if meter.kinds > 1 else GUESSED)
    meter.run(START_SECONDS, rounds=1, kinds=1)
    speed = meter.cost.seconds[0][0] / stored.seconds[0][0]  # the machine may be slower now
    seconds = [[speed * s for s in line] for line in stored.seconds]
    return LiveCost(replace(stored, seconds=seconds), store)


def read(found: Any, nodes: list[int], *, padded: bool) -> StepCost | None:
    """A step cost that was stored; None if it is none, or of other sizes."""
    try:
        seconds = np.array(found["seconds"], dtype=np.float64)
        near, far = map(int, found["contexts"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    whole = seconds.shape == (2, len(nodes)) and bool((np.isfinite(seconds) & (seconds > 0)).all())
    if not whole or not 0 < near < far:
        return None
    return StepCost((near, far), nodes, seconds.tolist(), padded)


def sizes(model: LlamaKVForCausalLM) -> list[int]:
    """The numbers of nodes that are told apart: where trees are padded, one of each bucket."""
    return (
        sorted({node_bucket(n) for n in MEASURED_NODES}) if model.graphs else list(MEASURED_NODES)
    )


class Meter:
    """Measures the step cost of a model for a while, at once or a little now and then.

    The sizes take turns, those of TELLING first, each as long as there is time for it.

    Args:
        model: the target, loaded.
        top_k: as in live_cost, and node_top_k.
        rejected: measure trees of which no draft is accepted, whose verification may cost less
            (verification.NativeVerifier); False: of which one is; None: whichever comes.
    """

    def __init__(
        self,
        model: LlamaKVForCausalLM,
        top_k: int,
        node_top_k: int,
        *,
        rejected: bool | None = None,
    ) -> None:
        self._model = model
        self._widths = top_k, node_top_k
        self._rejected = rejected
        self._capturing = 0.0  # most seconds that a size's first step took, which captures a graph
        room = model.max_positions - MEASURED_NODES[-1]
        self._contexts = [min(c, max(1 + i, room // (2 - i))) for i, c in enumerate(CONTEXTS)]
        self._nodes = sizes(model)
        telling = [(node_bucket(n) if model.graphs else n, at) for n, at in TELLING]
        every = [(n, at) for at in (0, 1) for n in self._nodes]
        self._took: dict[tuple[int, int], list[float]] = {
            kind: [] for kind in dict.fromkeys([*telling, *every])
        }

    def run(self, seconds: float, rounds: int = ROUNDS, kinds: int | None = None) -> None:
        """Measure sizes, the telling ones first, those that were measured least before others.

        Args:
            seconds: what all of it may take; a step over one node is measured whatever it takes.
            rounds: most times that each size is measured.
            kinds: how many sizes, each at a context; None: all.
        """
        end = time.perf_counter() + seconds
        with filled_cache(self._model, self._contexts[1], MEASURED_NODES[-1]) as cache:
            for _ in range(rounds):
                if not self._go_round(cache, end, kinds):
                    break

    @property
    def kinds(self) -> int:
        """How many sizes were measured, each at a context."""
        return sum(map(bool, self._took.values()))

    def _go_round(self, cache: KVCache, end: float, kinds: int | None) -> bool:
        """Measure each size that there is time for; whether there was any."""
        order = sorted(self._took, key=lambda kind: len(self._took[kind]))
        any_measured = False
        for nodes, at in order[:kinds]:
            if self.kinds and self._at_most(nodes) > end - time.perf_counter():
                continue
            fill(cache, self._contexts[at])
            root, child, true = 5, 5, None
            if self._rejected is not None:
                root, true = continuation(self._model, cache)
                child = int(not true) if self._rejected else true
            step = partial(
                verify, self._model, wide_tree(nodes, (root, child), true), cache, *self._widths
            )
            if self._model.graphs:
                self._capturing = max(self._capturing, once(step))
            self._took[nodes, at].append(timed(step, end))
            any_measured = True
        return any_measured

    def _at_most(self, nodes: int) -> float:
        """Seconds that a step over so many nodes takes at most, by what was measured."""
        known = ((n, min(took)) for (n, _), took in self._took.items() if took)
        return self._capturing + min(seconds * max(1, nodes / n) for n, seconds in known)

    @property
    def cost(self) -> StepCost:
        """What was measured so far, the median of each size; what was not follows from that."""
        near, far = (
            {n: float(np.median(took)) for (n, of), took in self._took.items() if took and of == at}
            for at in (0, 1)
        )
        fast = completed(near, self._nodes)
        more = {n: max(0.0, seconds - near[n]) for n, seconds in far.items() if n in near}
        further = completed(more or {1: near[1] / 10}, self._nodes)
        slow = [seconds + add for seconds, add in zip(fast, further, strict=True)]
        return StepCost(self._contexts, self._nodes, (fast, slow), padded=self._model.graphs)


def completed(known: Mapping[int, float], nodes: Sequence[int]) -> list[float]:
    """Seconds of a step over each of these numbers of nodes, from those of some of them, 1 among
    these: linear between, carried on beyond, never falling."""
    if len(known) == 1:
        return [known[1] * guessed(n) for n in nodes]
    sizes = sorted(known)
    seconds = rising([known[n] for n in sizes])
    slope = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])
    inside = np.interp(nodes, sizes, seconds).tolist()
    return [s + slope * max(0, n - sizes[-1]) for n, s in zip(nodes, inside, strict=True)]


def timed(run: Callable[[], object], end: float) -> float:
    """Seconds of a second run, if there is time for one, else of the first: a run after one of
    another kind finds other things in the processor's caches, and takes up to a quarter longer."""
    first = once(run)
    return once(run) if time.perf_counter() + first < end else first


def once(run: Callable[[], object]) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@contextmanager
def filled_cache(model: LlamaKVForCausalLM, context: int, room: int) -> Iterator[KVCache]:
    """A cache with so many committed tokens of a model, and slots for a tree of `room` nodes."""
    with model.cache(context + node_bucket(room)) as cache:
        fill(cache, context)
        yield cache


def fill(cache: KVCache, context: int) -> None:
    """Commit so many slots to a cache as they are: a step takes as long whatever they hold."""
    cache.reset()
    cache.keep(range(context))


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
    variants: Mapping[Key, Callable[[], object]], rounds: int, pause: float = 0.0
) -> dict[Key, list[float]]:
    """Seconds of each variant, `rounds` of them; all take turns, after a pause of some seconds."""
    seconds: dict[Key, list[float]] = {key: [] for key in variants}
    for _ in range(rounds):
        for key, variant in variants.items():
            time.sleep(pause)
            seconds[key].append(timed(variant, math.inf))
    return seconds


@dataclass(frozen=True)
class MeasuredModel:
    """A loaded model as drafters see it (sizing.step_cost.Measurable); equal for one model."""

    model: LlamaKVForCausalLM

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.vocab_size)

    def step_cost(self, top_k: int, node_top_k: int = 0) -> LiveCost:
        return live_cost(self.model, top_k, node_top_k)
