"""Which kernels a model runs on: those that a step costs least with here, by a short measurement.

loading.py asks. The measurement is of a few decoder layers of the model's shape, with weights that
mean nothing, and is stored in the user's cache folder for this machine and this build.
"""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .cpu.choice import Kernels, available
from .cpu.layers import layers_library
from .instruction_set import cpu_info, describe
from .layout import lay_out
from .modeling_llama_kv import LlamaKVForCausalLM
from .sizing.measuring import fill, wide_tree
from .storage import recall, remember
from .verification import verify

log = logging.getLogger(__name__)
NODES = (1, 8, 64)  # of the steps that are compared
CONTEXT = 64  # their committed tokens
LOSES = 1.1  # times another's cost at one of these sizes from which kernels are passed over
ENOUGH_BYTES = 2**26  # of weights that are measured with: more than processors keep in their caches
SECONDS, ROUNDS = 1.0, 7  # the measurement ends after the first of them
VOCAB = 64
SETTLING = 0.005  # seconds after which OpenMP's idle threads leave the cores to others
KNOWN: dict[str, Any] = {}  # of this process, where nothing can be stored


def choose_kernels(config: Any, dtype: torch.dtype, device: str, wanted: str = "auto") -> Kernels:
    """The kernels that a model runs on here.

    Args:
        config: of a model that the patched model can run.
        dtype: of activations and cache.
        device: where the model will lie, as a device_map.
        wanted: one of cpu.choice.KERNELS, or auto for what costs least here.

    Raises:
        InputError: no kernels of that name, or they do not run here; the message says why.
    """
    found = available(config, dtype, device, wanted)
    names = [name for name, why in found.items() if not why]
    passed_over = {name: why for name, why in found.items() if why}
    if len(names) == 1:
        return Kernels(names[0], passed_over)
    seconds = costs(config, dtype, names)
    losses = {name: worst(name, seconds) for name in names}
    best = min(names, key=lambda name: (max(losses[name][0], LOSES), names.index(name)))
    for name in names[: names.index(best)]:
        ratio, nodes, other = losses[name]
        passed_over[name] = f"a step over {nodes} nodes takes {ratio:.1f} times that of {other}"
    return Kernels(best, passed_over)


def worst(name: str, seconds: dict[str, list[float]]) -> tuple[float, int, str]:
    """Where kernels lose most: times the best cost of that size, its nodes, and whose that is."""
    found = []
    for at, nodes in enumerate(NODES):
        other = min(seconds, key=lambda name: seconds[name][at])
        found.append((seconds[name][at] / seconds[other][at], nodes, other))
    return max(found)


def costs(config: Any, dtype: torch.dtype, names: Sequence[str]) -> dict[str, list[float]]:
    """Seconds of a step over each of NODES on kernels, measured or remembered."""
    key = {
        "config": {name: value for name, value in config.to_dict().items() if name in SHAPE},
        "dtype": str(dtype),
        "names": list(names),
        "cpu": cpu_info("model name", "CPU part"),
        "instruction_set": describe(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "build": Path(layers_library()._name).name if "native" in names else "",
        "nodes": NODES,
    }
    known = repr(key)
    if known not in KNOWN:
        found = recall("kernels", key)
        if not (isinstance(found, dict) and found.keys() == set(names)):
            log.info("measuring which kernels are fastest for this model, once for this machine")
            found = measure(config, dtype, names)
            remember("kernels", key, found)
        KNOWN[known] = found
    return KNOWN[known]  # type: ignore[no-any-return]


SHAPE = (
    *("model_type", "hidden_size", "intermediate_size", "num_attention_heads", "attention_bias"),
    *("num_key_value_heads", "head_dim", "mlp_bias"),
)


@torch.inference_mode()
def measure(config: Any, dtype: torch.dtype, names: Sequence[str]) -> dict[str, list[float]]:
    """Medians of some rounds, in which the kernels take turns."""
    models = {name: layers_on(name, config, dtype) for name in names}
    caches = {}
    took: dict[str, list[list[float]]] = {name: [[] for _ in NODES] for name in names}
    for name, model in models.items():
        caches[name] = model.new_cache(CONTEXT + NODES[-1])
        fill(caches[name], CONTEXT)
    end = time.perf_counter() + SECONDS
    for _ in range(ROUNDS):
        for name, model in models.items():
            time.sleep(SETTLING)
            for at, nodes in enumerate(NODES):
                step = partial(verify, model, wide_tree(nodes), caches[name], 0)
                step()  # what other sizes left in the processor's caches does not count
                start = time.perf_counter()
                step()
                took[name][at].append(time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    return {name: [statistics.median(some) for some in sizes] for name, sizes in took.items()}


def layers_on(name: str, config: Any, dtype: torch.dtype) -> LlamaKVForCausalLM:
    """Enough decoder layers of a model's shape, on kernels."""
    few = copy.deepcopy(config)
    few.vocab_size, few.num_hidden_layers, few.tie_word_embeddings = VOCAB, 1, True
    with torch.device("meta"):
        model = LlamaKVForCausalLM(few)
        numbers = sum(p.numel() for p in model.model.layers.parameters())
        per_layer = numbers * dtype.itemsize
        few.num_hidden_layers = min(config.num_hidden_layers, -(-ENOUGH_BYTES // per_layer))
        model = LlamaKVForCausalLM(few)
    model.to(dtype).to_empty(device="cpu")
    model.tie_weights()
    for parameter in model.parameters():
        parameter.fill_(0.01)
    model.eval()
    if name != "native":
        model.fuse()
    lay_out(model, Kernels(name), keep_weights=False)
    return model
