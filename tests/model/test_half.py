"""Checkpoints in half precision, told by their files' headers, and computed with in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen2ForCausalLM

from model.logitspec import LlamaKVForCausalLM, generate, load
from model.logitspec.cpu.choice import Kernels
from model.logitspec.half import half_of, widen_all_but_matrices
from model.logitspec.loading import as_stored, load_weights
from model.logitspec.prefill import last_logits

from ..conftest import TINY, save_tiny

IDS = [3, 7, 4, 9, 3, 7]
HALVES = (torch.bfloat16, torch.float16)


def in_half(folder: Path, dtype: torch.dtype, config: Any = None) -> str:
    """A tiny model with biases, cast; its config goes on saying float32."""
    path = Path(save_tiny(folder / "m", config or Qwen2Config(**TINY), Qwen2ForCausalLM))
    weights = load_file(path / "model.safetensors")
    cast = {name: weight.to(dtype) for name, weight in weights.items()}
    save_file(cast, path / "model.safetensors", metadata={"format": "pt"})
    return str(path)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_headers_tell_half_precision_not_the_config(dtype: torch.dtype, tmp_path: Path) -> None:
    path = in_half(tmp_path, dtype)
    assert half_of(path) == dtype
    assert as_stored(path, torch.float32, Kernels("native")) == dtype
    for other in (as_stored(path, dtype, Kernels("native")),
                  as_stored(path, torch.float32, Kernels("packed"))):  # fmt: skip
        assert other is None
    AutoModelForCausalLM.from_pretrained(path, dtype=dtype).save_pretrained(
        tmp_path / "sharded", max_shard_size="20KB"
    )
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert half_of(str(tmp_path / "sharded")) == dtype


def test_mixed_pickled_and_broken_ones_are_none(tmp_path: Path) -> None:
    path = Path(in_half(tmp_path, torch.bfloat16))
    file = path / "model.safetensors"
    weights = load_file(file)
    old = weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(old, file, metadata={"format": "pt"})
    assert half_of(str(path)) == torch.bfloat16
    for other in (torch.float32, torch.float16):
        mixed = weights | {"model.norm.weight": weights["model.norm.weight"].to(other)}
        save_file(mixed, file, metadata={"format": "pt"})
        assert half_of(str(path)) is None
    file.write_bytes(file.read_bytes()[:40])
    assert half_of(str(path)) is None
    file.unlink()
    torch.save(weights, path / "pytorch_model.bin")
    assert half_of(str(path)) is None
    assert half_of(save_tiny(tmp_path / "single", LlamaConfig(**TINY))) is None


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_all_but_matrices_is_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    path = in_half(tmp_path, dtype)
    wide = load_weights(LlamaKVForCausalLM, path, dtype=torch.float32)
    model = load_weights(LlamaKVForCausalLM, path, dtype=dtype)
    widen_all_but_matrices(model)
    assert model.dtype == torch.float32 and model.stored == str(dtype).removeprefix("torch.")
    assert model.new_cache(8).store.dtype == torch.float32
    for name, weight in model.named_parameters():
        assert weight.dtype == (torch.float32 if weight.dim() == 1 else dtype)
        assert torch.equal(weight.float(), wide.get_parameter(name))
    ids = torch.arange(5)
    assert model.embed(ids).dtype == torch.float32
    assert torch.equal(model.embed(ids), wide.embed(ids))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_native_kernels_keep_matrices_in_half(dtype: torch.dtype, tmp_path: Path) -> None:
    shape = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(**TINY | shape | {"intermediate_size": 96})
    path = in_half(tmp_path, dtype, config)
    ours = load(path, dtype="float32", cpu_kernels="native")
    plain = load(path, dtype="float32", cpu_kernels="plain")
    assert ours.stored == str(dtype).removeprefix("torch.") and not plain.stored
    assert ours.dtype == torch.float32
    torch.testing.assert_close(
        last_logits(ours, IDS), last_logits(plain, IDS), atol=1e-4, rtol=1e-4
    )
    tokens = [
        generate(model, IDS, "logitspec", max_new_tokens=40).tokens for model in (ours, plain)
    ]
    assert tokens[0] == tokens[1]
