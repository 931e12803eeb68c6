"""LogitSpec's tree on worked examples, and what holds for every registered drafter."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.logitspec import DRAFTERS, DraftTree, InputError, LogitSpecDrafter, register
from model.logitspec.drafters.logitspec import branch_length

contexts = st.lists(st.integers(0, 5), min_size=1, max_size=40)


def branches(tree: DraftTree) -> list[list[int]]:
    """The chains below the root, in order."""
    found: list[list[int]] = []
    for node in range(1, len(tree)):
        if tree.parents[node] == 0:
            found.append([])
        found[-1].append(tree.tokens[node])
    return found


def test_the_next_token_is_extended_by_retrieval() -> None:
    drafter = LogitSpecDrafter(num_pred_tokens=3, draft_tree_capacity=4)
    drafter.reset([1, 2, 3, 4, 5, 6, 1])
    assert branches(drafter.draft(2, [2])) == [[3, 4, 5]]  # after "1 2"


def test_guesses_follow_in_rank_order_each_extended_by_its_own_retrieval() -> None:
    drafter = LogitSpecDrafter(draft_tree_capacity=64)
    drafter.reset([1, 2, 3, 4, 5, 6, 7, 8])
    tree = drafter.draft(20, [20, 3, 30, 5, 8])
    assert branches(tree) == [[3, 4, 5, 6], [30], [5, 6, 7, 8], [8]]  # nothing after root 20


def test_the_rank_counts_the_skipped_root() -> None:
    drafter = LogitSpecDrafter(max_ngram_size=1, draft_tree_capacity=200)
    drafter.reset(list(range(1, 60)))
    ranked = [90, *range(100, 107), 10, 20, *range(110, 133), 30]
    assert (ranked[8], ranked[9], ranked[33]) == (10, 20, 30)
    lengths = {branch[0]: len(branch) for branch in branches(drafter.draft(90, ranked))}
    assert (lengths[10], lengths[20], lengths[30]) == (4, 3, 1)
    assert [branch_length(rank) for rank in (0, 8, 9, 32, 33)] == [4, 4, 3, 3, 1]


def test_merging_shares_prefixes_and_makes_room_for_lower_ranks() -> None:
    context = [1, 2, 3, 4, 1]
    ranked = [2, 3, 50, 51]
    apart = LogitSpecDrafter(num_pred_tokens=2, draft_tree_capacity=6)
    merged = LogitSpecDrafter(num_pred_tokens=2, draft_tree_capacity=6, merge=True)
    apart.reset(context)
    merged.reset(context)
    assert branches(apart.draft(2, ranked)) == [[3, 4], [3, 4, 1]]
    assert merged.draft(2, ranked).tokens == [2, 3, 4, 1, 50, 51]


@pytest.mark.parametrize("capacity", [1, 2, 5, 20, 21])
def test_a_capacity_below_num_pred_tokens_bounds_the_first_branch_too(capacity: int) -> None:
    drafter = LogitSpecDrafter(num_pred_tokens=20, draft_tree_capacity=capacity)
    drafter.reset([*range(30), 0])
    assert len(drafter.draft(1, [1, 2, 3])) == min(capacity, 1 + 20 + 4)


def test_the_pool_holds_committed_tokens_only() -> None:
    drafter = LogitSpecDrafter(max_ngram_size=1, num_pred_tokens=2, draft_tree_capacity=8)
    drafter.reset([1, 2])
    tree = drafter.draft(3, [3])
    assert drafter.pool.ids == [1, 2]
    drafter.observe(tree, [0])
    assert drafter.pool.ids == [1, 2, 3]


@pytest.mark.parametrize("knob", ["max_ngram_size", "num_pred_tokens", "draft_tree_capacity"])
def test_knobs_below_one_are_refused(knob: str) -> None:
    with pytest.raises(InputError, match=f"{knob} is 0; give 1 or more"):
        LogitSpecDrafter(**{knob: 0})


@pytest.mark.parametrize("name", sorted(DRAFTERS))
@settings(max_examples=30, deadline=None)
@given(prompt=contexts, other=contexts, roots=st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_every_drafter_conforms(
    name: str, prompt: list[int], other: list[int], roots: list[int]
) -> None:
    """Trees within capacity, and the same after a reset as in a fresh drafter."""

    def run(drafter: object) -> list[tuple[list[int], list[int]]]:
        assert isinstance(drafter, DRAFTERS[name])
        drafter.reset(prompt)
        trees = []
        for root in roots:
            top = [root, *range(6, 6 + drafter.top_k)][: drafter.top_k]
            tree = drafter.draft(root, top)
            assert tree.tokens[0] == root
            assert len(tree) <= drafter.capacity
            drafter.observe(tree, [0])
            trees.append((tree.tokens, tree.parents))
        return trees

    used = DRAFTERS[name]()
    used.reset(other)
    used.observe(used.draft(0, [0]), [0])
    assert run(used) == run(DRAFTERS[name]())


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="two drafters are named 'logitspec'"):
        register("logitspec")(LogitSpecDrafter)
