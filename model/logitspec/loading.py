"""Loading a checkpoint, local or from the hub, as the patched model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from .errors import InputError, brief
from .kernels import Kernels, choose_kernels
from .modeling_llama_kv import ARCHITECTURES, LlamaKVForCausalLM
from .verification import use_graphs

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}

HARMLESS_TENSORS = ("rotary_emb.inv_freq", "lm_head.weight")  # recomputed; tied where unexpected
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


def load_config(path: str) -> Any:
    """The configuration of a checkpoint that the patched model can run.

    Raises:
        InputError: there is no such checkpoint, or it is none of ARCHITECTURES and ROPE_TYPES.
    """
    local = Path(path)
    names_a_path = path.startswith((".", "/", "~")) or path.count("/") != 1 or local.parent.is_dir()
    if names_a_path and not (path and local.is_dir()):
        raise InputError(f"no model directory {path!r}; give a checkpoint directory or a hub id")
    if local.is_dir() and not (local / "config.json").is_file():
        raise InputError(f"{path} holds no config.json; give a checkpoint directory or a hub id")
    try:
        config = AutoConfig.from_pretrained(path)
    except Exception as error:  # whatever a broken file makes of it
        raise InputError(f"cannot read the config of the model {path}: {brief(error)}") from error
    if config.model_type not in ARCHITECTURES:
        raise InputError(
            f"the model {path} is of the architecture {config.model_type!r}; "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        raise InputError(
            f"the model {path} has rope_type {rope!r}; supported are {', '.join(ROPE_TYPES)}"
        )
    return config


def load_weights(cls: Any, path: str, **options: Any) -> Any:
    """cls.from_pretrained, which fills missing tensors with random numbers, without that.

    Raises:
        InputError: the weights cannot be read, do not fill the model, or do not fit it.
    """
    try:
        model, info = cls.from_pretrained(path, output_loading_info=True, **options)
    except Exception as error:  # whatever a broken file, or too small a device, makes of it
        raise InputError(f"cannot load the weights of {path}: {brief(error)}") from error
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if wrong:
        raise InputError(
            f"the weights of {path} lack {len(wrong)} tensor(s), the first is {wrong[0]}"
        )
    # A tensor without a place is harmless in transformers' own classes, which know what they drop.
    spare = [key for key in info["unexpected_keys"] if not key.endswith(HARMLESS_TENSORS)]
    if spare and cls is LlamaKVForCausalLM:
        raise InputError(
            f"{path} holds {len(spare)} tensor(s) that the patched model has no place for, "
            f"the first is {min(spare)}"
        )
    return model


def load(
    path: str,
    *,
    dtype: torch.dtype,
    device_map: str | dict[str, Any] = "cpu",
    cpu_kernels: str = "auto",
    cuda_graphs: str = "auto",
    keep_weights: bool = False,
    **options: Any,
) -> LlamaKVForCausalLM:
    """Load a checkpoint of the Llama family for draft-tree decoding.

    Args:
        path: a local directory or a hub id.
        dtype: of weights, activations and cache.
        device_map: a device, or anything transformers' from_pretrained takes ("auto" spreads the
            layers over all devices; each layer's cache lies where the layer runs).
        cpu_kernels: what a model on the CPU runs on, see kernels.py.
        cuda_graphs: whether steps are captured, see verification.use_graphs.
        keep_weights: hold the weights as they are in the checkpoint, too, where the CPU kernels
            want them laid out otherwise; at twice the memory.
        options: passed on to from_pretrained (max_memory, offload_folder, …).

    Raises:
        InputError: no such checkpoint, not of an architecture covered, or without all weights; or
            kernels that do not run here.
    """
    config = load_config(path)
    place = str(device_map.get("") if isinstance(device_map, dict) else device_map)
    kernels = choose_kernels(config, dtype, place, cpu_kernels)
    model: LlamaKVForCausalLM = load_weights(
        LlamaKVForCausalLM, path, config=config, dtype=dtype, device_map=device_map, **options
    )
    model.eval()
    model.requires_grad_(False)
    model.fuse()
    if kernels.name != "plain" and not model.fused:
        why = f"not all matrices of {path} are plain linears"
        if cpu_kernels != "auto":
            raise InputError(f"the {kernels.name} CPU kernels do not run here: {why}; give plain")
        kernels = Kernels("plain", {**kernels.passed_over, kernels.name: why})
    model.use(kernels, keep_weights=keep_weights)
    use_graphs(model, cuda_graphs)
    return model
