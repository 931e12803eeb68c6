"""A model with its weights made ready to decode: fused, laid out for its kernels, captured."""

from __future__ import annotations

import torch

from .cpu.choice import Kernels
from .cpu.layers import Matrix, NativeLayers, stored
from .cpu.packed import packed
from .cuda_graphs import use_graphs
from .errors import InputError
from .linear import Linear
from .modeling_llama_kv import LlamaKVForCausalLM


def finish(
    model: LlamaKVForCausalLM,
    kernels: Kernels,
    cpu_kernels: str,
    cuda_graphs: str,
    *,
    keep_weights: bool,
) -> LlamaKVForCausalLM:
    """The model with its weights laid out for these kernels, ready to decode.

    Args:
        model: with its weights.
        kernels: from choose_kernels.
        cpu_kernels: what they were chosen by; auto: plain ones do where matrices are not plain.
        cuda_graphs: as in load().
        keep_weights: as in load().

    Raises:
        InputError: kernels or graphs that were asked for do not run here.
    """
    model.eval()
    model.fuse()
    if kernels.name != "plain" and not model.fused:
        why = "not all matrices of the model are plain linears"
        if cpu_kernels != "auto":
            raise InputError(f"the {kernels.name} CPU kernels do not run here: {why}; give plain")
        kernels = Kernels("plain", {**kernels.passed_over, kernels.name: why})
    lay_out(model, kernels, keep_weights=keep_weights)
    use_graphs(model, cuda_graphs)
    return model


def lay_out(model: LlamaKVForCausalLM, kernels: Kernels, *, keep_weights: bool) -> None:
    """Have a model run on these kernels from now on.

    Args:
        model: fused and on the CPU, where the kernels are not plain.
        keep_weights: hold the plain weights too, at twice the memory, for another model that shares
            them. Otherwise they are freed, all but the embedding: where the head is tied to it,
            that one matrix is held twice.
    """
    model.kernels = kernels
    if kernels.name == "plain":
        return
    if kernels.name == "native":
        model.native = NativeLayers(model.config, model.dtype)
        model.head.product = Matrix(stored(model.lm_head), model.dtype)
    else:
        model.head.product = packed(matrix(model.head), model.head.bias)
    for layer in model.layers:
        if model.native is not None:
            model.native.append(layer)
        for linear in layer.linears:
            if model.native is None:
                linear.product = packed(matrix(linear), linear.bias)
            if not keep_weights:
                linear.release()
    if not keep_weights and model.lm_head.weight is not model.model.embed_tokens.weight:
        model.head.release()


def matrix(linear: Linear) -> torch.Tensor:
    """The one matrix that a linear was fused to."""
    assert linear.weight is not None, "a linear that is called as it is cannot be laid out"
    return linear.weight
