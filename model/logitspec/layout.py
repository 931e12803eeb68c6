"""A model with its weights made ready to decode: fused, laid out for its kernels, captured."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .cpu.choice import Kernels
from .cpu.layers import Matrix, NativeLayers, stored
from .cpu.packed import packed
from .cuda_graphs import use_graphs
from .errors import InputError
from .linear import Linear, release
from .modeling_llama_kv import LlamaKVForCausalLM
from .stored import StoredLinear


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
    if kernels.name != "native":
        model.fuse()
    if kernels.name != "plain" and not (
        model.fused or (kernels.name == "native" and readable(model))
    ):
        why = "not all matrices of the model are plain linears"
        if cpu_kernels != "auto":
            raise InputError(f"the {kernels.name} CPU kernels do not run here: {why}; give plain")
        kernels = Kernels("plain", {**kernels.passed_over, kernels.name: why})
        model.fuse()
    lay_out(model, kernels, keep_weights=keep_weights)
    use_graphs(model, cuda_graphs)
    return model


def lay_out(model: LlamaKVForCausalLM, kernels: Kernels, *, keep_weights: bool) -> None:
    """Have a model run on these kernels from now on.

    Args:
        model: on the CPU where the kernels are not plain, and fused where they are packed.
        keep_weights: hold the plain weights too, at twice the memory, for another model that shares
            them. Otherwise they are freed one after another.
    """
    model.kernels = kernels
    if kernels.name == "native":
        lay_out_native(model, keep_weights=keep_weights)
    elif kernels.name == "packed":
        for linear in model.linears:
            linear.product = packed(matrix(linear), linear.bias)
            if not keep_weights and (linear is not model.head or not is_tied(model)):
                linear.release()


def lay_out_native(model: LlamaKVForCausalLM, *, keep_weights: bool) -> None:
    """The same for native kernels; an embedding and the head that is tied to it are one matrix."""
    embedding, tied = model.model.embed_tokens, is_tied(model)
    model.native = NativeLayers(model.config, model.dtype)
    for layer in model.layers:
        model.native.append(layer)
        if not keep_weights:
            for linear in layer.linears:
                linear.release()
    head = Matrix(stored(model.lm_head), model.dtype, model.model.norm)
    model.head.product = head
    model.embedding_rows = (head if tied else Matrix(stored(embedding), model.dtype)).rows
    if not keep_weights:
        model.head.release()
        release(embedding)


def readable(model: LlamaKVForCausalLM) -> bool:
    """Whether all matrices are on the CPU, of linears as they come or as a file stores them."""
    linears: list[Any] = [linear for group in model.linears for linear in group.linears]
    return all(
        isinstance(linear, StoredLinear)
        or (type(linear) is nn.Linear and linear.weight.device.type == "cpu")
        for linear in linears
    )


def is_tied(model: LlamaKVForCausalLM) -> bool:
    """Whether one matrix is the embedding's and the head's."""
    head, embedding = model.lm_head, model.model.embed_tokens
    if isinstance(head, StoredLinear):
        return head.matrix is getattr(embedding, "matrix", None)
    return bool(head.weight is getattr(embedding, "weight", None))


def matrix(linear: Linear) -> torch.Tensor:
    """The one matrix that a linear was fused to."""
    assert linear.weight is not None, "a linear that is called as it is cannot be laid out"
    return linear.weight
