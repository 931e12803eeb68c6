"""The target's best tokens after each token of its vocabulary alone, for the method calibrated.

Found once per model, a few hundred tokens a forward, and stored in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import torch

from .modeling_llama_kv import LlamaKVForCausalLM
from .prefill import prefill
from .storage import remembered

log = logging.getLogger(__name__)
BATCH = 256  # tokens of one forward
REPORT_EVERY = 16  # forwards
WIDTH = 16  # best tokens that are stored, for drafters that take fewer


def successors(model: LlamaKVForCausalLM, count: int, width: int) -> list[list[int]]:
    """The best token ids after each of the first `count` tokens out of context.

    Tokenizers give frequent tokens low ids, so the first ones are those that matter.

    Args:
        count: how many tokens; no more than the vocabulary has.
        width: how many best ids of each, best first.
    """
    count = min(count, model.config.vocab_size)
    width = min(width, model.config.vocab_size)
    stored = max(width, min(WIDTH, model.config.vocab_size))
    key = {"model": identity(model), "dtype": str(model.dtype), "count": count, "width": stored}
    rows = remembered("successors", key, lambda: find(model, count, stored))
    return [row[:width] for row in rows]


@torch.inference_mode()
def find(model: LlamaKVForCausalLM, count: int, width: int) -> list[list[int]]:
    """The same, from the model."""
    start = getattr(model.config, "bos_token_id", None)
    with model.cache(1 + BATCH) as cache:
        prefill(model, [start if isinstance(start, int) else 0], cache, top_k=0)
        rows: list[list[int]] = []
        batches = torch.split(torch.arange(count, device=model.device), BATCH)
        for done, tokens in enumerate(batches):
            if done % REPORT_EVERY == 0:
                log.info(
                    "finding the successors of %d tokens, once for this model: %d%%",
                    count, 100 * done // len(batches),
                )  # fmt: skip
            n = len(tokens)
            alone = torch.eye(n, dtype=torch.bool, device=model.device)  # none sees another
            x = model.hidden_states(
                tokens, torch.ones_like(tokens), cache, last_position=1, tree_mask=alone
            )
            rows += model.logits(x).topk(width).indices.tolist()
    return rows


def identity(model: LlamaKVForCausalLM) -> str:
    """Tells models apart: by the config, and by a sample of weights, which fine-tunes change."""
    known = model.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "dtype"):
        known.pop(name, None)
    digest = hashlib.sha256(repr(sorted(known.items())).encode())
    for weight in (model.model.embed_tokens.weight, model.layers[-1].input_layernorm.weight):
        some = weight.flatten()[:: max(1, weight.numel() // 4096)].float()
        digest.update(np.array(some.tolist(), dtype=np.float32).tobytes())
    return digest.hexdigest()
