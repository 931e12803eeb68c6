"""The target's best tokens after each token of its vocabulary, when little else is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import torch

from .devices import sent
from .kv_cache import KVCache
from .listed import ScoredRow, scored_row
from .modeling_llama_kv import LlamaKVForCausalLM
from .prefill import read_in
from .sampling import Sampling


@torch.inference_mode()
def rows_after(
    model: LlamaKVForCausalLM, contexts: Sequence[Sequence[int]], tokens: Sequence[int], best: int,
    sampling: Sampling | None = None, nodes: int = 128,
) -> Iterator[tuple[int, ScoredRow]]:  # fmt: skip
    """Each token, and the best token ids after it, best first, by its mean logits in some contexts.

    The softmax of mean logits is the geometric mean of the softmaxes, but for a factor: what is
    likely after a token whatever comes before it.

    Args:
        model: the target.
        contexts: token ids that each token is read behind, one or more of each.
        tokens: of which the rows are asked for.
        best: tokens of a row.
        sampling: how samples will be drawn; then rows hold the log-probabilities, too, -inf of
            tokens that are filtered out. None, or greedy: they hold none.
        nodes: tokens of a forward.
    """
    foresight = (sampling or Sampling()).chooser([]).foresight
    with ExitStack() as lent:
        caches = [lent.enter_context(model.cache(len(ids) + nodes)) for ids in contexts]
        for ids, cache in zip(contexts, caches, strict=True):
            read_in(model, ids, cache)
            cache.keep(range(len(ids)))
        for first in range(0, len(tokens), nodes):
            part = tokens[first : first + nodes]
            after = (logits_after(model, cache, part) for cache in caches)
            logits = sum(after, start=torch.zeros(())) / len(caches)
            found = logits.topk(min(best, logits.shape[1]))
            logs: list[list[float]] = [[]] * len(part)
            if foresight is not None:
                logs = foresight.log_probabilities(found.values, logits).tolist()
            for token, row, own in zip(part, found.indices.tolist(), logs, strict=True):
                yield token, scored_row(row, own)


def logits_after(model: LlamaKVForCausalLM, cache: KVCache, tokens: Sequence[int]) -> torch.Tensor:
    """The logits after each of some tokens where it alone follows the committed ones: [n, vocab],
    float32."""
    n, device = len(tokens), model.device
    positions = torch.full((n,), cache.length, device=device)
    alone = torch.eye(n, dtype=torch.bool, device=device)
    ids = sent(tokens, device)
    logits: torch.Tensor = model(ids, positions, cache, last_position=cache.length, tree_mask=alone)
    return logits.float()
