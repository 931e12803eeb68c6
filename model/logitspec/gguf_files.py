"""GGUF files: what is in them, and a model over their matrices as they are stored.

loading.py asks whether a file can be kept as it is, and has the model made.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, GGUFReader, get_tensor_name_map
from torch import nn
from transformers import AutoConfig

from .config import heads
from .errors import InputError
from .gguf_blocks import KINDS, Bytes, unpack
from .modeling_llama_kv import LlamaKVForCausalLM
from .storage import found_once
from .stored import Quantized, StoredEmbedding, StoredLinear

ARCHITECTURES = {"llama": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2, "qwen3": MODEL_ARCH.QWEN3}
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"


@dataclass(frozen=True)
class GgufTensor:
    """Where and how a file holds a tensor.

    Attributes:
        kind: of its blocks, by llama.cpp's name.
        shape: as torch has it.
    """

    file: Path
    kind: str
    shape: tuple[int, ...]
    start: int
    bytes: int

    def packed(self) -> Bytes:
        """What the file holds, mapped and not read: [rows, bytes of a row]."""
        rows = self.shape[0] if len(self.shape) > 1 else 1
        shape = rows, self.bytes // rows
        return np.memmap(self.file, np.uint8, mode="r", offset=self.start, shape=shape)

    def floats(self) -> torch.Tensor:
        """All of it in float32."""
        found = opened(self.packed(), self.kind)
        whole = found.dequantized() if isinstance(found, Quantized) else found.float()
        return whole.view(self.shape)


@dataclass(frozen=True, eq=False)
class GgufFile:
    """What is in a file.

    Attributes:
        fields: its key-value pairs but for lists, which are long.
        swapped: whether its bytes are in another order than this machine's.
        identity: what tells whether it is the same file.
    """

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]
    swapped: bool
    identity: dict[str, Any]


class GgufMatrix:
    """A StoredMatrix of a GGUF file.

    Args:
        order: [out], the rows in the order in which a model wants them; None: as they are.
    """

    def __init__(self, tensor: GgufTensor, order: torch.Tensor | None = None) -> None:
        self.tensor = tensor
        self.shape = (tensor.shape[0], tensor.shape[1])
        self._order = order

    def read(self) -> Quantized | torch.Tensor:
        packed = self.tensor.packed()
        return opened(packed if self._order is None else packed[self._order], self.tensor.kind)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        ids = ids if self._order is None else self._order[ids]
        some = opened(self.tensor.packed()[ids.numpy()], self.tensor.kind)
        return some.dequantized() if isinstance(some, Quantized) else some.float()


def opened(packed: Bytes, kind: str) -> Quantized | torch.Tensor:
    """A matrix of what a file holds, [rows, bytes of a row]; not over the file's memory."""
    if kind in KINDS:
        return unpack(kind, packed)
    return torch.from_numpy(np.array(packed)).view(DTYPES[kind])


@lru_cache(maxsize=1)
def parse(file: Path, changed: int, size: int) -> GgufFile:
    """What is in a file; when it `changed` and its size tell whether it is what was read before.

    That takes seconds for a long vocabulary, so it is kept in the cache folder.
    """
    identity = {"file": str(file), "changed": changed, "size": size}
    known = found_once(
        "gguf", identity | {"gguf": version("gguf"), "format": 1}, lambda: contents(file)
    )
    tensors = {
        name: GgufTensor(file, kind, tuple(shape), start, count)
        for name, kind, shape, start, count in known["tensors"]
    }
    return GgufFile(file, known["fields"], tensors, known["swapped"], identity)


def contents(file: Path) -> dict[str, Any]:
    """The fields of a GgufFile, as JSON can hold them."""
    reader = GGUFReader(file)
    tensors = [
        (
            tensor.name,
            tensor.tensor_type.name,
            [int(size) for size in reversed(tensor.shape)],
            int(tensor.data_offset),
            int(tensor.n_bytes),
        )
        for tensor in reader.tensors
    ]
    fields = {key: field.contents() for key, field in reader.fields.items() if len(field.data) == 1}
    return {"tensors": tensors, "fields": fields, "swapped": reader.byte_order == "S"}


def gguf_config(place: str, name: str, file: GgufFile) -> Any:
    """The configuration that transformers makes of a file."""
    return AutoConfig.for_model(**copy.deepcopy(config_fields(place, name, file)))


@lru_cache(maxsize=1)
def config_fields(place: str, name: str, file: GgufFile) -> dict[str, Any]:
    """Its fields, not to be changed; transformers parses the file for them, so they are kept, too.

    Args:
        place: as from_pretrained takes it, of the file `name`.
        file: what is read of it.
    """

    def find() -> Any:
        config = AutoConfig.from_pretrained(place, gguf_file=name)
        return json.loads(config.to_json_string(use_diff=False))

    key = file.identity | {"transformers": version("transformers")}
    return {**found_once("gguf-config", key, find)}


def why_not_as_stored(file: GgufFile) -> str:
    """What keeps a file's matrices from being computed with as they are; empty if nothing does."""
    if file.swapped:
        return "its bytes are in another order than this machine's"
    if file.fields.get("general.architecture") not in ARCHITECTURES:
        return f"its architecture is {file.fields.get('general.architecture')}"
    kinds = {tensor.kind for tensor in file.tensors.values()}
    others = sorted(kinds - KINDS.keys() - DTYPES.keys())
    return f"it holds blocks of the type {others[0]}" if others else ""


def kinds_of(file: GgufFile) -> str:
    """The types of a file's blocks, for reports: those with the most bytes first."""
    sizes: dict[str, int] = {}
    for tensor in file.tensors.values():
        if len(tensor.shape) > 1:
            sizes[tensor.kind] = sizes.get(tensor.kind, 0) + tensor.bytes
    return ", ".join(sorted(sizes, key=lambda kind: -sizes[kind]))


def load_stored(config: Any, file: GgufFile, path: str) -> LlamaKVForCausalLM:
    """The patched model over a file's matrices, which are read when they are laid out.

    Args:
        config: of the file, from load_config().
        file: that `why_not_as_stored` finds nothing wrong with.
        path: as the user gave it, for messages.

    Raises:
        InputError: the file lacks tensors of the model, or has others, or they do not fit.
    """
    config._attn_implementation = "eager"  # ours attends by itself
    with torch.device("meta"):
        model = LlamaKVForCausalLM(config)
    found = Tensors(config, file, path)
    embedding = found.matrix(EMBEDDING, model.model.embed_tokens.weight)
    model.model.embed_tokens = StoredEmbedding(embedding)
    for name, module in list(model.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if name == HEAD and not found.has(HEAD):
            model.lm_head = StoredLinear(embedding, None)
        elif isinstance(module, nn.Linear):
            bias = None if module.bias is None else found.vector(name, "bias", module.bias)
            linear = StoredLinear(found.matrix(name, module.weight), bias)
            setattr(model.get_submodule(parent), leaf, linear)
        elif "weight" in module._parameters:  # a norm
            weight = found.vector(name, "weight", module.weight)
            module.weight = nn.Parameter(weight, requires_grad=False)
    found.check_all_taken()
    model.compute_dtype = torch.float32
    model.stored = kinds_of(file)
    return model


class Tensors:
    """A file's tensors by a model's names, and which of them were taken."""

    def __init__(self, config: Any, file: GgufFile, path: str) -> None:
        architecture = str(file.fields["general.architecture"])
        self._names = get_tensor_name_map(ARCHITECTURES[architecture], config.num_hidden_layers)
        self._left = dict(file.tensors)
        self._tensors = file.tensors
        self._path = path
        query_heads, kv_heads, _ = heads(config)
        # llama.cpp has a head's two halves interleaved where its architecture is llama
        turned = {"q_proj": query_heads, "k_proj": kv_heads}
        self._turned = turned if architecture == "llama" else {}

    def has(self, module: str) -> bool:
        return f"{self._names.get_name(module)}.weight" in self._tensors

    def matrix(self, module: str, like: torch.Tensor) -> GgufMatrix:
        """The matrix of a module, of the shape of its parameter."""
        return GgufMatrix(self._take(module, "weight", like), self._order(module, len(like)))

    def vector(self, module: str, part: str, like: torch.Tensor) -> torch.Tensor:
        """A bias, or a norm's weight, in float32."""
        vector = self._take(module, part, like).floats()
        order = self._order(module, len(like))
        return vector if order is None else vector[order]

    def _take(self, module: str, part: str, like: torch.Tensor) -> GgufTensor:
        name = f"{self._names.get_name(module)}.{part}"
        tensor = self._left.pop(name, None)
        if tensor is None:
            raise InputError(f"the weights of {self._path} lack the tensor {name}")
        if tensor.shape != like.shape:
            raise InputError(
                f"the tensor {name} of {self._path} is {list(tensor.shape)}, and its config says "
                f"{list(like.shape)}; give a file whose parts fit"
            )
        return tensor

    def _order(self, module: str, rows: int) -> torch.Tensor | None:
        count = self._turned.get(module.rpartition(".")[2])
        if count is None:
            return None
        return torch.arange(rows).view(count, -1, 2).transpose(1, 2).flatten()

    def check_all_taken(self) -> None:
        """Raise InputError for tensors that the model has no place for."""
        if self._left:
            raise InputError(
                f"{self._path} holds {len(self._left)} tensor(s) that the patched model has no "
                f"place for, the first is {min(self._left)}"
            )
