"""Checkpoints in half precision whose matrices stay so while everything else is float32.

A number of bfloat16 or float16 is one of float32, so the tokens are those of the float32 model.
loading.py asks which checkpoints these are, and has them widened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .modeling_llama_kv import LlamaKVForCausalLM

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}  # by safetensors' names
RECOMPUTED = "rotary_emb.inv_freq"  # what old checkpoints hold in float32
QUIETLY: dict[str, Any] = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_gated_repo": False,
    "_raise_exceptions_for_connection_errors": False,
}


def half_of(path: str) -> torch.dtype | None:
    """The half precision that all of a checkpoint's tensors are in, by its safetensors' headers.

    None where they are in another dtype or in several, or where none can be read.
    """
    try:
        found = set(dtypes(path))
    except Exception:  # no such file, or a broken one: loading says what is wrong
        return None
    return DTYPES.get(found.pop()) if len(found) == 1 else None


def dtypes(path: str) -> Iterator[str]:
    """The dtype of every tensor of a checkpoint, of all of its files."""
    whole = cached_file(path, SAFE_WEIGHTS_NAME, **QUIETLY)
    files = [whole]
    if whole is None:
        index = Path(cached_file(path, SAFE_WEIGHTS_INDEX_NAME))
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [cached_file(path, name) for name in names]
    for file in files:
        with safe_open(file, "pt") as tensors:
            for key in list(tensors.keys()):
                if not key.endswith(RECOMPUTED):
                    yield tensors.get_slice(key).get_dtype()


def widen_all_but_matrices(model: LlamaKVForCausalLM) -> None:
    """Have a model in half precision compute in float32 from its matrices as they are."""
    model.stored = str(model.dtype).removeprefix("torch.")
    model.compute_dtype = torch.float32
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases
            parameter.data = parameter.data.float()
