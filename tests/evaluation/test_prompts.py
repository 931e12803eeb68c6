"""Templates: FastChat's for the models it knows, else the tokenizer's; and targets' names."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig

from evaluation.asking.prompts import PromptFormat, answer_text, fastchat_template, fastchat_text
from evaluation.asking.target import fingerprint, model_name
from model.logitspec import InputError
from model.logitspec.devices import resolve_device, resolve_dtype

from ..conftest import TINY


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


def chatml(tokenizer: Any) -> Any:
    """A tokenizer whose own template is not FastChat's: nothing stands before the question."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return other


def test_a_name_that_looks_alike_does_not_decide(default_tokenizer: Any) -> None:
    """FastChat takes anything with qwen in its name for Qwen's ChatML."""
    tokenizer = chatml(default_tokenizer)
    prompts = PromptFormat("R1-Distill-Qwen-1.5B", tokenizer)
    assert prompts.template == "tokenizer"
    assert str(prompts) == (
        "the tokenizer's chat template (FastChat takes R1-Distill-Qwen-1.5B for qwen-7b-chat by "
        "its name, which gives other prompts than the tokenizer's chat template; --conv-template "
        "qwen-7b-chat gives these)"
    )
    said = default_tokenizer.decode(prompts.start().ask("Who?"))
    assert said == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    given = PromptFormat("R1-Distill-Qwen-1.5B", tokenizer, "qwen-7b-chat")
    assert str(given) == "FastChat's template qwen-7b-chat"
    assert given.start().ask("Who?") != prompts.start().ask("Who?")


def test_a_template_that_fails_leaves_the_other(default_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(default_tokenizer)
    tokenizer.chat_template = "{{ raise_exception('not today') }}"
    prompts = PromptFormat("R1-Distill-Qwen-1.5B", tokenizer)
    assert prompts.template == "qwen-7b-chat"
    assert "the tokenizer's chat template fails: TemplateError: not today" in str(prompts)


@pytest.mark.parametrize("template", ["one_shot", "vicuna_v1.1", "falcon", "llama-2", "raw"])
def test_messages_in_fastchats_templates(default_tokenizer: Any, template: str) -> None:
    """Example messages of a template come before, and some collapse blank lines."""
    prompts = PromptFormat("m", default_tokenizer, template)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One line\n\nand another."},
    ]
    if template == "raw":  # it has no place for a system
        messages = messages[1:]
    text = default_tokenizer.decode(prompts.chat(messages))
    for message in messages:
        assert " ".join(message["content"].split()) in " ".join(text.split())


@pytest.mark.parametrize(
    ("name", "template"),
    [
        ("vicuna-7b-v1.3", "vicuna_v1.1"),
        ("Llama-2-7b-chat-hf", "llama-2"),
        ("CodeLlama-7b-Instruct-hf", "llama-2"),
    ],
)
def test_the_papers_families_keep_fastchats(
    default_tokenizer: Any, name: str, template: str
) -> None:
    prompts = PromptFormat(name, chatml(default_tokenizer))
    assert (prompts.template, prompts.note) == (template, "")


def test_equal_prompts_leave_fastchats_template(default_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(default_tokenizer)
    tokenizer.chat_template = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% for m in messages %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert PromptFormat("Qwen-7B-Chat", tokenizer).template == "qwen-7b-chat"


@pytest.mark.parametrize("template", ["deepseek-chat", "llama2-chinese", "llama-2", "raw"])
def test_one_bos_where_the_template_and_the_tokenizer_write_it(
    default_tokenizer: Any, template: str
) -> None:
    tokenizer = copy.deepcopy(default_tokenizer)
    bos = "<｜begin▁of▁sentence｜>" if template == "deepseek-chat" else "<s>"
    tokenizer.add_special_tokens({"bos_token": bos})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$BOS $A".replace("$BOS", bos), special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    conversation = PromptFormat("m", tokenizer, template).start()
    conversation.ask("Who?")
    conversation.answer("Me.")
    ids = conversation.ask("Why?")
    assert ids[0] == tokenizer.bos_token_id != ids[1]
    said = (("user", "Who?"), ("assistant", "Me."), ("user", "Why?"))
    text = fastchat_text(template, [{"role": role, "content": text} for role, text in said])
    written = text if text.startswith(bos) else bos + text
    assert ids == tokenizer(written, add_special_tokens=False).input_ids


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
    with pytest.raises(InputError, match="needs 1, torch sees 0 here; give the device cpu"):
        resolve_device("cuda")
    with pytest.raises(InputError, match="device 'tpu' is not known"):
        resolve_device("tpu")
    with pytest.raises(InputError, match="2 GPUs per model on the device cpu"):
        resolve_device("cpu", gpus_per_model=2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == "cuda:0"
    assert resolve_device("cuda:1") == "cuda:1"
    assert resolve_device("cuda", gpus_per_model=2) == "auto"
    with pytest.raises(InputError, match="needs 3, torch sees 2"):
        resolve_device("cuda:2")
    with pytest.raises(InputError, match="cuda:1 is one GPU, and a model is to span 2"):
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
