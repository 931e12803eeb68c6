"""The target's best tokens after each token of its vocabulary, when nothing else is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .cuda_graphs import node_bucket
from .draft_tree import DraftTree
from .modeling_llama_kv import LlamaKVForCausalLM
from .prefill import read_in
from .verification import verify


@torch.inference_mode()
def rows_after(
    model: LlamaKVForCausalLM, before: Sequence[int], tokens: Sequence[int], best: int,
    nodes: int = 128,
) -> Iterator[tuple[int, list[int]]]:  # fmt: skip
    """Each token, and the best token ids after it where it follows others, best first.

    All of a forward are children of one root, the last of the tokens before them.

    Args:
        model: the target.
        before: one token or more that they follow.
        tokens: of which the rows are asked for.
        best: tokens of a row.
        nodes: of a forward.
    """
    with model.cache(len(before) + node_bucket(nodes)) as cache:
        if len(before) > 1:
            read_in(model, before[:-1], cache)
            cache.keep(range(len(before) - 1))
        for first in range(0, len(tokens), nodes - 1):
            part = tokens[first : first + nodes - 1]
            tree = DraftTree.of([before[-1], *part], [0] * (1 + len(part)), nodes)
            yield from zip(part, verify(model, tree, cache, 0, best).node_top_ids[1:], strict=True)
