"""The baseline beside our methods: transformers' own model over our tensors, or over its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, MistralForCausalLM

from evaluation import equal, run
from evaluation.asking.engines import transformers_twin
from model.logitspec import InputError, generate, load
from model.logitspec.loading import check_no_pickle, load_weights
from model.logitspec.modeling_llama_kv import LlamaKVForCausalLM

from ..conftest import TINY, question, save_tiny
from .test_modeling import VARIANTS

IDS = [3, 7, 4, 9, 3, 7, 4, 9, 11]
Weights = dict[str, torch.Tensor]


def change_weights(path: Path, change: Callable[[Weights], Weights]) -> None:
    """Write a checkpoint's weights anew; its config stays."""
    weights = load_file(path / "model.safetensors")
    save_file(change(weights), path / "model.safetensors", metadata={"format": "pt"})


def another_head(weights: Weights) -> Weights:
    generator = torch.Generator().manual_seed(5)
    head = weights["model.embed_tokens.weight"]
    return weights | {"lm_head.weight": torch.randn(head.shape, generator=generator).to(head)}


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("head", ["as the config says", "another"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_twin_is_the_model_that_transformers_loads(
    name: str, tied: bool, head: str, tmp_path: Path
) -> None:
    config, cls = VARIANTS[name]
    config = type(config)(**config.to_dict() | {"tie_word_embeddings": tied})
    path = save_tiny(tmp_path / name, config, cls)
    if head == "another":
        change_weights(Path(path), another_head)
    alone = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ours = load(path, dtype=torch.float32, cpu_kernels="plain", keep_weights=True)
    twin = transformers_twin(ours)
    assert torch.equal(logits(twin), logits(alone))
    for mine, theirs in ((twin, alone), (alone, twin)):
        found, wanted = dict(mine.named_parameters()), dict(theirs.named_parameters())
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in found)
    shares = twin.lm_head.weight.data_ptr() == twin.model.embed_tokens.weight.data_ptr()
    assert shares is (tied and head != "another")
    buffers = dict(twin.named_buffers())
    assert all(torch.equal(buffers[key], value) for key, value in alone.named_buffers())
    answer = alone.generate(
        torch.tensor([IDS]), max_new_tokens=12, do_sample=False, eos_token_id=None
    )
    for model in (ours, alone):  # loaded, and wrapped
        found_ids = generate(model, IDS, "logitspec", max_new_tokens=12, eos_token_ids=()).tokens
        assert found_ids == answer[0, len(IDS) :].tolist()


def test_a_head_of_its_own_under_a_config_that_ties(
    chat_path: str, tmp_path: Path, make_bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command: the baseline beside our method gives what it gives alone."""
    make_bench(question(1, "Hello?"), question(2, "Who are you?", "Why?"))
    path = tmp_path / "tiny-chat"
    path.mkdir()
    for file in Path(chat_path).iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    config = json.loads((path / "config.json").read_text()) | {"tie_word_embeddings": True}
    (path / "config.json").write_text(json.dumps(config))
    change_weights(path, another_head)
    common = [
        "--model-path", str(path), "--bench-name", "mine", "--dtype", "float32", "--device", "cpu",
        "--max-new-tokens", "12", "--warmup", "0",
    ]  # fmt: skip
    for methods, answers in (("baseline,vanilla", "both"), ("baseline", "alone")):
        flags = ["--methods", methods, "--model-id", "m", "--answer-dir", str(tmp_path / answers)]
        assert run.main([*common, *flags]) == 0
    beside = str(tmp_path / "both" / "m-baseline.jsonl")
    for other in ("both/m-vanilla.jsonl", "alone/m-baseline.jsonl"):
        assert equal.main([beside, str(tmp_path / other), "--strict"]) == 0
        assert "3 of 3 turns equal" in capsys.readouterr().out


def test_biases_that_transformers_does_not_read_are_none_of_ours(tmp_path: Path) -> None:
    """Mistral has none, whatever its config says."""
    config = MistralConfig(**TINY, sliding_window=None, attention_bias=True, mlp_bias=True)
    path = save_tiny(tmp_path / "m", config, MistralForCausalLM)
    alone = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    ours = load(path, dtype=torch.float64)
    assert not [name for name, _ in ours.named_parameters() if "bias" in name]
    twin = transformers_twin(ours)
    assert torch.equal(logits(twin), logits(alone))


# Tensors that change what weights mean -----------------------------------------------------------

PROJECTION = "model.layers.1.self_attn.q_proj"


def in_float8(weights: Weights) -> Weights:
    """As quantizers store it: eight bits, and a scale of each matrix."""
    found: Weights = {}
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            scale = weight.abs().max() / 448
            found[name] = (weight / scale).to(torch.float8_e4m3fn)
            found[name + "_scale"] = scale.float()
        else:
            found[name] = weight
    return found


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (in_float8, "model.layers.0.mlp.down_proj.weight_scale"),
        (
            lambda w: w | {f"{PROJECTION}.weight_scale_inv": torch.ones(1)},
            "q_proj.weight_scale_inv",
        ),
        (lambda w: w | {f"{PROJECTION}.qzeros": torch.ones(1)}, "q_proj.qzeros"),
        (lambda w: w | {f"{PROJECTION}.g_idx": torch.zeros(32).int()}, "q_proj.g_idx"),
        (lambda w: w | {f"{PROJECTION}.SCB": torch.ones(32)}, "q_proj.SCB"),
        (lambda w: w | {f"{PROJECTION}.bias": torch.ones(32)}, "q_proj.bias"),
        (lambda w: w | {"scales.q_proj": torch.ones(1), "model.scale": torch.ones(1)}, "model.sca"),
        (lambda w: w | {f"{PROJECTION}.lora_A.weight": torch.ones(1)}, "q_proj.lora_A.weight"),
        (lambda w: w | {"model.layers.1.self_attn.q_norm.weight": torch.ones(8)}, "q_norm.weight"),
        (
            lambda w: w | {"model.layers.9.mlp.up_proj.weight": torch.ones(1)},
            "layers.9.mlp.up_proj",
        ),
        (lambda w: w | {"lm_head.bias": torch.ones(97)}, "lm_head.bias"),
    ],
    ids=[
        "float8",
        "scale_inv",
        "zeros",
        "g_idx",
        "SCB",
        "bias",
        "elsewhere",
        "adapter",
        "norm",
        "layer",
        "head",
    ],
)
def test_tensors_that_change_weights_are_refused_for_every_method(
    tmp_path: Path, change: Callable[[Weights], Weights], first: str
) -> None:
    path = save_tiny(tmp_path / "m", LlamaConfig(**TINY, tie_word_embeddings=True))
    change_weights(Path(path), change)
    with pytest.raises(InputError, match=f"tensor.s. that change what .*first is .*{first}"):
        load_weights(AutoModelForCausalLM, path, dtype=torch.float32)
    with pytest.raises(InputError, match=f"no place for, the first is .*{first}"):
        load(path, dtype=torch.float32)


def test_a_baseline_over_garbage_is_no_success(
    chat_path: str, tmp_path: Path, make_bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bench(question(1, "Hello?"))
    path = tmp_path / "tiny-chat"
    path.mkdir()
    for file in Path(chat_path).iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    change_weights(path, in_float8)
    flags = ["--methods", "baseline", "--model-path", str(path), "--model-id", "m", "--warmup", "0"]
    flags += ["--max-new-tokens", "9"]
    assert run.main([*flags, "--bench-name", "mine", "--device", "cpu", "--dtype", "float32"]) == 2
    error = capsys.readouterr().err
    assert "weight_scale; its config.json has to name how it is quantized" in error.splitlines()[-1]


def test_parts_that_transformers_drops_are_harmless_to_the_baseline(tmp_path: Path) -> None:
    path = save_tiny(tmp_path / "m", LlamaConfig(**TINY))
    more = {
        "value_head.weight": torch.ones(1, 32), "value_head.summary.scale": torch.ones(1),
        "model.layers.0.self_attn.k_scale": torch.ones(1),
        "model.layers.0.self_attn.v_proj.output_scale": torch.ones(1),
    }  # fmt: skip
    change_weights(Path(path), lambda w: w | more)
    assert load_weights(AutoModelForCausalLM, path, dtype=torch.float32)


def test_the_hub_is_asked_once_about_what_is_no_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def nothing(path: str, name: str, **_: object) -> None:
        asked.append(name)

    monkeypatch.setattr("model.logitspec.loading.cached_file", nothing)
    check_no_pickle("nobody/has-this")
    assert asked == ["config.json"]
    with pytest.raises(InputError, match="no model directory"):
        load_weights(LlamaKVForCausalLM, "./not/there")
    assert asked == ["config.json"]
