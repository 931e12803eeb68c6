"""wrap(): what is a model, whose layers run, and what is refused in one sentence."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
)

from model.logitspec import InputError, custom_generate, generate, wrap

PROMPT = [5, 6, 7, 8, 5, 6, 7]
NEW = 24


@pytest.fixture
def model(tiny_path: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_path, dtype=torch.float64)


def theirs(model: Any) -> list[int]:
    ids = torch.tensor([PROMPT])
    found = model.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    return list(found[0, len(PROMPT) :].tolist())


def ours(model: Any, method: str = "logitspec") -> list[int]:
    return generate(model, PROMPT, method, max_new_tokens=NEW, eos_token_ids=()).tokens


def through_generate(model: Any) -> list[int]:
    found = model.generate(
        input_ids=torch.tensor([PROMPT]), max_new_tokens=NEW, do_sample=False, eos_token_id=None,
        custom_generate=custom_generate, method="logitspec",
    )  # fmt: skip
    return list(found[0, len(PROMPT) :].tolist())


# What is no model --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda model: None, "the model is None; give one that logitspec.load"),
        (lambda model: 7, "the model is a int; give one that"),
        (lambda model: "some/path", "the model is a path, 'some/path'; logitspec.load"),
        (lambda model: Path("x"), "the model is a path, 'x'; logitspec.load"),
        (lambda model: nn.Linear(2, 2), "Linear is no model of transformers: it has no config"),
        (nn.DataParallel, "the model is a DataParallel over several copies; give its .module"),
        (lambda model: model.model, "LlamaModel is no LlamaForCausalLM of transformers"),
        (
            lambda model: LlamaForSequenceClassification(model.config),
            "LlamaForSequenceClassification is no LlamaForCausalLM of transformers",
        ),
        (
            lambda model: GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=8, n_layer=1, n_head=1)),
            "GPT2LMHeadModel is of the architecture 'gpt2'",
        ),
    ],
)
def test_what_is_no_model_is_refused(
    model: Any, make: Callable[[Any], Any], complaint: str
) -> None:
    assert isinstance(model.model, LlamaModel)
    for call in (wrap, lambda given: generate(given, PROMPT, "pld")):
        with pytest.raises(InputError, match=complaint):
            call(make(model))


# Layers that would not run -----------------------------------------------------------------------


class Doubled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(x)  # type: ignore[no-any-return]


class Louder(LlamaForCausalLM):  # type: ignore[misc]
    def forward(self, *args: Any, **options: Any) -> Any:
        output = super().forward(*args, **options)
        output.logits = -output.logits
        return output


def doubled(module: Any) -> None:
    plain = module.forward
    module.forward = lambda *args, **options: 2 * plain(*args, **options)


def as_method(module: Any) -> None:
    module.forward = types.MethodType(lambda self, x: x, module)


def other_class(model: Any) -> None:
    model.__class__ = Louder


def other_mlp(model: Any) -> None:
    model.model.layers[1].mlp = Doubled(model.model.layers[1].mlp)


def other_activation(model: Any) -> None:
    model.model.layers[2].mlp.act_fn = nn.GELU()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda m: doubled(m.model.layers[1].mlp), "model.layers.1.mlp has a forward that was rep"),
        (lambda m: as_method(m.model.layers[0].mlp), "model.layers.0.mlp has a forward that was"),
        (lambda m: doubled(m.lm_head), "lm_head has a forward that was replaced, which does not"),
        (lambda m: as_method(m.model), "model has a forward that was replaced"),
        (doubled, "LlamaForCausalLM has a forward that was replaced"),
        (other_class, "Louder is no LlamaForCausalLM of transformers"),
        (other_mlp, "model.layers.1.mlp of the LlamaForCausalLM is a Doubled in the place of a "),
        (
            other_activation,
            "model.layers.2.mlp.act_fn of the LlamaForCausalLM is a GELU in the pla",
        ),
    ],
)
def test_layers_that_were_replaced_are_refused(
    model: Any, change: Callable[[Any], Any], complaint: str
) -> None:
    change(model)
    with pytest.raises(InputError, match=complaint):
        through_generate(model)


def test_a_layer_replaced_after_wrapping_is_refused(model: Any) -> None:
    assert through_generate(model) == theirs(model)
    doubled(model.model.layers[1].self_attn)
    with pytest.raises(InputError, match=r"model.layers.1.self_attn has a forward that was replac"):
        through_generate(model)


def test_compiled_models_are_run_by_our_layers(model: Any) -> None:
    """Nothing is compiled here: the eager backend only wraps."""
    wanted = theirs(model)
    model.forward = torch.compile(model.forward, backend="eager")
    model.model.layers[1].forward = torch.compile(model.model.layers[1].forward, backend="eager")
    assert through_generate(model) == wanted
    assert ours(torch.compile(model, backend="eager")) == wanted


def test_linears_of_other_kinds_are_called(model: Any) -> None:
    model.model.layers[1].mlp.down_proj = Doubled(model.model.layers[1].mlp.down_proj)
    assert ours(model) == theirs(model)


def test_models_that_accelerate_has_spread_are_run(tiny_path: str) -> None:
    from accelerate import dispatch_model

    plain = AutoModelForCausalLM.from_pretrained(tiny_path, dtype=torch.float64)
    wanted = theirs(plain)
    spread = dispatch_model(
        plain, {"model.embed_tokens": "cpu", "model.layers": "cpu", "model.norm": "cpu",
                "model.rotary_emb": "cpu", "lm_head": "cpu"},
        main_device="cpu", force_hooks=True,
    )  # fmt: skip
    assert any(hasattr(module, "_hf_hook") for module in spread.modules())
    assert ours(spread) == wanted
    doubled(spread.model.layers[0].mlp)
    with pytest.raises(InputError, match=r"model.layers.0.mlp has a forward that was replaced"):
        ours(spread)


def test_positions_turn_as_the_models_own_do(model: Any) -> None:
    """As after model.half(), which rounds the frequencies too."""
    before = theirs(model)
    assert ours(model) == before
    model.model.rotary_emb.inv_freq.mul_(0.25)
    assert theirs(model) != before
    assert ours(model) == theirs(model)


# Adapters ----------------------------------------------------------------------------------------


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


def test_an_adapter_around_a_layer_is_refused(model: Any) -> None:
    peft = pytest.importorskip("peft")
    config = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1)
    adapted = peft.get_peft_model(model, config)
    with pytest.raises(
        InputError, match=r"self_attn of the LlamaForCausalLM is a AdaptedAttention"
    ):
        ours(adapted)


# Arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_new_tokens": None}, "max_new_tokens is None; give 1 or more"),
        ({"max_new_tokens": "9"}, "max_new_tokens is '9'; give 1 or more"),
        ({"max_new_tokens": 2.5}, r"max_new_tokens is 2\.5; give 1 or more"),
        ({"max_new_tokens": True}, "max_new_tokens is True; give 1 or more"),
        ({"eos_token_ids": "</s>"}, "eos_token_ids is '</s>'; give a token id, or several"),
        ({"eos_token_ids": [2, None]}, r"eos_token_ids is \[2, None\]; give a token id, or sev"),
        ({"temperature": None}, "temperature is None; give 0, which is greedy, or"),
        ({"temperature": "hot"}, "temperature is 'hot'; give 0, which is greedy, or"),
        ({"temperature": 1.0, "top_k": 2.5}, r"top_k is 2\.5; give 0 \(all tokens\) or more"),
        ({"temperature": 1.0, "top_p": None}, "top_p is None; give more than 0"),
        ({"seed": "one"}, "seed is 'one'; give 0 or more"),
        ({"method": None}, "no method None; there are"),
        ({"method": ["pld"]}, r"no method \['pld'\]; there are"),
        ({"input_ids": None}, "input_ids holds what is no token id"),
        ({"input_ids": "text"}, "input_ids holds what is no token id"),
        ({"input_ids": [1, True]}, "input_ids holds what is no token id"),
    ],
)
def test_arguments_that_make_no_sense_are_named(
    model: Any, options: dict[str, Any], complaint: str
) -> None:
    given: dict[str, Any] = {"input_ids": PROMPT, "max_new_tokens": 5, "method": "pld"} | options
    with pytest.raises(InputError, match=complaint):
        generate(model, **given)


def test_one_eos_id_is_as_a_list_of_one(model: Any) -> None:
    plain = ours(model)
    end = plain[6]
    for given in (end, [end], {end}, torch.tensor(end), torch.tensor([end])):
        found = generate(model, PROMPT, "pld", max_new_tokens=NEW, eos_token_ids=given)
        assert found.tokens == plain[: plain.index(end) + 1]
