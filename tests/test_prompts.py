"""Templates: FastChat's for the models it knows, else the tokenizer's; and targets' names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from evaluation.prompts import PromptFormat, answer_text, fastchat_template
from evaluation.targets import fingerprint, model_name
from model.logitspec import InputError
from model.logitspec.devices import resolve_device, resolve_dtype

from .conftest import TINY


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("vicuna-7b-v1.3", "vicuna_v1.1"),
        ("Llama-2-7b-chat-hf", "llama-2"),
        ("smollm2-135m-instruct", None),
        ("Llama-3.1-8B-Instruct", None),
    ],
)
def test_fastchat_is_asked_first(name: str, template: str | None) -> None:
    assert fastchat_template(name) == template


def test_the_tokenizers_chat_template_over_two_turns(default_tokenizer: Any) -> None:
    prompts = PromptFormat("smollm2-135m-instruct", default_tokenizer)
    assert str(prompts) == "the tokenizer's chat template"
    conversation = prompts.start()
    first = default_tokenizer.decode(conversation.ask("Who?"))
    assert first.endswith("<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n")
    conversation.answer("Me.")
    second = default_tokenizer.decode(conversation.ask("Why?"))
    assert second == (
        first + "Me.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_fastchat_template_over_two_turns(default_tokenizer: Any) -> None:
    prompts = PromptFormat("vicuna-7b-v1.3", default_tokenizer)
    assert str(prompts) == "FastChat's template vicuna_v1.1"
    conversation = prompts.start()
    conversation.ask("Who?")
    conversation.answer("Me.")
    text = default_tokenizer.decode(conversation.ask("Why?"))
    assert text.endswith("USER: Who? ASSISTANT: Me.</s>USER: Why? ASSISTANT:")
    assert conversation is not prompts.start()


def test_stop_ids_of_a_template(default_tokenizer: Any) -> None:
    assert PromptFormat("x", default_tokenizer, "qwen-7b-chat").stop_token_ids
    assert PromptFormat("x", default_tokenizer, "vicuna_v1.1").stop_token_ids == set()


def test_templates_that_are_not_there_are_refused(default_tokenizer: Any) -> None:
    with pytest.raises(InputError, match="FastChat has no template 'nonsense'"):
        PromptFormat("x", default_tokenizer, "nonsense")

    class Bare:
        chat_template = None

    with pytest.raises(InputError, match="the template gemini gives no prompt: ValueError"):
        PromptFormat("x", default_tokenizer, "gemini")
    for given in (None, "tokenizer"):
        with pytest.raises(InputError, match="no chat template"):
            PromptFormat("some-base-model", Bare(), given)


def test_answer_text(default_tokenizer: Any) -> None:
    ids = [*default_tokenizer(" One. ### Two.").input_ids, 2]
    assert answer_text(default_tokenizer, ids, ()) == "One. ### Two."
    assert answer_text(default_tokenizer, ids, ("###",)) == "One."


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("lmsys/vicuna-7b-v1.3", "vicuna-7b-v1.3"),
        ("/home/vicuna/models/my-model/", "my-model"),
        ("/x/hub/models--lmsys--vicuna-7b-v1.3/snapshots/236eee/", "vicuna-7b-v1.3"),
    ],
)
def test_model_name(path: str, name: str) -> None:
    assert model_name(path) == name


def test_dtypes_by_name() -> None:
    assert resolve_dtype("float64", "cpu") == torch.float64
    assert resolve_dtype("auto", "cpu") in (torch.bfloat16, torch.float32)
    with pytest.raises(InputError, match="dtype 'int3' is not known; give auto, float16, "):
        resolve_dtype("int3", "cpu")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fpu avx512f avx512_bf16 sse", torch.bfloat16),
        ("fpu amx_bf16", torch.bfloat16),
        ("fpu avx512f", torch.float32),
        ("", torch.float32),
    ],
)
def test_auto_dtype_follows_the_processor(
    flags: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOGITSPEC_ISA", raising=False)
    monkeypatch.setattr("model.logitspec.instruction_set.cpu_info", lambda *keys: flags)
    assert resolve_dtype("auto", "cpu") == dtype


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(InputError, match="needs 1, torch sees 0 here; use --device cpu"):
        resolve_device("cuda")
    with pytest.raises(InputError, match="device 'tpu' is not known"):
        resolve_device("tpu")
    with pytest.raises(InputError, match="--num-gpus-per-model is 2 on device cpu"):
        resolve_device("cpu", gpus_per_model=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == "cuda:0"
    assert resolve_device("cuda:1") == "cuda:1"
    assert resolve_device("cuda", gpus_per_model=2) == "auto"
    with pytest.raises(InputError, match="needs 3, torch sees 2"):
        resolve_device("cuda:2")
    with pytest.raises(InputError, match="cuda:1 is one GPU, --num-gpus-per-model is 2"):
        resolve_device("cuda:1", gpus_per_model=2)


def test_two_checkpoints_of_one_name_are_told_apart(tmp_path: Path) -> None:
    config = LlamaConfig(**TINY)
    prints = set()
    for step in range(2):
        path = tmp_path / str(step) / "final"
        path.mkdir(parents=True)
        (path / "model.safetensors").write_bytes(bytes([step]) * 300_000)
        assert fingerprint(str(path), config) == fingerprint(str(path), config)
        prints.add(fingerprint(str(path), config))
    prints.add(fingerprint(str(path), LlamaConfig(**TINY | {"num_hidden_layers": 7})))
    assert len(prints) == 3


def test_a_link_to_a_checkpoint_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "blob").mkdir()
    (tmp_path / "vicuna-7b-v1.3").symlink_to(tmp_path / "blob")
    assert model_name(str(tmp_path / "vicuna-7b-v1.3")) == "vicuna-7b-v1.3"
