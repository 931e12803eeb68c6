"""wrap(): a model of transformers as this package runs it, over the same weights.

What would not run here, as hooks and replaced layers, is refused by name.
"""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from .errors import InputError
from .kernels import choose_kernels
from .loading import check_config, eos_of, finish
from .modeling_llama_kv import LlamaKVForCausalLM

Signature = tuple[object, ...]
wrapped: WeakKeyDictionary[nn.Module, tuple[LlamaKVForCausalLM, Signature]] = WeakKeyDictionary()
PREPARES = "prepare_inputs_for_generation"  # a method that prompt tuning replaces
WRAPPING = threading.RLock()  # of `wrapped`, and of weights that are being fused


def wrap(model: Any, *, cpu_kernels: str = "auto", cuda_graphs: str = "auto") -> LlamaKVForCausalLM:
    """A transformers model as this package runs it, over the same weights; remembered with it.

    On a CPU the native and packed kernels hold a second copy of the weights, laid out for them;
    with `plain` there is none. When the weights have changed or moved, wrap() makes a new one: do
    not go on with the old.

    Args:
        model: a causal language model of transformers, of an architecture covered. Of a PeftModel
            its base model, whose layers hold the adapters; of a compiled model the original.
        cpu_kernels: as load(), and cuda_graphs. They count in the first call for a model.

    Raises:
        InputError: it is none that is covered, it has forward hooks, replaced layers or an adapter
            outside of its layers, or the kernels do not run here.
    """
    if isinstance(model, LlamaKVForCausalLM):
        return model
    model = innermost(model)
    check_layers_run(model)
    with WRAPPING:
        known = wrapped.get(model)
        if known is None or known[1] != signature(model):
            ours = twin(model, cpu_kernels, cuda_graphs)
            known = wrapped[model] = ours, signature(model)
    return known[0]


def innermost(model: Any) -> Any:
    """The model of transformers in what was given.

    Raises:
        InputError: there is none.
    """
    name = type(model).__name__
    if isinstance(model, str | Path):
        raise InputError(f"the model is a path, {str(model)!r}; logitspec.load() loads it")
    if not isinstance(model, nn.Module):
        raise InputError(
            f"the model is {'None' if model is None else f'a {name}'}; give one that "
            "logitspec.load() returns, or a causal language model of transformers"
        )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise InputError(f"the model is a {name} over several copies; give its .module")
    if hasattr(model, "_orig_mod"):  # what torch.compile() makes of a module
        return innermost(model._orig_mod)
    if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
        return innermost(base_of_peft(model))
    return model


def base_of_peft(model: Any) -> Any:
    """The base model of a PeftModel, where all of the adapter is in its layers or switched off.

    Raises:
        InputError: some of it is not.
    """
    config = model.active_peft_config
    outside = (
        config.is_prompt_learning
        or getattr(config, "alora_invocation_tokens", None)
        or str(config.peft_type).endswith("XLORA")
    )
    if outside and not model._adapters_disabled:
        kind = str(config.peft_type).rpartition(".")[2]
        raise InputError(
            f"the adapter of this {type(model).__name__} ({kind}) is not in the layers of its base "
            "model alone, and does not run here; disable it, or generate without this package"
        )
    return model.get_base_model()


def signature(model: nn.Module) -> Signature:
    """What changes when weights are replaced, moved or written to, be it through `.data`, where
    nothing but the values tells, or when adapters are switched.

    The values come to the host in one piece per device.
    """
    known: list[object] = []
    samples: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        version = None if tensor.is_inference() else tensor._version
        known.append((tensor.data_ptr(), version, tensor.dtype, tensor.device))
        few = tensor.detach().flatten()[:: max(1, tensor.numel() // 2)]
        samples.setdefault(tensor.device, []).append(few.double())
    for device, several in samples.items():
        if device.type != "meta":
            # as bits, for a number that is none is not equal to itself
            known.append(tuple(torch.cat(several).view(torch.int64).tolist()))
    for module in model.modules():
        adapters = getattr(module, "active_adapters", None)  # a list in PEFT's layers
        if isinstance(adapters, list):
            switches = (getattr(module, name, None) for name in ("disable_adapters", "merged"))
            known.append((*switches, *adapters))
    return tuple(known)


def check_layers_run(model: nn.Module) -> None:
    """Raise InputError for hooks on a model's parts, and for replaced forwards: what runs is this
    package's own layers."""
    for name, module in model.named_modules():
        called = name or type(model).__name__
        if module._forward_hooks or module._forward_pre_hooks:
            raise InputError(
                f"{called} has forward hooks, which do not run here; remove them, or generate "
                "without this package"
            )
        if not all(is_own(module, method) for method in ("forward", PREPARES)):
            raise InputError(
                f"{called} has a forward that was replaced, which does not run here; undo that, or "
                "generate without this package"
            )


def is_own(module: nn.Module, method: str) -> bool:
    """Whether a module's method is its class's, be it compiled or moved about by accelerate."""
    found = vars(module).get(method)
    if found is None:
        return True
    if getattr(getattr(found, "func", None), "__module__", None) == "accelerate.hooks":
        found = vars(module)["_old_forward"]
    found = getattr(found, "_torchdynamo_orig_callable", found)
    usual = getattr(type(module), method, None)
    return getattr(found, "__func__", None) is usual and found.__self__ is module


def check_layers(model: Any, config: Any) -> None:
    """Raise InputError unless a model is transformers' own class of its config, made of the layers
    that this class has. Linears and embeddings may be others, for they are called."""
    name = type(model).__name__
    wanted = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not isinstance(model, wanted) or type(model).forward is not wanted.forward:
        raise InputError(f"{name} is no {wanted.__name__} of transformers; give one of these")
    with torch.device("meta"):
        usual = wanted(config)
    for path, module in usual.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            continue
        found = model.get_submodule(path) if has_submodule(model, path) else None
        if type(found) is not type(module) and path:
            raise InputError(
                f"{path} of the {name} is a {type(found).__name__} in the place of a "
                f"{type(module).__name__}, and would not run here; generate without this package"
            )


def has_submodule(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def twin(model: Any, cpu_kernels: str, cuda_graphs: str) -> LlamaKVForCausalLM:
    """Our model over the modules of one of transformers.

    Raises:
        InputError: as wrap().
    """
    name = type(model).__name__
    if not hasattr(model, "config"):
        raise InputError(f"{name} is no model of transformers: it has no config")
    config = copy.deepcopy(check_config(model.config, name))
    check_layers(model, config)
    config._attn_implementation = "eager"  # ours attends by itself
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InputError(
            f"the {name} has weights that are offloaded to the CPU or a disk; load it where it fits"
        )
    with torch.device("meta"):
        ours = LlamaKVForCausalLM(config)
    for path, module in list(ours.named_modules()):
        if isinstance(module, nn.Linear | nn.Embedding):
            parent, _, leaf = path.rpartition(".")
            setattr(ours.get_submodule(parent), leaf, model.get_submodule(path))
        elif "weight" in module._parameters:  # a norm
            module.weight = model.get_submodule(path).weight
    ours.rotary = copy.deepcopy(model.model.rotary_emb)  # cast with the model, it turns otherwise
    ours.eos_token_ids = eos_of(getattr(model, "generation_config", None), config)
    kernels = choose_kernels(config, ours.dtype, str(ours.device), cpu_kernels)
    return finish(ours, kernels, cpu_kernels, cuda_graphs, keep_weights=True)
