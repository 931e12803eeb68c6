"""The package as users have it: generate(), models of transformers, docs/api.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessorList,
    StoppingCriteriaList,
    StopStringCriteria,
    TextIteratorStreamer,
)
from transformers.generation import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.streamers import BaseStreamer

from model.logitspec import (
    InputError,
    LlamaKVForCausalLM,
    PromptLookupDrafter,
    VanillaDrafter,
    custom_generate,
    decode,
    generate,
    wrap,
)
from model.logitspec.decoding import Step

ROOT = Path(__file__).parents[2]
PROMPT = [5, 6, 7, 8, 5, 6, 7]
LEARNT = {"method": PromptLookupDrafter()}  # drafts something without measuring anything


@pytest.fixture(scope="module")
def theirs(tiny_path: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_path, dtype=torch.float64)


class Noting(BaseStreamer):  # type: ignore[misc]
    def __init__(self) -> None:
        self.puts: list[list[int]] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.puts.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


def test_examples_of_the_page_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs" / "api.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) >= 7
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/api.md", "exec"), names)
    assert names["first"].tokens and names["seen"] and names["steps"]
    assert names["first"].tokens != names["result"].tokens
    assert len(names["first"].tokens) == len(names["again"].tokens)


def test_generate_is_the_loop_with_the_checkpoints_eos(tiny: LlamaKVForCausalLM) -> None:
    plain = decode(tiny, PROMPT, VanillaDrafter(), max_new_tokens=60).tokens
    assert tiny.eos_token_ids == {2}
    for ids in (PROMPT, torch.tensor(PROMPT), torch.tensor([PROMPT])):
        result = generate(tiny, ids, "pld", max_new_tokens=60, eos_token_ids=())
        assert result.tokens == plain
    ends = plain[20]
    result = generate(tiny, PROMPT, "logitspec", max_new_tokens=60, eos_token_ids={ends})
    assert result.tokens == plain[: plain.index(ends) + 1]
    assert generate(tiny, PROMPT, "vanilla", max_new_tokens=5).tokens == plain[:5]


def test_streamers_and_callbacks_are_told_every_step(tiny: LlamaKVForCausalLM) -> None:
    streamer = Noting()
    committed: list[list[int]] = []
    steps: list[Step] = []
    result = generate(
        tiny, PROMPT, "logitspec", max_new_tokens=30, eos_token_ids=(), streamer=streamer,
        on_commit=committed.append, on_step=steps.append,
    )  # fmt: skip
    assert streamer.ended and streamer.puts[0] == PROMPT
    assert streamer.puts[1:] == committed
    assert [t for tokens in committed for t in tokens] == result.tokens
    assert [len(step.tree) for step in steps] == result.tree_sizes
    assert [len(step.origins) for step in steps] == result.tree_sizes
    assert [[s.tree.tokens[node] for node in s.path] for s in steps] == committed


def test_seeds(tiny: LlamaKVForCausalLM) -> None:
    def tokens(**options: Any) -> list[int]:
        return generate(tiny, PROMPT, "pld", max_new_tokens=30, eos_token_ids=(), **options).tokens

    assert tokens(temperature=2.0, seed=1) == tokens(temperature=2.0, seed=1)
    assert tokens(temperature=2.0) != tokens(temperature=2.0)
    assert tokens() == tokens(seed=3)


def after(count: int) -> Callable[..., torch.Tensor]:
    def criterion(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        assert scores is None
        return torch.full((len(ids),), ids.shape[1] >= len(PROMPT) + count)

    return criterion


@pytest.mark.parametrize("count", [1, 2, 7, 29])
def test_a_criterion_ends_it_at_the_very_token(tiny: LlamaKVForCausalLM, count: int) -> None:
    criteria = StoppingCriteriaList([after(count)])
    plain = generate(tiny, PROMPT, "vanilla", max_new_tokens=30, eos_token_ids=())
    result = generate(
        tiny, PROMPT, "pld", max_new_tokens=30, eos_token_ids=(), stopping_criteria=criteria
    )
    assert result.tokens == plain.tokens[:count]
    assert sum(result.accept_lengths) == count


def test_what_generate_cannot_do_is_refused(tiny: LlamaKVForCausalLM) -> None:
    for call, complaint in (
        (lambda: generate(tiny, PROMPT, "nothing"), "no method 'nothing'; there are"),
        (lambda: generate(tiny, torch.zeros(2, 5).long()), r"int64 \[2, 5\]; give the token ids"),
        (lambda: generate(tiny, torch.zeros(1, 5)), r"float32 \[5\]"),
        (lambda: generate(tiny, ["a"]), "which is no token id"),  # type: ignore[list-item]
        (lambda: generate(tiny, []), "the prompt is empty"),
        (lambda: generate(tiny, [5, 97]), "ids outside the vocabulary of 97 tokens"),
        (lambda: generate(tiny, [-1]), "ids outside the vocabulary"),
        (lambda: generate(tiny, PROMPT, "pld", max_new_tokens=0), "max_new_tokens is 0"),
        (lambda: generate(tiny, PROMPT, "pld", max_new_tokens=9999), "exceed the model's 512"),
        (lambda: generate(tiny, PROMPT, temperature=-1), "temperature is -1"),
    ):
        with pytest.raises(InputError, match=complaint):
            call()


def test_transformers_own_model_gives_its_own_output(theirs: Any) -> None:
    ids = torch.tensor([PROMPT])
    before = {name: p.clone() for name, p in theirs.named_parameters()}
    options = {"max_new_tokens": 50, "do_sample": False}
    wanted = theirs.generate(ids, **options)
    found = theirs.generate(ids, custom_generate=custom_generate, **LEARNT, **options)
    assert torch.equal(found, wanted)
    assert torch.equal(theirs.generate(ids, **options), wanted)  # and still can
    for name, parameter in theirs.named_parameters():
        assert torch.equal(parameter, before[name])
    ours = wrap(theirs)
    assert wrap(theirs) is ours and wrap(ours) is ours
    held = {p.data_ptr() for p in theirs.parameters()}
    assert {p.data_ptr() for p in ours.parameters()} <= held  # no weight is there twice
    output = theirs.generate(
        ids, custom_generate=custom_generate, return_dict_in_generate=True, **LEARNT, **options
    )
    assert torch.equal(output.sequences, wanted)
    assert sum(output.decoding.accept_lengths) == wanted.shape[1] - len(PROMPT)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.4},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 30},
        {"bad_words_ids": [[9], [11, 12]]},
        {"suppress_tokens": [3, 4, 5]},
        {"begin_suppress_tokens": [40, 41]},
        {"forced_eos_token_id": 2},
        {"sequence_bias": [[[9], 5.0]]},
        {"exponential_decay_length_penalty": (5, 1.5)},
        {"eos_token_id": [2, 44, 17]},
        {"renormalize_logits": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_transformers_hold(theirs: Any, options: dict[str, Any]) -> None:
    ids = torch.tensor([PROMPT])
    options = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0} | options
    wanted = theirs.generate(ids, **options)
    found = theirs.generate(ids, custom_generate=custom_generate, method="logitspec", **options)
    assert torch.equal(found, wanted)


def test_sampling_follows_torchs_seed(theirs: Any) -> None:
    def tokens(seed: int, method: str) -> list[int]:
        torch.manual_seed(seed)
        options = {"do_sample": True, "temperature": 1.5, "top_k": 40, "max_new_tokens": 30}
        ids = torch.tensor([PROMPT])
        return list(
            theirs.generate(ids, custom_generate=custom_generate, method=method, **options)[0]
        )

    assert tokens(1, "pld") == tokens(1, "logitspec") != tokens(2, "pld")


def test_streamer_criteria_and_processors_of_the_call_hold(theirs: Any) -> None:
    class Seven:
        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores = scores.clone()
            scores[ids[:, -1] == 9, 7] = 1e4  # after a 9 comes a 7
            scores[ids[:, -1] != 9, 9] += 3.0
            return scores

    ids, streamer = torch.tensor([PROMPT]), Noting()
    options = {
        "max_new_tokens": 40,
        "do_sample": False,
        "logits_processor": LogitsProcessorList([Seven()]),
        "stopping_criteria": StoppingCriteriaList([after(23)]),
    }
    wanted = theirs.generate(ids, **options)
    found = theirs.generate(
        ids, custom_generate=custom_generate, method="logitspec", streamer=streamer, **options
    )
    assert torch.equal(found, wanted) and found.shape[1] <= len(PROMPT) + 23
    assert streamer.ended and streamer.puts[0] == PROMPT
    assert [t for put in streamer.puts for t in put] == found[0].tolist()


def test_an_own_end_holds(theirs: Any) -> None:
    ids = torch.tensor([PROMPT])
    plain = theirs.generate(ids, max_new_tokens=40, do_sample=False, eos_token_id=None)
    token = int(plain[0, len(PROMPT) + 9])
    for criterion in (MaxLengthCriteria(20), EosTokenCriteria([token])):
        options: dict[str, Any] = {
            "max_new_tokens": 40, "do_sample": False, "pad_token_id": 0,
            "stopping_criteria": StoppingCriteriaList([criterion]),
        }  # fmt: skip
        wanted = theirs.generate(ids, **options)
        found = theirs.generate(ids, custom_generate=custom_generate, method="logitspec", **options)
        assert torch.equal(found, wanted) and found.shape[1] < len(PROMPT) + 40


def test_a_constraint_is_asked_of_what_is_reached_only(theirs: Any) -> None:
    ids = torch.tensor([PROMPT])
    asked: list[list[int]] = []

    def allowed(batch: int, context: torch.Tensor) -> list[int]:
        assert batch == 0
        asked.append(context.tolist())
        if len(context) >= len(PROMPT) + 30:
            raise IndexError("transformers asks for nothing behind the last token")
        return list(range(3, 40)) if int(context[-1]) % 2 else list(range(40, 97))

    options: dict[str, Any] = {
        "max_new_tokens": 30, "do_sample": False, "prefix_allowed_tokens_fn": allowed,
    }  # fmt: skip
    wanted = theirs.generate(ids, **options)
    asked.clear()
    found = theirs.generate(ids, custom_generate=custom_generate, method="logitspec", **options)
    assert torch.equal(found, wanted)
    whole = found[0].tolist()
    assert all(context == whole[: len(context)] for context in asked)


def test_a_constraint_is_not_asked_what_follows_the_end(theirs: Any) -> None:
    """As with a trie of allowed answers, which has nothing behind EOS; the prompt may hold one."""
    answers = [[5, 6, 7, 2], [5, 6, 8, 9, 2]]
    prompt = [*PROMPT, 2]

    def allowed(batch: int, context: torch.Tensor) -> list[int]:
        own = context.tolist()[len(prompt) :]
        return [answer[len(own)] for answer in answers if answer[: len(own)] == own != answer]

    options: dict[str, Any] = {
        "max_new_tokens": 30, "do_sample": False, "prefix_allowed_tokens_fn": allowed,
    }  # fmt: skip
    ids = torch.tensor([prompt])
    wanted = theirs.generate(ids, eos_token_id=2, **options)
    for method in ("vanilla", "logitspec", "pld"):
        found = theirs.generate(
            ids, eos_token_id=2, custom_generate=custom_generate, method=method, **options
        )
        assert torch.equal(found, wanted) and found[0, len(prompt) :].tolist() in answers


def test_weights_that_change_after_wrapping_count(tiny_path: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_path, dtype=torch.float32)
    ids = torch.tensor([PROMPT])
    options: dict[str, Any] = {"max_new_tokens": 30, "do_sample": False}
    first = wrap(model, cpu_kernels="packed")
    before = model.generate(ids, custom_generate=custom_generate, method="pld", **options)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(-1.0)
    after = model.generate(ids, custom_generate=custom_generate, method="pld", **options)
    assert not torch.equal(before, after)
    assert torch.equal(after, model.generate(ids, **options))
    assert wrap(model) is not first
    model.model.layers[1].mlp.up_proj.weight.data.mul_(-1.0)
    found = model.generate(ids, custom_generate=custom_generate, method="pld", **options)
    assert torch.equal(found, before)
    model.to(torch.float64)
    found = model.generate(ids, custom_generate=custom_generate, method="pld", **options)
    assert torch.equal(found, model.generate(ids, **options))


def test_a_model_made_in_inference_mode_can_be_wrapped(tiny_path: str) -> None:
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(tiny_path, dtype=torch.float32)
        options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
        ids = torch.tensor([PROMPT])
        found = model.generate(ids, custom_generate=custom_generate, method="pld", **options)
        assert torch.equal(found, model.generate(ids, **options))
        assert (
            generate(model, PROMPT, "pld", max_new_tokens=8).tokens
            == found[0, len(PROMPT) :].tolist()
        )


def test_hooks_are_refused_for_they_would_not_run(tiny_path: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_path, dtype=torch.float32)
    hook = model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match=r"model.layers.1.mlp has forward hooks"):
        generate(model, PROMPT)
    hook.remove()
    assert generate(model, PROMPT, "pld", max_new_tokens=2).tokens


def test_text_streams_through_a_thread(chat_path: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat_path)
    model = AutoModelForCausalLM.from_pretrained(chat_path, dtype=torch.float32)
    ids = tokenizer("Hello there", return_tensors="pt").input_ids
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    output = model.generate(
        ids, custom_generate=custom_generate, method="pld", streamer=streamer, max_new_tokens=12,
        do_sample=False,
    )  # fmt: skip
    assert "".join(streamer) == tokenizer.decode(output[0, ids.shape[1] :])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"num_beams": 3}, "num_beams"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences"),
        ({"prompt_lookup_num_tokens": 5}, "prompt_lookup_num_tokens"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states"),
        ({"use_cache": False}, "use_cache=False"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"synced_gpus": True}, "synced_gpus"),
        ({"assistant_early_exit": 2}, "assistant_early_exit"),
        ({"position_ids": torch.arange(1, 8)[None]}, "position_ids"),
        ({"guidance_scale": 2.0}, "UnbatchedClassifierFreeGuidance"),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1, 1]])}, "an attention_mask with zeros"),
        ({"method": "nothing"}, "no method 'nothing'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_options_are_refused_by_name(
    theirs: Any, options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        theirs.generate(
            torch.tensor([PROMPT]), custom_generate=custom_generate, max_new_tokens=5, **options
        )


def test_assistants_batches_and_other_models_are_refused(theirs: Any, tiny_path: str) -> None:
    assistant = AutoModelForCausalLM.from_pretrained(tiny_path, dtype=torch.float64)
    with pytest.raises(InputError, match="assistant_model"):
        theirs.generate(
            torch.tensor([PROMPT]), custom_generate=custom_generate, assistant_model=assistant,
            max_new_tokens=5,
        )  # fmt: skip
    with pytest.raises(InputError, match=r"\[2, 7\]; give the token ids of one prompt"):
        theirs.generate(
            torch.tensor([PROMPT, PROMPT]), custom_generate=custom_generate, max_new_tokens=5
        )
    from transformers import GPT2Config, GPT2LMHeadModel

    other = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(InputError, match="GPT2LMHeadModel is of the architecture 'gpt2'"):
        wrap(other)


def test_stop_strings_end_where_transformers_ends(
    default_model_path: str, default_tokenizer: Any
) -> None:
    model = AutoModelForCausalLM.from_pretrained(default_model_path, dtype=torch.float32)
    messages = [{"role": "user", "content": "Count from one to ten in words."}]
    ids = default_tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    ends = ["four", "3"]
    wanted = model.generate(
        **ids, tokenizer=default_tokenizer, stop_strings=ends, max_new_tokens=40, do_sample=False
    )
    criteria = StoppingCriteriaList([StopStringCriteria(default_tokenizer, ends)])
    result = generate(
        wrap(model), ids["input_ids"], "logitspec", max_new_tokens=40, stopping_criteria=criteria
    )
    assert result.tokens == wanted[0, ids["input_ids"].shape[1] :].tolist()
    assert len(result.tokens) < 40
