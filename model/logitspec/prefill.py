"""Prefill: the prompt through the model into an empty KV cache, before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from .acceptance import Verdict, accept
from .devices import sent
from .draft_tree import DraftTree
from .kv_cache import KVCache
from .modeling_llama_kv import LlamaKVForCausalLM
from .sampling import Chooser, greedy

LOGITS_ROWS = 256  # prompt tokens whose logits are computed at a time, where all are wanted


@torch.inference_mode()
def prefill(
    model: LlamaKVForCausalLM,
    prompt_ids: Sequence[int],
    cache: KVCache,
    top_k: int,
    prompt_top_k: int = 0,
    chooser: Chooser | None = None,
) -> Verdict:
    """Run the prompt through the model into the cache; its last logits choose the first root.

    Args:
        model: the target.
        prompt_ids: n token ids, at least one.
        cache: empty; all n are committed to it.
        top_k: best token ids to report of the last logits.
        prompt_top_k: the same after each prompt token, as the verdict's node_top_ids.
        chooser: of the target's tokens, after all of the prompt but its last token; None: greedy.
    """
    x = read_in(model, prompt_ids, cache)
    cache.keep(range(len(prompt_ids)))
    logits = model.logits(x[-1:])
    last = DraftTree(prompt_ids[-1], 1)
    chooser = chooser or greedy()
    verdict = accept(logits, last, chooser, top_k)
    chooser.commit(last.tokens)
    if prompt_top_k:
        width = min(prompt_top_k, logits.shape[1])
        best = [model.logits(some).topk(width).indices for some in torch.split(x, LOGITS_ROWS)]
        verdict = replace(verdict, node_top_ids=torch.cat(best).tolist())
    return verdict


@torch.inference_mode()
def last_logits(model: LlamaKVForCausalLM, ids: Sequence[int]) -> torch.Tensor:
    """The target's logits after a sequence, [vocab], in one forward over all of it."""
    with model.cache(len(ids)) as cache:
        logits: torch.Tensor = model.logits(read_in(model, ids, cache)[-1:])
    return logits[0]


def read_in(model: LlamaKVForCausalLM, ids: Sequence[int], cache: KVCache) -> torch.Tensor:
    """Hidden states [n, hidden] of a sequence in an empty cache; commits nothing."""
    tokens = sent(ids, model.device)
    positions = torch.arange(len(ids), device=model.device)
    x: torch.Tensor = model.hidden_states(tokens, positions, cache, last_position=len(ids) - 1)
    return x
