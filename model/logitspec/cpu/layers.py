"""The decoder layers in one call on a CPU: lays the weights out for layers.cpp and calls it.

PyTorch's operators cost more between the matrix products of a small model than in them. choice.py
decides whether this is used; modeling_llama_kv.py calls it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch

from ..compiler import Int, Pointer, Unavailable, library, structure
from ..config import heads
from ..kv_cache import KVCache

SOURCE = Path(__file__).with_name("layers.cpp")
FLAGS = ("-O3", "-march={target}", "-fopenmp")

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
BLOCK = 64  # columns of a block, see vectors.h
CHUNK = 256  # most tokens of one call: what a prompt needs beside its cache hardly grows with it
MOST_GROUPS = 48  # query heads that share a key head

POINTERS = (
    *("qkv", "qkv_bias", "output", "output_bias", "gate_up", "gate_up_bias", "down", "down_bias"),
    *("input_norm", "post_norm", "q_norm", "k_norm"),
)
SIZES = ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate")
Layer = structure("Layer", **dict.fromkeys(POINTERS, Pointer))
Model = structure("Model", **dict.fromkeys(SIZES, Int), eps=ctypes.c_double, layer=Pointer)
Step = structure(
    "Step",
    **dict.fromkeys(("rows", "length", "capacity", "threads"), Int),
    **dict.fromkeys(("cos", "sin", "sees", "cache", "x", "workspace"), Pointer),
)


def layers_library() -> ctypes.CDLL:
    """layers.cpp, compiled when first needed.

    Raises:
        Unavailable: it cannot be compiled here.
    """
    return library(SOURCE, FLAGS)


def blocks(weight: torch.Tensor) -> torch.Tensor:
    """A matrix [out, in] in blocks of 64 outputs, input by input, as layers.cpp reads it."""
    out, inputs = weight.shape
    pair = 4 // weight.element_size()
    padded = torch.nn.functional.pad(weight, (0, 0, 0, -out % BLOCK))
    lanes = padded.view(-1, BLOCK, inputs // pair, pair)
    return lanes.transpose(1, 2).contiguous()


class Matrix:
    """x [n, in] -> x W^T [n, out], its weight in blocks.

    Args:
        weight: [out, in], float32 or bfloat16, on the CPU.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self.blocks = blocks(weight)
        self._outputs, self._inputs = weight.shape
        self._multiply = getattr(layers_library(), f"multiply_{NAMES[weight.dtype]}")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        out = x.new_empty(len(x), self._outputs)
        self._multiply(
            Pointer(x.data_ptr()), Int(len(x)), Pointer(self.blocks.data_ptr()), Int(self._inputs),
            Int(self._outputs), Pointer(out.data_ptr()), Int(torch.get_num_threads()),
        )  # fmt: skip
        return out


def best_tokens(logits: torch.Tensor, count: int) -> torch.Tensor:
    """The best tokens of each row of logits [n, vocab], best first: [n, count].

    Of equal ones the first comes first. The count is at least 1 and no more than the vocabulary.
    """
    logits = logits.contiguous()
    n, vocab = logits.shape
    found = torch.empty(n, count, dtype=torch.int64)
    find = getattr(layers_library(), f"best_{NAMES[logits.dtype]}")
    find(
        Pointer(logits.data_ptr()), Int(n), Int(vocab), Int(count), Pointer(found.data_ptr()),
        Int(torch.get_num_threads()),
    )  # fmt: skip
    return found


class NativeLayers:
    """The decoder layers of a model, over copies of their weights in blocks.

    Args:
        config: of a model that `check` finds nothing wrong with; its layers are to be appended.
    """

    def __init__(self, config: Any) -> None:
        self._kept: list[torch.Tensor] = []  # what the structures point to
        self._layers = (Layer * config.num_hidden_layers)()
        query_heads, kv_heads, head_dim = heads(config)
        self._model = Model(
            hidden=config.hidden_size,
            heads=query_heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate=config.intermediate_size,
            eps=config.rms_norm_eps,
            layer=ctypes.addressof(self._layers),
        )

    def append(self, layer: Any) -> None:
        """Take over the next decoder layer, whose q/k/v and gate/up are one Linear each."""
        attention, mlp = layer.self_attn, layer.mlp
        tensors = {
            "qkv": blocks(attention.qkv.weight),
            "qkv_bias": attention.qkv.bias,
            "output": blocks(attention.output.weight),
            "output_bias": attention.output.bias,
            "gate_up": blocks(interleaved(mlp.gate_up.weight)),
            "gate_up_bias": None if mlp.gate_up.bias is None else interleaved(mlp.gate_up.bias),
            "down": blocks(mlp.down.weight),
            "down_bias": mlp.down.bias,
            "input_norm": layer.input_layernorm.weight,
            "post_norm": layer.post_attention_layernorm.weight,
            "q_norm": getattr(attention.q_norm, "weight", None),
            "k_norm": getattr(attention.k_norm, "weight", None),
        }
        # Not the parameters: what these point to may be replaced.
        self._kept += [tensor.detach() for tensor in tensors.values() if tensor is not None]
        addresses = {name: t.data_ptr() for name, t in tensors.items() if t is not None}
        self._layers[self._model.layers] = Layer(**addresses)
        self._model.layers += 1
        self._dtype = attention.qkv.weight.dtype
        self._forward = getattr(layers_library(), f"forward_{NAMES[self._dtype]}")
        self._forward.restype = Int

    def __call__(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        sees: torch.Tensor | None,
        cache: KVCache,
    ) -> torch.Tensor:
        """Hidden states [n, hidden] behind the last layer.

        Args:
            x: [n, hidden], the embedded tokens.
            cos: [n, 1, head_dim].
            sin: the same, its first half negated.
            sees: [n, n] bool, which of the n tokens each sees; None: those up to it.
            cache: of this model, on the CPU; slots [length, length + n) are written. Its committed
                slots are seen by every token.

        Raises:
            ValueError: a tensor of another shape or dtype.
        """
        m = self._model
        store = cache.store
        layout = (m.layers, 2, m.kv_heads, cache.capacity, m.head_dim)
        if store.shape != layout or {store.dtype, cos.dtype, sin.dtype, x.dtype} != {self._dtype}:
            raise ValueError(f"a cache {tuple(store.shape)} of {store.dtype} is not of this model")
        if sees is not None and (sees.dtype != torch.bool or sees.shape != (len(x), len(x))):
            raise ValueError(f"a mask {tuple(sees.shape)} of {sees.dtype} for {len(x)} tokens")
        wide = x.float()  # the residual stream is float32 in every dtype
        size = len(x) if sees is not None else CHUNK
        for first in range(0, len(x), size):
            part = slice(first, first + size)
            self._run(wide[part], cos[part], sin[part], sees, cache, cache.length + first)
        return wide.to(x.dtype)

    def _run(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        sees: torch.Tensor | None,
        cache: KVCache,
        length: int,
    ) -> None:
        cos, sin = cos.contiguous(), sin.contiguous()
        sees = None if sees is None else sees.contiguous()
        step = Step(
            rows=len(x),
            length=length,
            capacity=cache.capacity,
            threads=torch.get_num_threads(),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            sees=None if sees is None else sees.data_ptr(),
            cache=cache.store.data_ptr(),
            x=x.data_ptr(),
        )
        model = ctypes.byref(self._model)
        needed = self._forward(model, ctypes.byref(step))
        if needed > len(cache.workspace):
            cache.workspace = torch.empty(needed, dtype=torch.uint8)
        step.workspace = cache.workspace.data_ptr()
        self._forward(model, ctypes.byref(step))


def interleaved(gate_up: torch.Tensor) -> torch.Tensor:
    """Gate over up, reordered so that every 64 rows are 32 of the gate and the same 32 of up."""
    halves = gate_up.view(2, -1, BLOCK // 2, *gate_up.shape[1:])
    return halves.transpose(0, 1).reshape(gate_up.shape)


def check(config: Any, dtype: torch.dtype) -> None:
    """Raise Unavailable for a model that layers.cpp does not know."""
    query_heads, kv_heads, head_dim = heads(config)
    hidden, intermediate = config.hidden_size, config.intermediate_size
    for wrong, why in (
        (dtype not in NAMES, f"the weights are {dtype}, not float32 or bfloat16"),
        (config.hidden_act != "silu", f"the activation is {config.hidden_act}, not silu"),
        (hidden % BLOCK, f"the hidden size {hidden} is no multiple of {BLOCK}"),
        (head_dim % BLOCK, f"the head size {head_dim} is no multiple of {BLOCK}"),
        (intermediate % 32, f"the intermediate size {intermediate} is no multiple of 32"),
        (
            query_heads // kv_heads > MOST_GROUPS,
            f"{query_heads // kv_heads} query heads share a key head, more than {MOST_GROUPS}",
        ),
    ):
        if wrong:
            raise Unavailable(why)
