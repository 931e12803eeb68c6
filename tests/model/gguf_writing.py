"""Small GGUF files as llama.cpp's tools would write them, in any type of block."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import gguf
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors.torch import load_file
from transformers import AutoConfig

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
# Where blocks hold numbers in half precision: random bytes would make some of them infinite.
HALVES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
}
LARGEST = {"Q8_0": 127, "Q5_0": 16, "Q4_0": 8, "Q6_K": 4096, "Q3_K": 128, "IQ4_NL": 127}


def random_blocks(kind: str, rows: int, inputs: int, seed: int = 0) -> np.ndarray:
    """[rows, bytes of a row] of a type of block, weights below one."""
    rng = np.random.default_rng(seed)
    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    packed = rng.integers(0, 256, (rows, inputs // weights * size), dtype=np.uint8)
    blocks = packed.reshape(-1, size)
    for place in HALVES[kind]:
        halves = rng.normal(size=(len(blocks), 1)) / LARGEST.get(kind, 32)
        halves /= 32 if kind.endswith("K") and kind in ("Q2_K", "Q4_K", "Q5_K") else 1
        blocks[:, place : place + 2] = halves.astype(np.float16).view(np.uint8)
    return packed


def llama_cpp_rows(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Query or key rows in llama.cpp's order: a head's two halves interleaved."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    file: Path,
    path: str,
    kind: str = "F32",
    *,
    scaling: bool = False,
    without: str = "",
    more: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> str:
    """A checkpoint as a GGUF file; its path.

    Args:
        kind: of the matrices. Of blocks that this cannot quantize to, random ones.
        scaling: have it say that its rotary embeddings are scaled.
        without: the name of a tensor that is left out.
        more: tensors that it holds besides.
    """
    config = AutoConfig.from_pretrained(path)
    weights = load_file(Path(path) / "model.safetensors")
    writer = gguf.GGUFWriter(file, config.model_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_eos_token_id(44)
    if scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(2.0)
    names = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)
    for number, (name, weight) in enumerate(sorted(weights.items())):
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        module = name.split(".")[-2]
        if config.model_type == "llama" and module in heads:
            weight = llama_cpp_rows(weight, heads[module])
        short = names.get_name(name, (".weight", ".bias"))
        if short != without:
            add(writer, short, weight, kind if weight.dim() == 2 else "F32", number)
    for name, weight in more.items():
        add(writer, name, weight, "F32", 0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(file)


def add(writer: gguf.GGUFWriter, name: str, weight: torch.Tensor, kind: str, seed: int) -> None:
    dtype = GGMLQuantizationType[kind]
    try:
        data = gguf.quants.quantize(weight.numpy(), dtype)
    except NotImplementedError:
        data = random_blocks(kind, *weight.shape, seed=seed)
    writer.add_tensor(name, data, raw_dtype=dtype)
