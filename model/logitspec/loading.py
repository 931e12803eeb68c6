"""Loading a checkpoint, local or from the hub, as the patched model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from .errors import InputError
from .modeling_llama_kv import ARCHITECTURES, LlamaKVForCausalLM

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def load_config(path: str) -> Any:
    """The configuration of a checkpoint that the patched model can run.

    Raises:
        InputError: there is no such checkpoint, or its architecture is not in ARCHITECTURES.
    """
    local = Path(path)
    names_a_path = path.startswith((".", "/", "~")) or path.count("/") != 1 or local.parent.is_dir()
    if names_a_path and not (path and local.is_dir()):
        raise InputError(f"no model directory {path!r}; give a checkpoint directory or a hub id")
    if local.is_dir() and not (local / "config.json").is_file():
        raise InputError(f"{path} holds no config.json; give a checkpoint directory or a hub id")
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"the model {path} is neither a local directory nor a readable hub id: {reason}"
        ) from error
    if config.model_type not in ARCHITECTURES:
        raise InputError(
            f"the model {path} is of the architecture {config.model_type!r}; "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    return config


def load(
    path: str,
    *,
    dtype: torch.dtype,
    device_map: str | dict[str, Any] = "cpu",
    **options: Any,
) -> LlamaKVForCausalLM:
    """Load a checkpoint of the Llama family for draft-tree decoding.

    Args:
        path: a local directory or a hub id.
        dtype: of weights, activations and cache.
        device_map: a device, or anything transformers' from_pretrained takes ("auto" spreads the
            layers over all devices; each layer's cache lies where the layer runs).
        options: passed on to from_pretrained (max_memory, offload_folder, …).

    Raises:
        InputError: no such checkpoint, or not of an architecture that the patched model covers.
    """
    config = load_config(path)
    try:
        model: LlamaKVForCausalLM = LlamaKVForCausalLM.from_pretrained(
            path, config=config, dtype=dtype, device_map=device_map, **options
        )
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"no weights can be loaded from {path}: {reason}") from error
    model.eval()
    model.requires_grad_(False)
    model.fuse()
    return model
