"""The loop: the target's own tokens whatever the drafter, and honest books."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from model.logitspec import (
    DRAFTERS,
    DecodingResult,
    Drafter,
    DraftTree,
    InputError,
    LlamaKVForCausalLM,
    LogitSpecDrafter,
    VanillaDrafter,
    generate,
)

PROMPT = [5, 6, 7, 8, 5, 6, 7]


class Oracle(Drafter):
    """Drafts what is to come: `future` below the root, wrong branches before and after."""

    def __init__(self, future: Sequence[int], ahead: int) -> None:
        self.future, self.ahead, self.at = list(future), ahead, 0
        self.capacity = 1 + ahead + 6

    def reset(self, prompt_ids: Sequence[int]) -> None:
        self.at = 0

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        tree = DraftTree(root, self.capacity)
        tree.add_branch([90, 91, 92])
        tree.add_branch(self.future[self.at + 1 : self.at + 1 + self.ahead])
        tree.add_branch([93, 94, 95])
        return tree

    def observe(self, tree: DraftTree, path: Sequence[int]) -> None:
        self.at += len(path)


def vanilla(model: LlamaKVForCausalLM, new: int, eos: Sequence[int] = ()) -> DecodingResult:
    return generate(model, PROMPT, VanillaDrafter(), max_new_tokens=new, eos_token_ids=eos)


def check_books(result: DecodingResult) -> None:
    assert sum(result.accept_lengths) == len(result.tokens)
    assert len(result.tree_sizes) == result.steps
    assert all(a <= n for a, n in zip(result.accept_lengths, result.tree_sizes, strict=True))
    assert result.mean_accepted_tokens == len(result.tokens) / result.steps


def test_vanilla_commits_one_token_a_step(tiny: LlamaKVForCausalLM) -> None:
    result = vanilla(tiny, 30)
    assert result.accept_lengths == result.tree_sizes == [1] * 30
    assert result.prompt_tokens == len(PROMPT)
    seconds = (result.prefill_seconds, result.verify_seconds, result.commit_seconds)
    assert all(s > 0 for s in seconds)


@pytest.mark.parametrize("name", sorted(DRAFTERS))
def test_every_drafter_gives_the_targets_own_tokens(tiny: LlamaKVForCausalLM, name: str) -> None:
    result = generate(tiny, PROMPT, DRAFTERS[name](), max_new_tokens=100)
    assert result.tokens == vanilla(tiny, 100).tokens
    check_books(result)


@pytest.mark.parametrize("ahead", [1, 2, 5, 9])
def test_right_drafts_are_accepted_whole_between_wrong_ones(
    tiny: LlamaKVForCausalLM, ahead: int
) -> None:
    expected = vanilla(tiny, 40).tokens
    result = generate(tiny, PROMPT, Oracle(expected, ahead), max_new_tokens=40)
    assert result.tokens == expected
    full, rest = divmod(40, ahead + 1)
    assert result.accept_lengths == [ahead + 1] * full + [rest] * (rest > 0)
    check_books(result)


def test_output_ends_with_the_first_eos_inside_a_path(tiny: LlamaKVForCausalLM) -> None:
    free = vanilla(tiny, 40).tokens
    eos = free[7]
    cut = free[: free.index(eos) + 1]
    result = generate(tiny, PROMPT, Oracle(free, 9), max_new_tokens=40, eos_token_ids=[eos, 96])
    assert result.tokens == cut == vanilla(tiny, 40, [eos]).tokens
    check_books(result)


@pytest.mark.parametrize("new", [1, 2, 13])
def test_max_new_tokens_is_never_exceeded(tiny: LlamaKVForCausalLM, new: int) -> None:
    expected = vanilla(tiny, 40).tokens
    result = generate(tiny, PROMPT, Oracle(expected, 9), max_new_tokens=new)
    assert result.tokens == expected[:new]
    check_books(result)


def test_the_last_position_of_the_model_can_be_used(tiny: LlamaKVForCausalLM) -> None:
    room = tiny.max_positions - len(PROMPT)
    result = generate(tiny, PROMPT, LogitSpecDrafter(), max_new_tokens=room)
    assert len(result.tokens) == room
    with pytest.raises(InputError, match="exceed the model's 512 positions"):
        generate(tiny, PROMPT, LogitSpecDrafter(), max_new_tokens=room + 1)


def test_calls_do_not_leak_into_each_other(tiny: LlamaKVForCausalLM) -> None:
    drafter = LogitSpecDrafter(draft_tree_capacity=16)
    first = generate(tiny, PROMPT, drafter, max_new_tokens=50)
    generate(tiny, list(range(3, 60)), drafter, max_new_tokens=80)
    again = generate(tiny, PROMPT, drafter, max_new_tokens=50)
    assert (first.tokens, first.accept_lengths) == (again.tokens, again.accept_lengths)


def test_committed_tokens_are_streamed(tiny: LlamaKVForCausalLM) -> None:
    steps: list[list[int]] = []
    expected = vanilla(tiny, 20).tokens
    result = generate(tiny, PROMPT, Oracle(expected, 3), max_new_tokens=20, on_commit=steps.append)
    assert [len(step) for step in steps] == result.accept_lengths
    assert list(itertools.chain(*steps)) == result.tokens


def test_a_drafter_over_its_capacity_is_refused(tiny: LlamaKVForCausalLM) -> None:
    class Greedy(Oracle):
        def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
            self.capacity = 7
            return super().draft(root, top_ids)

    greedy = Greedy([], ahead=0)
    greedy.capacity = 2
    tiny._cache = None
    with pytest.raises(InputError, match=f"7 more tokens after 7 do not fit the {7 + 4 + 2} slots"):
        generate(tiny, PROMPT, greedy, max_new_tokens=4)


@pytest.mark.parametrize(
    ("prompt", "new", "message"),
    [([], 5, "the prompt is empty"), (PROMPT, 0, "max_new_tokens is 0")],
)
def test_nothing_to_do_is_refused(
    tiny: LlamaKVForCausalLM, prompt: list[int], new: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        generate(tiny, prompt, VanillaDrafter(), max_new_tokens=new)


def test_200_tokens_of_the_default_model_equal_generate(
    default_model: LlamaKVForCausalLM, default_model_path: str, default_tokenizer: Any
) -> None:
    messages = [{"role": "user", "content": "Tell me the story of the wolf and the seven kids."}]
    prompt = default_tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    reference = AutoModelForCausalLM.from_pretrained(default_model_path, dtype=torch.float32)
    output = reference.generate(torch.tensor([prompt]), max_new_tokens=200, do_sample=False)
    expected = output[0, len(prompt) :].tolist()
    assert len(expected) == 200
    for drafter in (VanillaDrafter(), LogitSpecDrafter(draft_tree_capacity=16)):
        result = generate(default_model, prompt, drafter, max_new_tokens=200, eos_token_ids=[2])
        assert result.tokens == expected
