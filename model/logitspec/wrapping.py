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
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from .errors import InputError
from .fastest import choose_kernels
from .layout import finish
from .loading import check_config, eos_of
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
            f"the model is {'None' if model is None else f'of the type {name}'}; give one that "
            "logitspec.load() returns, or a causal language model of transformers"
        )
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        raise InputError(f"the model is a {name} over several copies; give its .module")
    if hasattr(model, "_orig_mod"):  # what torch.compile() makes of a module
        return innermost(model._orig_mod)
    if hasattr(model, "peft_config") and type(model).__module__.startswith("peft."):
        return innermost(base_of_peft(model))
    return model


def base_of_peft(model: Any) -> Any:
    """The base model of a PeftModel, where all of the adapter is in its layers or switched off.

    Raises:
        InputError: some of it is not.
    """
    if not hasattr(model, "get_base_model"):  # a PeftMixedModel, whose adapters are all in layers
        return model.base_model.model
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


def signature(model: Any) -> Signature:
    """What changes when weights are replaced, moved or written to, be it through `.data`, where
    nothing but the values tells, when a layer's numbers change, or when adapters are switched.

    The values come to the host in one piece per device.
    """
    known: list[object] = []
    samples: dict[torch.device, list[torch.Tensor]] = {}
    passing = ".inv_freq" if is_dynamic(model) else None  # of the length that ran last
    buffers = [
        buffer
        for name, buffer in model.named_buffers(remove_duplicate=False)
        if not (passing and name.endswith(passing))
    ]
    for tensor in (*model.parameters(), *buffers):
        version = None if tensor.is_inference() else tensor._version
        known.append((tensor.data_ptr(), version, tensor.dtype, tensor.device))
        few = tensor.detach().flatten()[:: max(1, tensor.numel() // 2)]
        samples.setdefault(tensor.device, []).append(few.double())
    for device, several in samples.items():
        if device.type != "meta":
            # as bits, for a number that is none is not equal to itself
            known.append(tuple(torch.cat(several).view(torch.int64).tolist()))
    for module in model.modules():
        known.append(tuple(numbers(module).values()))
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
        if not is_own(module, "forward") or not (name or is_own(module, PREPARES)):
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
    bound = getattr(found, "__self__", None) is module
    return bound and usual is not None and getattr(found, "__func__", None) is usual


def check_layers(model: Any, config: Any) -> None:
    """Raise InputError unless a model is transformers' own class of its config, made of the layers
    that this class has. Linears and embeddings may be others, for they are called."""
    name = type(model).__name__
    wanted = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[config.model_type]]
    if not isinstance(model, wanted) or type(model).forward is not wanted.forward:
        raise InputError(f"{name} is no {wanted.__name__} of transformers; give one of these")
    with torch.device("meta"):
        usual = wanted(config)
    for path, module in usual.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            continue
        found = own_layer(model, path)
        if path and type(found) is not type(module):
            raise InputError(
                f"{path} of the {name} is of the class {type(found).__name__}, not "
                f"{type(module).__name__}, and would not run here; generate without this package"
            )
        for number, value in numbers(module).items():
            if path != "model.rotary_emb" and getattr(found, number, None) != value:
                raise InputError(
                    f"{path}.{number} of the {name} is {getattr(found, number, None)}, not {value} "
                    "as its config says, and would not count here; generate without this package"
                )


def own_layer(model: nn.Module, path: str) -> nn.Module | None:
    """The module of a path, seen through an adapter of PEFT that is merged or disabled."""
    try:
        found: Any = model.get_submodule(path)
    except AttributeError:
        return None
    while True:
        if getattr(found, "disable_adapters", False) is not bool(getattr(found, "merged", False)):
            inner = getattr(found, "base_layer", getattr(found, "original_module", None))
            if isinstance(inner, nn.Module):
                found = inner
                continue
        return found  # type: ignore[no-any-return]


def numbers(module: nn.Module) -> dict[str, float]:
    """Attributes of a layer that its results depend on, as the epsilon of a norm."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, float) and "dropout" not in name
    }


def rotary_of(model: Any) -> nn.Module:
    """A copy of what turns a model's queries and keys: cast with the model, it turns otherwise than
    one of the config. One that changes with the length is as it is for lengths that we run."""
    rotary: Any = copy.deepcopy(model.model.rotary_emb)
    if is_dynamic(model):
        rotary.register_buffer("inv_freq", rotary.original_inv_freq, persistent=False)
        rotary.max_seq_len_cached = rotary.original_max_seq_len
    return rotary  # type: ignore[no-any-return]


def is_dynamic(model: Any) -> bool:
    """Whether the rotary frequencies of a model of transformers change with the length it runs."""
    parameters = getattr(model.config, "rope_parameters", None) or {}
    return bool(parameters.get("rope_type") == "dynamic")


def twin(model: Any, cpu_kernels: str, cuda_graphs: str) -> LlamaKVForCausalLM:
    """Our model over the modules of one of transformers.

    Raises:
        InputError: as wrap().
    """
    name = type(model).__name__
    if not isinstance(getattr(model, "config", None), PreTrainedConfig):
        raise InputError(f"{name} is no model of transformers: it has no config of these")
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
            module.weight = own_layer(model, path).weight  # type: ignore[union-attr]
    ours.rotary = rotary_of(model)
    ours.eos_token_ids = eos_of(getattr(model, "generation_config", None), config)
    kernels = choose_kernels(config, ours.dtype, str(ours.device), cpu_kernels)
    return finish(ours, kernels, cpu_kernels, cuda_graphs, keep_weights=True)
