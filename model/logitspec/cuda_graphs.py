"""A verification step as a captured CUDA graph: shapes that repeat, buffers that stay in place.

verification.py asks for it where a model's steps are captured; `use_graphs` decides whether they
are. On a CPU the same code runs without a graph, for tests.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from .acceptance import TreeTensors, Verdict, accept, find_answer, read_answer
from .draft_tree import DraftTree
from .errors import InputError, brief
from .kv_cache import KVCache, SlotWindow
from .modeling_llama_kv import LlamaKVForCausalLM, execution_device, rotation
from .sampling import Chooser, greedy

TREE_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)  # of the graphs; then multiples of 64
LEAST_SEEN = 256  # shortest context of the graphs
# Steps that a larger graph serves before one of their size is captured. On an H200 capturing takes
# as long as 13 to 35 steps, and 128 nodes 1.2 to 1.7 times one (docs/performance-gpu.md).
PATIENCE = 64
CAPTURE = threading.Lock()  # torch captures one graph at a time


class GraphVerifier:
    """Trees padded to a bucket of nodes, the cache seen to a bucket of slots: shapes that repeat.

    A padded node wants the token -1, which nothing agrees with, sees itself and what is
    committed, and writes behind the tree. Graphs share memory. Where none is large enough, one for
    trees of `largest` nodes and the next power of two of slots is captured; one of the very size
    when it was asked for PATIENCE times.

    If the chooser is not greedy, the graph ends at the logits.

    Attributes:
        largest: most nodes of the trees to come; 0: each tree gets a graph of its own bucket.
    """

    largest = 0

    head_seconds = 0.0

    def __init__(
        self,
        model: LlamaKVForCausalLM,
        cache: KVCache,
        top_k: int,
        node_top_k: int,
        chooser: Chooser,
    ) -> None:
        self.chooser = chooser  # of the generation; either greedy in all of them, or in none
        self._model = model
        self._cache = cache
        vocab = model.config.vocab_size
        self._widths = (min(top_k, vocab), min(node_top_k, vocab))
        self._captured: tuple[Any, Any] | None = None  # memory and stream that the graphs share
        if model.device.type == "cuda":
            with torch.cuda.device(model.device):
                stream = torch.cuda.Stream(model.device)  # type: ignore[no-untyped-call]
                self._captured = torch.cuda.graph_pool_handle(), stream
        self._steps: dict[tuple[int, int], StaticStep] = {}  # by nodes and slots
        self._asked: Counter[tuple[int, int]] = Counter()  # sizes for which a larger one served
        self._logits: dict[int, torch.Tensor] = {}  # [nodes, vocab] by nodes, for all contexts

    wants_best = True  # whatever is said
    wants_logprobs = False

    def build(self, tree: DraftTree) -> None:
        size = self._size(node_bucket(len(tree)))
        self._cache.require(size[0])
        self._model.require_position(self._cache.length + max(tree.depths))
        self._tree = tree
        with on_device(self._model.device):
            step = self._steps.get(size)
            if step is None:
                out = None if self.chooser.greedy else self._logits_of(size[0])
                step = StaticStep(self._model, self._cache, *size, self._widths, out)
                step.load(tree, self._cache.length)  # capturing runs what is loaded
                if self._captured is not None:
                    step.capture(*self._captured)
                self._steps[size] = step
            else:
                step.load(tree, self._cache.length)
        self._step = step

    def _size(self, nodes: int) -> tuple[int, int]:
        """Nodes and slots of the step for a bucket of nodes: of one that is there, or a new one."""
        wanted = nodes, self._slots(nodes)
        if not self.largest or wanted in self._steps:
            return wanted
        most = max(nodes, node_bucket(self.largest))  # another drafter's may be larger
        larger = [s for s in self._steps if nodes <= s[0] <= most and s[1] >= self._slots(s[0])]
        if not larger:
            return most, self._slots(most, power_of_two)
        self._asked[wanted] += 1
        return min(larger) if self._asked[wanted] <= PATIENCE else wanted

    def _slots(self, nodes: int, bucket: Callable[[int], int] | None = None) -> int:
        """Slots that a step over so many nodes sees."""
        seen = (bucket or slot_bucket)(self._cache.length + nodes)
        return min(seen, self._cache.capacity)

    def _logits_of(self, nodes: int) -> torch.Tensor:
        if nodes not in self._logits:
            shape = nodes, self._model.config.vocab_size
            device = execution_device(self._model.lm_head)
            with torch.inference_mode(False):
                self._logits[nodes] = torch.zeros(shape, dtype=self._model.dtype, device=device)
        return self._logits[nodes]

    @property
    def nodes(self) -> int:
        return self._step.nodes

    def forward(self) -> None:
        with on_device(self._model.device):
            self._step.run()

    def accept(self) -> Verdict:
        with on_device(self._model.device):
            if not self.chooser.greedy:
                logits = self._step.logits[: len(self._tree)]
                return accept(
                    logits, self._tree, self.chooser, *self._widths, logprobs=self.wants_logprobs
                )
            answer = self._step.answer()
        return read_answer(answer, self._step.nodes, len(self._tree), *self._widths)


class StaticStep:
    """One step at fixed shapes and addresses: from a buffer of inputs to a buffer of answers.

    Args:
        nodes: tree nodes, padding included.
        seen: slots of the cache that attention reads, committed or not.
        widths: of find_answer.
        out: [nodes, vocab]; the step writes its logits there and ends. None: it finds an answer.
    """

    def __init__(
        self,
        model: LlamaKVForCausalLM,
        cache: KVCache,
        nodes: int,
        seen: int,
        widths: tuple[int, int],
        out: torch.Tensor | None = None,
    ) -> None:
        device = model.device
        self.nodes = nodes
        self._model = model
        self._window = SlotWindow(cache, seen)
        self._seen = seen
        self._widths = widths
        self._out = out
        self._rope = model.rope(cache.capacity, device)  # a graph reads it where it is now
        self._graph: Any = None
        self._answer = self._answer_on_host = torch.empty(0)
        with torch.inference_mode(False):  # written inside and outside of inference mode
            # rows: tokens, wanted, parents, depths, [length, 0, …], then each node's ancestors
            self._staged = torch.zeros(
                nodes + 5, nodes, dtype=torch.int64, pin_memory=device.type == "cuda"
            )
            self._inputs = torch.zeros_like(self._staged, device=device, pin_memory=False)

    def load(self, tree: DraftTree, length: int) -> None:
        n = len(tree)
        rows = self._staged.numpy()
        rows[:] = 0
        rows[1] = -1
        rows[:4, :n] = tree.tokens, tree.wanted, tree.parents, tree.depths
        rows[4, 0] = length
        np.fill_diagonal(rows[5:], 1)
        rows[5 : 5 + n, :n] = tree.ancestor_mask()
        self._inputs.copy_(self._staged, non_blocking=True)

    @torch.inference_mode()
    def _compute(self) -> torch.Tensor:
        model, nodes = self._model, self.nodes
        tokens, wanted, parents, depths, header = self._inputs[:5]
        length = header[:1]
        ancestors = self._inputs[5:].bool()
        rows = torch.arange(nodes, device=tokens.device)
        self._window.slots = length + rows
        # Column j is the slot of new node j - length; those before it are committed.
        node = torch.arange(self._seen, device=tokens.device) - length
        tree = ancestors[:, node.clamp(0, nodes - 1)]
        visible = (node < 0) | ((node < nodes) & tree)
        x = model.embed(tokens)
        turns = rotation(self._rope, depths + length)
        x = model.run_layers(x, turns, model.additive_mask(visible, 0), self._window)
        logits = model.logits(x)
        if self._out is not None:
            return self._out.copy_(logits)
        nodes_of = TreeTensors(tokens, wanted, parents, depths, ancestors)
        return find_answer(logits, nodes_of, *self._widths, logits.max(dim=-1).indices)

    @torch.inference_mode(False)
    def capture(self, pool: Any, stream: Any) -> None:
        """Record the step as a CUDA graph, after the runs on a side stream that torch asks for.

        Raises:
            InputError: it cannot be captured.
        """
        try:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._compute()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads may allocate and copy meanwhile.
            capturing = torch.cuda.graph(
                graph, pool=pool, stream=stream, capture_error_mode="thread_local"
            )
            with CAPTURE, capturing:
                self._answer = self._compute()
            untouched = torch.full_like(self._answer, -1 if self._out is None else torch.nan)
            with torch.inference_mode():
                self._answer.copy_(untouched)
            graph.replay()
            if torch.allclose(self._answer, untouched, equal_nan=True):
                raise RuntimeError("the captured graph does nothing")
        except RuntimeError as error:
            raise InputError(
                f"a step of {self.nodes} nodes cannot be captured as a CUDA graph "
                f"({brief(error)}); turn CUDA graphs off"
            ) from error
        if self._out is None:
            self._answer_on_host = torch.empty(
                self._answer.shape, dtype=self._answer.dtype, pin_memory=True
            )
        self._graph = graph

    def run(self) -> None:
        if self._graph is None:
            self._answer = self._answer_on_host = self._compute()
            return
        self._graph.replay()
        if self._out is None:
            self._answer_on_host.copy_(self._answer, non_blocking=True)

    @property
    def logits(self) -> torch.Tensor:
        """[nodes, vocab] of the last run, on the device; where a step ends there."""
        return self._answer

    def answer(self) -> list[int]:
        if self._graph is not None:
            torch.cuda.current_stream().synchronize()
        answer: list[int] = self._answer_on_host.tolist()
        return answer


def use_graphs(model: LlamaKVForCausalLM, wanted: str = "auto") -> None:
    """Have a model's steps captured as CUDA graphs from now on, where one can be.

    Args:
        model: the target, loaded.
        wanted: on, off, or auto: on a single GPU, with a warning if a trial fails.

    Raises:
        InputError: `on` where there are none, or another word.
    """
    if wanted not in ("auto", "on", "off"):
        raise InputError(f"CUDA graphs {wanted!r} are not known; give auto, on or off")
    devices = {str(device) for device in model.layer_devices}
    hooked = any(hasattr(layer, "_hf_hook") for layer in model.layers)
    spread = hooked or model.device.type != "cuda" or len(devices) > 1
    if wanted == "off" or (wanted == "auto" and spread):
        return
    if spread:
        raise InputError(
            f"CUDA graphs need the whole model on one GPU, it is on {', '.join(sorted(devices))}; "
            "give auto or off"
        )
    model.graphs = True
    with model.cache(1 + node_bucket(1)) as cache:
        try:
            trial = GraphVerifier(model, cache, 1, 0, greedy())
            trial.build(DraftTree(0, 1))
            trial.forward()
            trial.accept()
        except InputError as error:
            model.graphs = False
            if wanted == "on":
                raise
            warnings.warn(f"running without CUDA graphs: {error}", stacklevel=2)


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Streams and graphs are those of the current device, which this makes it."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def node_bucket(nodes: int) -> int:
    """The tree size that a tree is padded to."""
    return next((size for size in TREE_SIZES if size >= nodes), -(-nodes // 64) * 64)


def slot_bucket(slots: int) -> int:
    """The context length that one is padded to: a power of two, or one and a half of it."""
    size = LEAST_SEEN
    while size < slots:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def power_of_two(slots: int) -> int:
    """The next power of two, from LEAST_SEEN on."""
    return max(LEAST_SEEN, 1 << (slots - 1).bit_length())
