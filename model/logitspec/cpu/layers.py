"""The decoder layers in one call on a CPU: lays the weights out for layers.cpp and calls it.

PyTorch's operators cost more between the matrix products of a small model than in them. choice.py
decides whether this is used; modeling_llama_kv.py calls it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..compiler import Double, Int, Pointer, Unavailable, library, structure
from ..config import heads
from ..kv_cache import KVCache
from ..sampling import Foresight
from ..stored import Quantized, StoredMatrixModule

SOURCE = Path(__file__).with_name("layers.cpp")
# Where GCC orders instructions before it gives out registers, as for ARM, sums are spilled.
FLAGS = ("-O3", "-fno-schedule-insns", "-march={target}", "-pthread")

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
CHUNK = 256  # most tokens of one call: what a prompt needs beside its cache hardly grows with it
MOST_GROUPS = 48  # query heads that share a key head: QUERIES of attention.h
INPUTS = 32  # the inputs of a matrix are a multiple of it: a group, or two chunks of matrices.h

# Forms of a matrix, as in matrices.h
FORMS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
WHOLES = {4: 3, 6: 4, 8: 5}  # by bits

Stored = torch.Tensor | Quantized
MatrixStruct = structure(
    "Matrix",
    **dict.fromkeys(("form", "inputs", "outputs", "group"), Int),
    **dict.fromkeys(("values", "scales", "minima"), Pointer),
)
PARTS = ("q", "k", "v", "output", "gate", "up", "down")
NORMS = ("input_norm", "post_norm", "q_norm", "k_norm")
SIZES = ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate")
Layer = structure(
    "Layer",
    **dict.fromkeys(PARTS, MatrixStruct),
    **dict.fromkeys((f"{part}_bias" for part in PARTS), Pointer),
    **dict.fromkeys(NORMS, Pointer),
)
Model = structure("Model", **dict.fromkeys(SIZES, Int), eps=ctypes.c_double, layer=Pointer)
Filters = structure("Filters", temperature=Double, top_p=Double, min_p=Double, top_k=Int)
Step = structure(
    "Step",
    **dict.fromkeys(("rows", "length", "capacity", "threads"), Int),
    **dict.fromkeys(("turns", "positions", "sees", "cache", "x", "workspace"), Pointer),
)


def layers_library() -> ctypes.CDLL:
    """layers.cpp, compiled when first needed.

    Raises:
        Unavailable: it cannot be compiled here.
    """
    return library(SOURCE, FLAGS)


def block_columns() -> int:
    """Columns of a block: four vectors of this instruction set (matrices.h)."""
    return int(layers_library().block_columns())


def blocks(weight: torch.Tensor) -> torch.Tensor:
    """A matrix [out, in] in blocks of outputs, input by input, as matrices.h reads it.

    In bfloat16 two inputs at a time.
    """
    columns = block_columns()
    out, inputs = weight.shape
    pair = 2 if weight.dtype == torch.bfloat16 else 1
    padded = torch.nn.functional.pad(weight, (0, 0, 0, -out % columns))
    lanes = padded.view(-1, columns, inputs // pair, pair)
    return lanes.transpose(1, 2).contiguous()


class Matrix:
    """x [n, in] -> x W^T [n, out], the weight laid out in the form that it is stored in.

    Args:
        weight: [out, in], float32, bfloat16, float16 or Quantized, on the CPU.
        dtype: of x and of what comes out: float32, or bfloat16 for a bfloat16 weight.
        norm: an RMSNorm that x goes through first.

    Raises:
        ValueError: a weight that does not go with the dtype.
    """

    def __init__(
        self, weight: Stored, dtype: torch.dtype = torch.float32, norm: Any = None
    ) -> None:
        form = "quantized" if isinstance(weight, Quantized) else weight.dtype
        if dtype == torch.bfloat16 and form != torch.bfloat16:
            raise ValueError(f"a matrix that is {form} in a model that is {dtype}")
        self.outputs, self.inputs = weight.shape
        self._dtype = dtype
        self._norm = None if norm is None else norm.weight.detach().float()
        self._eps = 0.0 if norm is None else norm.eps
        self._kept: list[torch.Tensor] = []  # what the structure points to
        self.struct = MatrixStruct(inputs=self.inputs, outputs=self.outputs)
        if isinstance(weight, Quantized):
            self._lay_out(weight)
        else:
            self.struct.form = FORMS[weight.dtype]
            self.struct.values = self._keep(blocks(weight.detach()))

    def _keep(self, tensor: torch.Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _lay_out(self, weight: Quantized) -> None:
        library, q = layers_library(), weight.q.contiguous()
        out, inputs = q.shape
        room = -(-out // block_columns()) * block_columns() * inputs * weight.bits // 8
        values = torch.zeros(room, dtype=torch.uint8)
        library.lay_out_wholes(
            Pointer(q.data_ptr()), Int(out), Int(inputs), Int(weight.bits),
            Pointer(values.data_ptr()), Int(torch.get_num_threads()),
        )  # fmt: skip
        self.struct.form, self.struct.group = WHOLES[weight.bits], weight.group
        self.struct.values = self._keep(values)
        self.struct.scales = self._keep(blocks(weight.scale))
        if weight.minimum is not None:
            offset = 0 if weight.bits == 8 else 2 ** (weight.bits - 1)  # Wholes::OFFSET
            self.struct.minima = self._keep(blocks(weight.minimum - offset * weight.scale))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self._dtype).contiguous()
        out = x.new_empty(len(x), self.outputs)
        norm = None if self._norm is None else Pointer(self._norm.data_ptr())
        getattr(layers_library(), f"multiply_{NAMES[self._dtype]}")(
            Pointer(x.data_ptr()), Int(len(x)), norm, Double(self._eps), ctypes.byref(self.struct),
            Pointer(out.data_ptr()), Int(torch.get_num_threads()),
        )  # fmt: skip
        return out

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """The weights of some outputs [n]: [n, in]. So an embedding is read.

        Raises:
            IndexError: it has no such output.
        """
        ids = ids.to(torch.int64).contiguous()
        out = torch.empty(len(ids), self.inputs, dtype=self._dtype)
        read = getattr(layers_library(), f"rows_{NAMES[self._dtype]}")
        read.restype = ctypes.c_bool
        if not read(
            ctypes.byref(self.struct), Pointer(ids.data_ptr()), Int(len(ids)),
            Pointer(out.data_ptr()), Int(torch.get_num_threads()),
        ):  # fmt: skip
            raise IndexError(f"a row outside the {self.outputs} of a matrix")
        return out


@cache
def openmp() -> Any:
    """omp_set_num_threads of the OpenMP that PyTorch runs on; None where it runs on another."""
    return getattr(ctypes.CDLL(None), "omp_set_num_threads", None)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch's operators on the calling thread alone.

    Its other threads spin for milliseconds when an operator is done, on the cores that the next
    step's threads want. Only this thread's setting changes: torch.set_num_threads changes all's.
    """
    threads, set_threads = torch.get_num_threads(), openmp()
    if set_threads is None:
        yield
        return
    set_threads(1)
    try:
        yield
    finally:
        set_threads(threads)


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


def winners(scores: torch.Tensor, states: Sequence[int]) -> torch.Tensor:
    """What sampling.winners finds, without the noise of tokens that cannot win: [m].

    Args:
        scores: [m, vocab] float32.
        states: of the noise, a row each.
    """
    m, vocab = scores.shape
    scores = scores.contiguous()
    numbers = (Int * m)(*states)
    found = torch.empty(m, dtype=torch.int64)
    layers_library().winners_float32(
        Pointer(scores.data_ptr()), numbers, Int(m), Int(vocab), Pointer(found.data_ptr()),
        Int(torch.get_num_threads()),
    )  # fmt: skip
    return found


def log_probabilities(
    logits: torch.Tensor, best: torch.Tensor, foresight: Foresight
) -> torch.Tensor:
    """What Foresight.log_probabilities finds: [n, k] float32.

    Args:
        logits: [n, vocab].
        best: [n, k] their best tokens, best first.
        foresight: with the filters.
    """
    logits, best = logits.contiguous(), best.contiguous()
    n, count = best.shape
    found = torch.empty(n, count)
    filters = Filters(foresight.temperature, foresight.top_p, foresight.min_p, foresight.top_k)
    getattr(layers_library(), f"log_probabilities_{NAMES[logits.dtype]}")(
        Pointer(logits.data_ptr()), Int(n), Int(logits.shape[1]), Pointer(best.data_ptr()),
        Int(count), ctypes.byref(filters), Pointer(found.data_ptr()), Int(torch.get_num_threads()),
    )  # fmt: skip
    return found


class NativeLayers:
    """The decoder layers of a model, over copies of their weights in blocks.

    Args:
        config: of a model that `check` finds nothing wrong with; its layers are to be appended.
        dtype: of activations and cache: float32, or bfloat16 where all matrices are.
    """

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        self._kept: list[Any] = []  # what the structures point to
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
        self._dtype = dtype
        self._forward = getattr(layers_library(), f"forward_{NAMES[dtype]}")
        self._forward.restype = Int

    def append(self, layer: Any) -> None:
        """Take over the next decoder layer."""
        attention, mlp = layer.self_attn, layer.mlp
        linears = dict(zip(PARTS, (
            attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
            mlp.gate_proj, mlp.up_proj, mlp.down_proj,
        ), strict=True))  # fmt: skip
        norms = zip(NORMS, (
            layer.input_layernorm, layer.post_attention_layernorm, attention.q_norm,
            attention.k_norm,
        ), strict=True)  # fmt: skip
        matrices = {part: Matrix(stored(linear), self._dtype) for part, linear in linears.items()}
        vectors = {f"{part}_bias": linear.bias for part, linear in linears.items()}
        vectors |= {name: getattr(norm, "weight", None) for name, norm in norms}
        wide = {name: v.detach().float() for name, v in vectors.items() if v is not None}
        self._kept += [*matrices.values(), *wide.values()]
        self._layers[self._model.layers] = Layer(
            **{part: matrix.struct for part, matrix in matrices.items()},
            **{name: vector.data_ptr() for name, vector in wide.items()},
        )
        self._model.layers += 1

    def __call__(
        self,
        x: torch.Tensor,
        turns: torch.Tensor,
        positions: torch.Tensor,
        sees: torch.Tensor | None,
        cache: KVCache,
    ) -> torch.Tensor:
        """Hidden states [n, hidden] behind the last layer.

        Args:
            x: [n, hidden], the embedded tokens; overwritten.
            turns: the model's table of rotary cos and sin, [positions, 2, head_dim].
            positions: [n] int64, which of its rows the tokens have.
            sees: [n, n] bool, which of the n tokens each sees; None: those up to it.
            cache: of this model, on the CPU; slots [length, length + n) are written. Its committed
                slots are seen by every token.

        Raises:
            ValueError: a tensor of another shape or dtype.
        """
        m = self._model
        store = cache.store
        layout = (m.layers, 2, m.kv_heads, cache.capacity, m.head_dim)
        if store.shape != layout or {store.dtype, turns.dtype, x.dtype} != {self._dtype}:
            raise ValueError(f"a cache {tuple(store.shape)} of {store.dtype} is not of this model")
        if sees is not None and (sees.dtype != torch.bool or sees.shape != (len(x), len(x))):
            raise ValueError(f"a mask {tuple(sees.shape)} of {sees.dtype} for {len(x)} tokens")
        x, positions = x.contiguous(), positions.contiguous()
        size = len(x) if sees is not None else CHUNK
        for first in range(0, len(x), size):
            part = slice(first, first + size)
            self._run(x[part], turns, positions[part], sees, cache, cache.length + first)
        return x

    def _run(
        self,
        x: torch.Tensor,
        turns: torch.Tensor,
        positions: torch.Tensor,
        sees: torch.Tensor | None,
        cache: KVCache,
        length: int,
    ) -> None:
        sees = None if sees is None else sees.contiguous()
        step = Step(
            rows=len(x),
            length=length,
            capacity=cache.capacity,
            threads=torch.get_num_threads(),
            turns=turns.data_ptr(),
            positions=positions.data_ptr(),
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


def stored(part: Any) -> Stored:
    """The weight of a linear or an embedding as the checkpoint stores it."""
    if isinstance(part, StoredMatrixModule):
        return part.read()
    weight: torch.Tensor = part.weight
    return weight


def check(config: Any, dtype: torch.dtype) -> None:
    """Raise Unavailable for a model that layers.cpp does not know."""
    query_heads, kv_heads, head_dim = heads(config)
    hidden, intermediate = config.hidden_size, config.intermediate_size
    for wrong, why in (
        (dtype not in NAMES, f"the weights are {dtype}, not float32 or bfloat16"),
        (config.hidden_act != "silu", f"the activation is {config.hidden_act}, not silu"),
        (hidden % 64, f"the hidden size {hidden} is no multiple of 64"),
        (head_dim % 64, f"the head size {head_dim} is no multiple of 64"),
        (intermediate % INPUTS, f"the intermediate size {intermediate} is no multiple of {INPUTS}"),
        (
            query_heads // kv_heads > MOST_GROUPS,
            f"{query_heads // kv_heads} query heads share a key head, more than {MOST_GROUPS}",
        ),
    ):
        if wrong:
            raise Unavailable(why)
