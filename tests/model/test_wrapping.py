"""wrap(): what is a model, whose layers run, and what is refused in one sentence."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
)

from model.logitspec import InputError, PromptLookupDrafter, custom_generate, generate, wrap

from ..conftest import TINY, save_tiny

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


def with_config(module: Any, config: Any) -> Any:
    module.config = config
    return module


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda model: None, "the model is None; give one that logitspec.load"),
        (lambda model: 7, "the model is of the type int; give one that"),
        (lambda model: "some/path", "the model is a path, 'some/path'; logitspec.load"),
        (lambda model: Path("x"), "the model is a path, 'x'; logitspec.load"),
        (lambda model: torch.jit.trace(nn.Linear(2, 2), torch.ones(2)), "is no model of transf"),
        (
            lambda model: with_config(nn.Linear(2, 2), {"model_type": "llama"}),
            "it has no config of",
        ),
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
        (
            lambda m: setattr(m.model.norm, "variance_epsilon", 0.5),
            r"model.norm.variance_epsilon of the LlamaForCausalLM is 0\.5, not 1e-06 as its config",
        ),
        (
            lambda m: setattr(m.model.layers[1].self_attn, "scaling", 0.25),
            r"model.layers.1.self_attn.scaling of the LlamaForCausalLM is 0\.25, not 0\.35",
        ),
        (other_class, "Louder is no LlamaForCausalLM of transformers"),
        (
            other_mlp,
            "model.layers.1.mlp of the LlamaForCausalLM is of the class Doubled, not LlamaMLP",
        ),
        (
            other_activation,
            "model.layers.2.mlp.act_fn of the LlamaForCausalLM is of the class GELU, not",
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


def test_a_number_changed_after_wrapping_is_refused(model: Any) -> None:
    assert ours(model) == theirs(model)
    model.model.layers[0].input_layernorm.variance_epsilon = 0.5
    with pytest.raises(InputError, match=r"layers.0.input_layernorm.variance_epsilon of the Llama"):
        ours(model)


class OwnConfig(LlamaConfig):  # type: ignore[misc]
    """A user's, of the same kind."""


def test_a_subclass_of_the_config_is_as_good(tiny_path: str) -> None:
    config = OwnConfig(**LlamaConfig.from_pretrained(tiny_path).to_dict())
    own = LlamaForCausalLM(config).to(torch.float64).eval()
    assert ours(own) == theirs(own)


def test_dynamic_frequencies_are_those_of_the_length(tmp_path: Path) -> None:
    """transformers changes them for a long text, and back for a short one."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    path = save_tiny(tmp_path / "m", LlamaConfig(**TINY, rope_parameters=rope))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    wanted = theirs(model)
    with torch.no_grad():
        model(torch.arange(3, 90).repeat(9)[None])  # over its 512 positions
    assert ours(model) == wanted
    again = wrap(model)
    assert theirs(model) == wanted
    assert wrap(model) is again  # what changes with the length is no change of the model


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


# Arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_new_tokens": None}, "max_new_tokens is None; give a whole number, 1 or more"),
        ({"max_new_tokens": "9"}, "max_new_tokens is '9'; give a whole number"),
        ({"max_new_tokens": 2.5}, r"max_new_tokens is 2\.5; give a whole number"),
        ({"max_new_tokens": True}, "max_new_tokens is True; give a whole number"),
        ({"eos_token_ids": "</s>"}, "eos_token_ids is '</s>'; give a token id, or several"),
        ({"eos_token_ids": [2, None]}, "eos_token_ids holds None; give a token id, or several"),
        ({"temperature": None}, "temperature is None; give 0, which is greedy, or"),
        ({"temperature": "hot"}, "temperature is 'hot'; give 0, which is greedy, or"),
        ({"temperature": 1.0, "top_k": 2.5}, r"top_k is 2\.5; give 0 \(all tokens\) or more"),
        ({"temperature": 1.0, "top_p": None}, "top_p is None; give more than 0"),
        ({"seed": "one"}, "seed is 'one'; give 0 or more"),
        ({"method": None}, "no method None; there are"),
        ({"method": ["pld"]}, r"no method \['pld'\]; there are"),
        ({"method": PromptLookupDrafter}, r"the class PromptLookupDrafter; give a drafter, Pro"),
        ({"method": "pld@8"}, "no method 'pld@8': pld has no draft-tree capacity; give 'pld'"),
        ({"method": "logitspec@much"}, "draft_tree_capacity is 'much'; give a number or auto"),
        ({"method": "logitspec@0"}, "draft_tree_capacity is 0; give 1 or more"),
        ({"method": "racer@auto"}, "draft_tree_capacity is 'auto'; give 1 or more"),
        ({"input_ids": None}, "input_ids is of the type NoneType; give the token ids of one"),
        ({"input_ids": "text"}, "input_ids is of the type str; give the token ids of one"),
        ({"input_ids": [1, True]}, "input_ids holds 'True', which is no token id; give the"),
    ],
)
def test_arguments_that_make_no_sense_are_named(
    model: Any, options: dict[str, Any], complaint: str
) -> None:
    given: dict[str, Any] = {"input_ids": PROMPT, "max_new_tokens": 5, "method": "pld"} | options
    with pytest.raises(InputError, match=complaint):
        generate(model, **given)


def test_a_method_may_have_its_capacity_in_its_name(model: Any) -> None:
    found = generate(model, PROMPT, "logitspec@5", max_new_tokens=NEW, eos_token_ids=())
    assert max(found.tree_sizes) == 5
    assert found.tokens == ours(model)


def test_one_eos_id_is_as_a_list_of_one(model: Any) -> None:
    plain = ours(model)
    end = plain[6]
    numpys = (np.int64(end), np.array(end), np.array([end]))
    for given in (end, [end], {end}, torch.tensor(end), torch.tensor([end]), *numpys):
        found = generate(model, PROMPT, "pld", max_new_tokens=NEW, eos_token_ids=given)
        assert found.tokens == plain[: plain.index(end) + 1]


def test_numbers_of_numpy_are_numbers(model: Any) -> None:
    options = {
        "temperature": np.float64(0.7),
        "top_k": np.int64(9),
        "max_new_tokens": np.int64(NEW),
    }
    first = generate(model, np.array(PROMPT), "pld", seed=np.int64(5), **options)
    again = generate(model, PROMPT, "pld", seed=5, temperature=0.7, top_k=9, max_new_tokens=NEW)
    assert first.tokens == again.tokens


def test_a_streamer_is_told_nothing_of_a_call_that_is_refused(model: Any) -> None:
    class Silent:
        def put(self, value: Any) -> None:
            raise AssertionError("it was told")

        end = put

    for wrong in ({"max_new_tokens": 0}, {"max_new_tokens": 5, "eos_token_ids": "x"}):
        with pytest.raises(InputError):
            generate(model, PROMPT, "pld", streamer=Silent(), **wrong)
