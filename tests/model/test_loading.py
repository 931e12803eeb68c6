"""Checkpoints: what is read, what ends a generation, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
)

from model.logitspec import (
    InputError,
    LlamaKVForCausalLM,
    LogitSpecDrafter,
    decode,
    generate,
    load,
)
from model.logitspec.loading import load_weights
from model.logitspec.prefill import last_logits

from ..conftest import TINY, save_tiny
from .gguf_writing import write_gguf
from .test_modeling import prefilled


def test_the_checkpoints_eos_ids_are_all_of_them(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m", LlamaConfig(**TINY))
    assert load(path, dtype=torch.float32).eos_token_ids == {2}
    (tmp_path / "m" / "generation_config.json").write_text('{"eos_token_id": [2, 40, 41]}')
    model = load(path, dtype=torch.float64)
    assert model.eos_token_ids == {2, 40, 41}
    plain = generate(model, [5, 6, 7], "vanilla", max_new_tokens=60, eos_token_ids=())
    (tmp_path / "m" / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [2, plain.tokens[9]]})
    )
    model = load(path, dtype=torch.float64)
    found = generate(model, [5, 6, 7], "logitspec", max_new_tokens=60)
    first = plain.tokens.index(plain.tokens[9])
    assert found.tokens == plain.tokens[: first + 1]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_checkpoint_of_bitsandbytes_runs_on_plain_kernels(tmp_path: Path, bits: int) -> None:
    """Its matrices give a row other sums in other company, so tokens are compared one by one."""
    wide = LlamaConfig(**TINY | {"hidden_size": 64, "intermediate_size": 128})  # blocks of 64
    path = save_tiny(tmp_path / "wide", wide)
    how = {f"load_in_{bits}bit": True}
    theirs = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, quantization_config=BitsAndBytesConfig(**how)
    )
    theirs.save_pretrained(tmp_path / "small")
    ids = [1, 5, 9, 3]
    with torch.inference_mode():  # otherwise bitsandbytes takes another way
        wanted = theirs.eval()(torch.tensor([ids])).logits[0, -1]
    for ours in (
        load(str(tmp_path / "small"), dtype=torch.float32),
        load(path, dtype=torch.float32, quantization_config=BitsAndBytesConfig(**how)),
    ):
        assert ours.kernels.name == "plain" and not ours.fused
        torch.testing.assert_close(last_logits(ours, ids), wanted, atol=1e-4, rtol=1e-4)
        result = decode(ours, ids, LogitSpecDrafter(), max_new_tokens=12)
        assert len(result.tokens) == 12
    with pytest.raises(InputError, match=r"native CPU kernels do not run here.*quantized"):
        load(str(tmp_path / "small"), dtype=torch.float32, cpu_kernels="native")


def test_a_gguf_file_is_a_checkpoint(tmp_path: Path, tiny_path: str) -> None:
    file = tmp_path / "tiny.F32.gguf"
    write_gguf(file, tiny_path)
    whole = load(tiny_path, dtype=torch.float32)
    model = load(str(file), dtype=torch.float32)
    ids = [3, 4, 5, 6]
    torch.testing.assert_close(prefilled(model, ids)[1], prefilled(whole, ids)[1])
    assert model.eos_token_ids == {44}
    with pytest.raises(InputError, match=r"no GGUF file .*other\.gguf"):
        load(str(tmp_path / "other.gguf"))
    with pytest.raises(InputError, match="no model directory"):
        load(str(tmp_path / "no" / "other.gguf"))
    scaled = tmp_path / "scaled.gguf"
    write_gguf(scaled, tiny_path, scaling=True)
    with pytest.raises(InputError, match="scales its rotary embeddings"):
        load(str(scaled))
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(InputError, match=r"cannot read .*tiny\.F32\.gguf"):
        load(str(file))


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)
    path = save_tiny(tmp_path / "gpt2", config, GPT2LMHeadModel)
    with pytest.raises(InputError, match="'gpt2'; supported are llama, mistral, qwen2, qwen3"):
        load(path, dtype=torch.float32)


def test_longrope_is_refused_by_name(tmp_path: Path) -> None:
    factors = [1.0] * 4
    rope = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors}
    rope |= {"rope_theta": 1e4, "original_max_position_embeddings": 64}
    config = LlamaConfig(**TINY, rope_parameters=rope)
    with pytest.raises(InputError, match="'longrope'; supported are default, linear"):
        load(save_tiny(tmp_path / "long", config), dtype=torch.float32)


def test_missing_and_broken_weights_are_refused(tmp_path: Path) -> None:
    path = Path(save_tiny(tmp_path / "torn", LlamaConfig(**TINY)))
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    for cls in (LlamaKVForCausalLM, AutoModelForCausalLM):
        with pytest.raises(InputError, match=r"lack 1 tensor.*layers\.1\.mlp\.up_proj"):
            load_weights(cls, str(path), config=AutoConfig.from_pretrained(path))
    content = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cannot load the weights of .*SafetensorError"):
        load(str(path), dtype=torch.float32)


def test_tensors_without_a_place_are_refused(tmp_path: Path) -> None:
    path = Path(save_tiny(tmp_path / "spare", LlamaConfig(**TINY)))
    weights = load_file(path / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # old checkpoints
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    load(str(path), dtype=torch.float32)
    weights["model.layers.1.self_attn.q_proj.bias"] = torch.ones(32)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"no place for, the first is .*1\.self_attn\.q_proj\.bias"
    ):
        load(str(path), dtype=torch.float32)


def test_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model directory"):
        load(str(tmp_path / "nothing"), dtype=torch.float32)
    with pytest.raises(InputError, match=r"holds no config\.json"):
        load(str(tmp_path), dtype=torch.float32)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot read the config"):
        load(str(tmp_path), dtype=torch.float32)
    (tmp_path / "config.json").write_text(json.dumps(LlamaConfig(**TINY).to_dict()))
    with pytest.raises(InputError, match="cannot load the weights"):
        load(str(tmp_path), dtype=torch.float32)


def test_pickled_weights_are_read_only_where_they_are_trusted(
    tmp_path: Path, tiny_path: str, tiny: LlamaKVForCausalLM
) -> None:
    place = tmp_path / "pickled"
    shutil.copytree(tiny_path, place)
    weights = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    torch.save(weights, place / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"are pickles .*allow_pickle"):
        load(str(place))
    ours = load(str(place), dtype=torch.float64, allow_pickle=True)
    ids = [1, 5, 9, 3]
    assert torch.equal(last_logits(ours, ids), last_logits(tiny, ids))


def test_code_in_a_checkpoint_runs_only_where_it_is_trusted(tmp_path: Path, tiny_path: str) -> None:
    place = tmp_path / "coded"
    shutil.copytree(tiny_path, place)
    (place / "code.py").write_text(
        "from transformers import LlamaConfig\n"
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "class Coded(LlamaConfig):\n    model_type = 'coded'\n"
    )
    config = json.loads((place / "config.json").read_text())
    config |= {"model_type": "coded", "auto_map": {"AutoConfig": "code.Coded"}}
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="cannot read the config"):
        load(str(place))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(InputError, match="architecture 'coded'"):
        load(str(place), trust_remote_code=True)
    assert (tmp_path / "ran").exists()
