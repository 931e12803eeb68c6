"""The loop: the target's own tokens whatever the drafter, and honest books."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib.util import find_spec
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
    decode,
)
from model.logitspec.ledger import has_drafts_below
from model.logitspec.prefill import last_logits

from ..conftest import new_drafter

PROMPT = [5, 6, 7, 8, 5, 6, 7]


class Oracle(Drafter):
    """Drafts what is to come: `future` below the root, wrong branches before and after."""

    def __init__(self, future: Sequence[int], ahead: int) -> None:
        self.future, self.ahead, self.at = list(future), ahead, 0
        self.capacity = 1 + ahead + 6

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        self.at = 0

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        tree = DraftTree(root, self.capacity)
        tree.add_branch([90, 91, 92])
        tree.add_branch(self.future[self.at + 1 : self.at + 1 + self.ahead])
        tree.add_branch([93, 94, 95])
        return tree

    def observe(
        self, tree: DraftTree, path: Sequence[int], top_ids: Sequence[Sequence[int]] = ()
    ) -> None:
        self.at += len(path)


def vanilla(model: LlamaKVForCausalLM, new: int, eos: Sequence[int] = ()) -> DecodingResult:
    return decode(model, PROMPT, VanillaDrafter(), max_new_tokens=new, eos_token_ids=eos)


def check_books(result: DecodingResult) -> None:
    assert sum(result.accept_lengths) == len(result.tokens)
    assert len(result.tree_sizes) == len(result.step_seconds) == len(result.misses) == result.steps
    total = sum(
        getattr(result, f"{phase}_seconds")
        for phase in ("draft", "build", "verify", "accept", "commit")
    )
    assert 0 < sum(result.step_seconds) <= total * 1.5
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
    result = decode(tiny, PROMPT, new_drafter(name), max_new_tokens=100)
    assert result.tokens == vanilla(tiny, 100).tokens
    check_books(result)


@pytest.mark.parametrize("ahead", [1, 2, 5, 9])
def test_right_drafts_are_accepted_whole_between_wrong_ones(
    tiny: LlamaKVForCausalLM, ahead: int
) -> None:
    expected = vanilla(tiny, 40).tokens
    result = decode(tiny, PROMPT, Oracle(expected, ahead), max_new_tokens=40)
    assert result.tokens == expected
    full, rest = divmod(40, ahead + 1)
    assert result.accept_lengths == [ahead + 1] * full + [rest] * (rest > 0)
    check_books(result)


def test_a_miss_is_a_step_with_only_wrong_drafts_behind_its_path(
    tiny: LlamaKVForCausalLM,
) -> None:
    expected = vanilla(tiny, 12).tokens
    assert vanilla(tiny, 12).misses == [0] * 12  # nothing was drafted

    class Short(Oracle):
        """One right draft with a wrong one below it, then none at all, in turn."""

        def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
            tree = DraftTree(root, self.capacity)
            if self.at % 3 == 0:
                tree.add_branch([*self.future[self.at + 1 : self.at + 2], 96])
            return tree

    result = decode(tiny, PROMPT, Short(expected, 2), max_new_tokens=12)
    assert result.tokens == expected
    assert result.accept_lengths == [2, 1] * 4
    assert result.misses == [1, 0] * 4


def test_a_miss_may_lie_behind_a_twin_of_the_path() -> None:
    """Branches are not merged: the path may end on one while its equal goes on."""
    tree = DraftTree(1, 9)
    tree.add_branch([3])
    tree.add_branch([3, 4, 5])
    tree.add_branch([6, 7])
    assert has_drafts_below(tree, [0, 1])  # node 1 is a leaf, its twin, node 2, is none
    assert has_drafts_below(tree, [0])
    assert not has_drafts_below(tree, [0, 2, 3, 4])
    assert not has_drafts_below(DraftTree(1, 1), [0])


@pytest.mark.parametrize(
    "name", ["recycling", "racer", "suffix", "lookahead", "sam", "sam_recycling"]
)
def test_at_its_own_capacity_and_warm_a_method_changes_no_token(
    either_model: LlamaKVForCausalLM, default_tokenizer: Any, name: str
) -> None:
    if name == "suffix":
        pytest.importorskip("arctic_inference")
    drafter = DRAFTERS[name]()
    for asked in ("Name five rivers of Europe.", "Name five rivers of Asia."):
        prompt = default_tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}], add_generation_prompt=True, return_dict=False
        )
        result = decode(either_model, prompt, drafter, max_new_tokens=30, eos_token_ids=[2])
        plain = decode(either_model, prompt, VanillaDrafter(), max_new_tokens=30, eos_token_ids=[2])
        assert result.tokens == plain.tokens


def test_ranks_of_the_token_after_the_next(tiny: LlamaKVForCausalLM) -> None:
    """In a step of one node the logits that chose the root also rank the root after it."""

    class Noting(VanillaDrafter):
        name = "noting"
        top_k = 5

        def __init__(self) -> None:
            self.seen: list[list[int]] = []

        def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
            self.seen.append(list(top_ids))
            return super().draft(root, top_ids)

    noting = Noting()
    result = decode(tiny, PROMPT, noting, max_new_tokens=60)
    after = [*result.tokens[1:], None]
    for top, token, found in zip(noting.seen[:-1], after, result.next_next_ranks, strict=False):
        assert found == (top.index(token) if token in top else -1)
    assert len(result.next_next_ranks) == 60
    assert {-1} < set(result.next_next_ranks)  # some among the five, some not
    assert vanilla(tiny, 5).next_next_ranks == []
    eos = result.tokens[9]
    short = decode(tiny, PROMPT, Noting(), max_new_tokens=60, eos_token_ids=[eos])
    assert len(short.next_next_ranks) == len(short.tokens) - 1  # nothing comes after EOS


def test_a_drafter_sees_the_best_tokens_after_every_node_and_prompt_token(
    tiny: LlamaKVForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.logitspec.prefill.LOGITS_ROWS", 3)  # of 7, in three pieces

    class Noting(Oracle):
        node_top_k = 4
        prompt_top_k = 3
        seen: list[tuple[list[int], Sequence[Sequence[int]]]]

        def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
            super().reset(prompt_ids)
            self.seen, self.text = [], list(prompt_ids)
            for end in range(1, len(prompt_ids) + 1):
                self.seen.append((self.text[:end], [top_ids[end - 1]]))

        def observe(
            self, tree: DraftTree, path: Sequence[int], top_ids: Sequence[Sequence[int]] = ()
        ) -> None:
            super().observe(tree, path)
            for node, mask in enumerate(tree.ancestor_mask()):
                way = [tree.tokens[n] for n in range(len(tree)) if mask[n]]
                self.seen.append(([*self.text, *way], [top_ids[node]]))
            self.text += [tree.tokens[node] for node in path]

    noting = Noting(vanilla(tiny, 9).tokens, 2)
    decode(tiny, PROMPT, noting, max_new_tokens=9)
    assert len(noting.seen) > 20
    for text, (best,) in noting.seen:
        if len(text) > len(PROMPT) + 9:  # behind the end of the answer
            assert best == []
            continue
        logits = last_logits(tiny, text)
        assert best == logits.topk(len(best)).indices.tolist()
    assert {len(best) for _, (best,) in noting.seen if best} == {3, 4}


def test_output_ends_with_the_first_eos_inside_a_path(tiny: LlamaKVForCausalLM) -> None:
    free = vanilla(tiny, 40).tokens
    eos = free[7]
    cut = free[: free.index(eos) + 1]
    result = decode(tiny, PROMPT, Oracle(free, 9), max_new_tokens=40, eos_token_ids=[eos, 96])
    assert result.tokens == cut == vanilla(tiny, 40, [eos]).tokens
    check_books(result)


@pytest.mark.parametrize("new", [1, 2, 13])
def test_max_new_tokens_is_never_exceeded(tiny: LlamaKVForCausalLM, new: int) -> None:
    expected = vanilla(tiny, 40).tokens
    result = decode(tiny, PROMPT, Oracle(expected, 9), max_new_tokens=new)
    assert result.tokens == expected[:new]
    check_books(result)


def test_the_last_position_of_the_model_can_be_used(tiny: LlamaKVForCausalLM) -> None:
    room = tiny.max_positions - len(PROMPT)
    result = decode(tiny, PROMPT, LogitSpecDrafter(), max_new_tokens=room)
    assert len(result.tokens) == room
    with pytest.raises(InputError, match="exceed the model's 512 positions"):
        decode(tiny, PROMPT, LogitSpecDrafter(), max_new_tokens=room + 1)


def test_calls_do_not_leak_into_each_other(tiny: LlamaKVForCausalLM) -> None:
    drafter = LogitSpecDrafter(draft_tree_capacity=16)
    first = decode(tiny, PROMPT, drafter, max_new_tokens=50)
    decode(tiny, list(range(3, 60)), drafter, max_new_tokens=80)
    again = decode(tiny, PROMPT, drafter, max_new_tokens=50)
    assert (first.tokens, first.accept_lengths) == (again.tokens, again.accept_lengths)


def test_committed_tokens_are_streamed(tiny: LlamaKVForCausalLM) -> None:
    steps: list[list[int]] = []
    expected = vanilla(tiny, 20).tokens
    result = decode(tiny, PROMPT, Oracle(expected, 3), max_new_tokens=20, on_commit=steps.append)
    assert [len(step) for step in steps] == result.accept_lengths
    assert list(itertools.chain(*steps)) == result.tokens


def test_a_drafter_over_its_capacity_is_refused(tiny: LlamaKVForCausalLM) -> None:
    class Greedy(Oracle):
        def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
            tree = DraftTree(root, 7)
            tree.add_branch([1] * 6)
            return tree

    greedy = Greedy([], ahead=0)
    greedy.capacity = 6
    with pytest.raises(InputError, match="a draft tree of 7 nodes from a drafter whose capacity"):
        decode(tiny, PROMPT, greedy, max_new_tokens=4)


@pytest.mark.parametrize(
    ("prompt", "new", "message"),
    [([], 5, "the prompt is empty"), (PROMPT, 0, "max_new_tokens is 0")],
)
def test_nothing_to_do_is_refused(
    tiny: LlamaKVForCausalLM, prompt: list[int], new: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        decode(tiny, prompt, VanillaDrafter(), max_new_tokens=new)


@pytest.mark.slow
def test_200_tokens_of_the_default_model_equal_generate(
    either_model: LlamaKVForCausalLM, default_model_path: str, default_tokenizer: Any
) -> None:
    messages = [{"role": "user", "content": "Tell me the story of the wolf and the seven kids."}]
    prompt = default_tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    reference = AutoModelForCausalLM.from_pretrained(default_model_path, dtype=torch.float32)
    output = reference.generate(torch.tensor([prompt]), max_new_tokens=200, do_sample=False)
    expected = output[0, len(prompt) :].tolist()
    assert len(expected) == 200
    for name, drafter in DRAFTERS.items():
        if name == "suffix" and find_spec("arctic_inference") is None:
            continue
        if name == "rest":  # needs documents: test_rest.py
            continue
        small = {"draft_tree_capacity": 16} if "draft_tree_capacity" in drafter.options else {}
        result = decode(
            either_model, prompt, drafter(**small), max_new_tokens=200, eos_token_ids=[2]
        )
        assert result.tokens == expected, name
        assert (result.mean_accepted_tokens > 1.05) == (name != "vanilla"), name
