"""Prefill: the prompt through the model into a KV cache, before the first step."""

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

PIECE = 512  # prompt tokens that are read at a time behind others
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

    Tokens of the prompt that the cache has committed are not read again.

    Args:
        model: the target.
        prompt_ids: n token ids, at least one.
        cache: empty, or holds fewer than n of these tokens (CachePool.lend); all are committed.
        top_k: best token ids to report of the last logits.
        prompt_top_k: the same after each prompt token, as the verdict's node_top_ids.
        chooser: of the target's tokens, after all of the prompt but its last token; None: greedy.
    """
    held = cache.length
    # Behind other tokens a sequence has a mask of all pairs: in pieces it stays small.
    size = PIECE if held else len(prompt_ids)
    pieces = []
    for first in range(held, len(prompt_ids), size):
        pieces.append(read_in(model, prompt_ids[first : first + size], cache))
        cache.keep(range(len(pieces[-1])))
    x = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    logits = model.logits(x[-1:])
    last = DraftTree(prompt_ids[-1], 1)
    chooser = chooser or greedy()
    verdict = accept(logits, last, chooser, top_k)
    chooser.commit(last.tokens)
    if prompt_top_k:
        width = min(prompt_top_k, logits.shape[1])
        best = [model.logits(some).topk(width).indices for some in torch.split(x, LOGITS_ROWS)]
        cache.best[held:] = torch.cat(best).tolist()
        verdict = replace(verdict, node_top_ids=[*cache.best])
    return verdict


@torch.inference_mode()
def last_logits(model: LlamaKVForCausalLM, ids: Sequence[int]) -> torch.Tensor:
    """The target's logits after a sequence, [vocab], in one forward over all of it."""
    with model.cache(len(ids)) as cache:
        logits: torch.Tensor = model.logits(read_in(model, ids, cache)[-1:])
    return logits[0]


def read_in(model: LlamaKVForCausalLM, ids: Sequence[int], cache: KVCache) -> torch.Tensor:
    """Hidden states [n, hidden] of n tokens after those in the cache; commits nothing."""
    tokens = sent(ids, model.device)
    end = cache.length + len(ids)
    positions = torch.arange(cache.length, end, device=model.device)
    x: torch.Tensor = model.hidden_states(tokens, positions, cache, last_position=end - 1)
    return x
