"""GGUF files: blocks without loss, models over them as they are stored, what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from model.logitspec import InputError, LlamaKVForCausalLM, gguf_files, load, storage
from model.logitspec.cpu.choice import Kernels
from model.logitspec.gguf_blocks import KINDS, unpack
from model.logitspec.gguf_files import load_stored, parse
from model.logitspec.layout import is_tied
from model.logitspec.loading import as_stored, choose_dtype, load_config, load_weights, read_gguf
from model.logitspec.prefill import last_logits
from model.logitspec.stored import Quantized

from ..conftest import TINY, save_tiny
from .gguf_writing import random_blocks, write_gguf

NATIVE = Kernels("native")
IDS = [3, 4, 5, 6, 7]
SMALL = TINY | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
WIDE = SMALL | {"hidden_size": 256, "intermediate_size": 512}  # K-quants have blocks of 256


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_unpacked_without_loss(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.logitspec.gguf_blocks.CHUNK", 5000)  # rows come in several pieces
    inputs = 3 * GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0]
    packed = random_blocks(kind, 50, inputs)
    found = unpack(kind, packed)
    assert found.shape == (50, inputs)
    largest = 2 ** (found.bits - 1)
    assert -largest <= int(found.q.min()) and int(found.q.max()) < largest
    assert found.group == KINDS[kind].group and found.bits == KINDS[kind].bits
    if kind in ("Q4_0", "Q5_0", "Q8_0", "Q3_K", "Q6_K"):
        assert found.minimum is None
    wanted = gguf.quants.dequantize(packed, GGMLQuantizationType[kind])
    np.testing.assert_allclose(found.dequantized().numpy(), wanted, rtol=0, atol=2e-7)


def stored_model(path: str) -> LlamaKVForCausalLM:
    """The model over what the file holds, on PyTorch's operators."""
    file = read_gguf(path)
    assert as_stored(path, torch.float32, NATIVE) == file
    return load_stored(load_config(path), file, path).eval()


def check_same(path: str, *, tied: bool = False) -> LlamaKVForCausalLM:
    """The file's model as it is stored gives the logits of transformers' dequantized one."""
    theirs = load_weights(AutoModelForCausalLM, path, dtype=torch.float32).eval()
    wanted = theirs(torch.tensor([IDS])).logits[0, -1].detach()
    ours = stored_model(path)
    torch.testing.assert_close(last_logits(ours, IDS), wanted, atol=2e-4, rtol=1e-4)
    assert ours.dtype == torch.float32 and is_tied(ours) is tied
    assert next(ours.parameters()).dtype == torch.float32
    return ours


@pytest.mark.parametrize("kind", [*KINDS, "F32", "F16", "BF16"])
def test_a_file_of_any_type_is_its_dequantized_model(kind: str, tmp_path: Path) -> None:
    config = LlamaConfig(**(WIDE if kind.endswith("K") else SMALL))
    path = save_tiny(tmp_path / "m", config)
    ours = check_same(write_gguf(tmp_path / f"tiny.{kind}.gguf", path, kind))
    assert ours.stored == kind
    read = ours.layers[0].mlp.down_proj.read()
    assert isinstance(read, Quantized if kind in KINDS else torch.Tensor)
    assert read.shape == (config.hidden_size, config.intermediate_size)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("config", "cls"),
    [
        (LlamaConfig, LlamaForCausalLM),
        (Qwen2Config, Qwen2ForCausalLM),  # biases
        (Qwen3Config, Qwen3ForCausalLM),  # norms of queries and keys, a head size of 128
    ],
    ids=["llama", "qwen2", "qwen3"],
)
def test_architectures(config: Any, cls: Any, tied: bool, tmp_path: Path) -> None:
    own = {"head_dim": 128} if config is Qwen3Config else {}
    path = save_tiny(tmp_path / "m", config(**SMALL, **own, tie_word_embeddings=tied), cls)
    ours = check_same(write_gguf(tmp_path / "tiny.gguf", path, "Q5_1"), tied=tied)
    assert ours.eos_token_ids == set()  # load() finds them


@pytest.fixture(scope="module")
def small_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("small") / "m", LlamaConfig(**SMALL))


def test_what_is_asked_for_otherwise_is_dequantized(tmp_path: Path, small_path: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", small_path, "Q4_1")
    assert as_stored(path, torch.bfloat16, NATIVE) is None
    assert as_stored(path, torch.float32, Kernels("packed")) is None
    config = load_config(path)
    assert choose_dtype("bfloat16", path, config, "cpu") == torch.bfloat16
    for options in ({"keep_weights": True}, {"cpu_kernels": "plain"}, {"dtype": torch.float64}):
        model = load(path, **({"dtype": torch.float32} | options))
        assert not model.stored and model.layers[0].mlp.down_proj.weight.dim() == 2


def test_a_type_that_is_no_scale_and_minimum_is_dequantized_and_said(
    tmp_path: Path, small_path: str
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", small_path, "IQ4_NL")
    with pytest.warns(UserWarning, match=r"gguf are dequantized: .* blocks of the type IQ4_NL"):
        assert as_stored(path, torch.float32, NATIVE) is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = load(path, dtype=torch.float32)
    theirs = load_weights(AutoModelForCausalLM, path, dtype=torch.float32).eval()
    wanted = theirs(torch.tensor([IDS])).logits[0, -1].detach()
    torch.testing.assert_close(last_logits(ours, IDS), wanted, atol=2e-4, rtol=1e-4)


def test_files_that_do_not_fit_are_refused(tmp_path: Path, small_path: str) -> None:
    def loaded(**how: Any) -> None:
        stored_model(write_gguf(tmp_path / "tiny.gguf", small_path, "Q4_1", **how))

    with pytest.raises(InputError, match=r"lack the tensor blk\.1\.ffn_up\.weight"):
        loaded(without="blk.1.ffn_up.weight")
    with pytest.raises(InputError, match=r"has no place for, the first is spare\.weight"):
        loaded(more={"spare.weight": torch.ones(32)})
    with pytest.raises(InputError, match=r"output_norm\.weight .* is \[32\], .* says \[64\]"):
        loaded(without="output_norm.weight", more={"output_norm.weight": torch.ones(32)})


def test_torn_files_and_unknown_blocks_are_refused_in_a_sentence(
    tmp_path: Path, small_path: str
) -> None:
    path = Path(write_gguf(tmp_path / "tiny.gguf", small_path, "Q4_1"))
    whole = path.read_bytes()
    marked = whole.index(b"output_norm.weight") + len("output_norm.weight") + 4 + 8
    unknown = whole[:marked] + (99).to_bytes(4, "little") + whole[marked + 4 :]
    for number, content in enumerate((whole[:-500], whole[:300], b"", b"GGUF", unknown)):
        torn = tmp_path / f"torn{number}.gguf"
        torn.write_bytes(content)
        with pytest.raises(InputError, match=rf"cannot read .*torn{number}\.gguf") as refused:
            load(str(torn))
        assert "\n" not in str(refused.value)


def test_a_file_is_parsed_once_for_all_processes(
    tmp_path: Path, small_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(storage, "SLOW", 0.0)
    path = write_gguf(tmp_path / "tiny.gguf", small_path, "Q4_1")
    file, config = read_gguf(path), load_config(path)

    def parses(*_: object, **__: object) -> None:
        raise RuntimeError("it is parsed")

    monkeypatch.setattr(gguf_files, "GGUFReader", parses)
    monkeypatch.setattr(gguf_files.AutoConfig, "from_pretrained", parses)
    parse.cache_clear()  # as in another process
    again = read_gguf(path)
    assert (again.fields, again.tensors) == (file.fields, file.tensors)
    assert again is not file
    assert load_config(path).to_dict() == config.to_dict()
    Path(path).touch()
    with pytest.raises(InputError, match="it is parsed"):
        read_gguf(path)


def test_native_kernels_compute_from_the_blocks(tmp_path: Path) -> None:
    shape = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(**SMALL | shape | {"tie_word_embeddings": True})
    path = save_tiny(tmp_path / "m", config, Qwen2ForCausalLM)
    for kind in ("Q4_0", "Q4_1", "Q5_1", "Q8_0", "F16"):
        file = write_gguf(tmp_path / f"tiny.{kind}.gguf", path, kind)
        ours = load(file, cpu_kernels="native")
        plain = load(file, dtype="float32", cpu_kernels="plain")
        assert ours.dtype == torch.float32 and ours.stored == kind and not plain.stored
        assert ours.eos_token_ids == {44}
        wanted = last_logits(plain, IDS)
        torch.testing.assert_close(last_logits(ours, IDS), wanted, atol=2e-4, rtol=1e-4)
        assert not list(ours.model.layers[0].mlp.down_proj.parameters())
