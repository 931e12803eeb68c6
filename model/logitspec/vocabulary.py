"""The target's best tokens after each token of its vocabulary, when nothing else is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .cuda_graphs import node_bucket
from .draft_tree import DraftTree
from .listed import ScoredRow, scored_row
from .modeling_llama_kv import LlamaKVForCausalLM
from .prefill import read_in
from .sampling import Sampling
from .verification import find_verifier


@torch.inference_mode()
def rows_after(
    model: LlamaKVForCausalLM, before: Sequence[int], tokens: Sequence[int], best: int,
    sampling: Sampling | None = None, nodes: int = 128,
) -> Iterator[tuple[int, ScoredRow]]:  # fmt: skip
    """Each token, and the best token ids after it where it follows others, best first.

    All of a forward are children of one root, the last of the tokens before them.

    Args:
        model: the target.
        before: one token or more that they follow.
        tokens: of which the rows are asked for.
        best: tokens of a row.
        sampling: how samples will be drawn; then rows hold the log-probabilities, too, -inf of
            tokens that are filtered out. None, or greedy: they hold none.
        nodes: of a forward.
    """
    chooser = (sampling or Sampling()).chooser(before[:-1])
    with model.cache(len(before) + node_bucket(nodes)) as cache:
        if len(before) > 1:
            read_in(model, before[:-1], cache)
            cache.keep(range(len(before) - 1))
        step = find_verifier(model, cache, 0, best, chooser)
        step.wants_best, step.wants_logprobs = True, chooser.foresight is not None
        for first in range(0, len(tokens), nodes - 1):
            part = tokens[first : first + nodes - 1]
            step.build(DraftTree.of([before[-1], *part], [0] * (1 + len(part)), nodes))
            step.forward()
            found = step.accept()
            for node, token in enumerate(part, start=1):
                row = found.node_top_ids[node]
                logs = found.node_top_logprobs[node] if step.wants_logprobs else []
                yield token, scored_row(row, logs)
