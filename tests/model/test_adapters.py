"""Models of PEFT: adapters act as in transformers, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from model.logitspec import InputError

from .test_wrapping import ours, theirs, through_generate


@pytest.fixture
def model(tiny_path: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_path, dtype=torch.float64)


def with_lora(model: Any, **options: Any) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=["q_proj", "up_proj"], init_lora_weights=False, **options
    )
    return peft.get_peft_model(model, config)


def test_adapters_act_as_they_do_in_transformers(model: Any) -> None:
    plain = theirs(model)
    adapted = with_lora(model)
    active = theirs(adapted)
    assert active != plain

    def check(wanted: list[int]) -> None:
        assert theirs(adapted) == wanted
        assert ours(adapted) == ours(adapted.get_base_model()) == wanted
        assert through_generate(adapted) == wanted

    check(active)
    with adapted.disable_adapter():
        check(plain)
    check(active)
    adapted.merge_adapter()
    check(active)
    adapted.unmerge_adapter()
    check(active)
    merged = adapted.merge_and_unload()
    assert ours(merged) == theirs(merged) == active


def test_modules_to_save_are_called(model: Any) -> None:
    adapted = with_lora(model, modules_to_save=["lm_head", "embed_tokens"])
    with torch.no_grad():
        adapted.get_base_model().lm_head.modules_to_save["default"].weight.mul_(-1)
    assert ours(adapted) == theirs(adapted)
    with adapted.disable_adapter():
        assert ours(adapted) == theirs(adapted)


def test_adapters_outside_of_the_layers_are_refused(model: Any) -> None:
    peft = pytest.importorskip("peft")
    plain = theirs(model)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    adapted = peft.get_peft_model(model, config)
    assert theirs(adapted) != plain
    with pytest.raises(InputError, match=r"this PeftModelForCausalLM \(PROMPT_TUNING\) is not in"):
        ours(adapted)
    with pytest.raises(InputError, match="has a forward that was replaced"):
        through_generate(adapted)
    with adapted.disable_adapter():
        assert ours(adapted) == plain


def test_adapters_of_norms_are_refused_while_they_count(model: Any) -> None:
    peft = pytest.importorskip("peft")
    plain = theirs(model)
    adapted = peft.get_peft_model(model, peft.LNTuningConfig(target_modules=["input_layernorm"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "ln_tuning" in name:
                parameter.mul_(-1.5)
    assert theirs(adapted) != plain
    with pytest.raises(InputError, match="input_layernorm of the LlamaForCausalLM is of the class"):
        ours(adapted)
    with adapted.disable_adapter():
        assert ours(adapted) == plain


def test_mixed_adapters_are_in_the_layers(model: Any) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    mixed = peft.PeftMixedModel(model, config, adapter_name="default")
    assert ours(mixed) == theirs(mixed.base_model.model)


def test_an_adapter_around_a_layer_is_refused(model: Any) -> None:
    peft = pytest.importorskip("peft")
    plain = theirs(model)
    config = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1)
    adapted = peft.get_peft_model(model, config)
    with pytest.raises(InputError, match="self_attn of the LlamaForCausalLM is of the class Ada"):
        ours(adapted)
    with adapted.disable_adapter():
        assert ours(adapted) == plain


def test_adapters_that_begin_at_a_token_are_refused(model: Any) -> None:
    """Activated LoRA, which the PeftModel switches on within a text."""
    plain = theirs(model)
    adapted = with_lora(model, alora_invocation_tokens=[7, 8], task_type="CAUSAL_LM")
    with pytest.raises(InputError, match=r"\(LORA\) is not in the layers of its base model alone"):
        ours(adapted)
    with adapted.disable_adapter():
        assert ours(adapted) == plain
