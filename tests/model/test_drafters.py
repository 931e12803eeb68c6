"""Every method's trees on worked examples, and what holds for every registered drafter."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.logitspec import (
    DRAFTERS,
    Drafter,
    DraftTree,
    InputError,
    LogitSpecDrafter,
    PromptLookupDrafter,
    RacerDrafter,
    SuffixDrafter,
    TokenRecyclingDrafter,
    register,
)
from model.logitspec.drafters.logitspec import branch_length
from model.logitspec.drafters.racer import NgramTrie, TrieNode
from model.logitspec.drafters.token_recycling import static_tree

from ..conftest import new_drafter

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


KEEPERS = (
    "calibrated",
    "recycling",
    "sam_recycling",
    "suffix",
)  # what they learnt stays when the prompt changes


@pytest.mark.parametrize("name", sorted(DRAFTERS))
@settings(max_examples=30, deadline=None)
@given(
    prompt=contexts,
    other=contexts,
    roots=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    seed=st.integers(0, 999),
)
def test_every_drafter_conforms(
    name: str, prompt: list[int], other: list[int], roots: list[int], seed: int
) -> None:
    """Valid trees within capacity, the same whenever the same is seen, nothing left behind."""

    def best(chance: random.Random, count: int, width: int) -> list[list[int]]:
        return [chance.sample(range(10), width) for _ in range(count)]

    def run(drafter: Drafter, prompt: list[int]) -> list[tuple[list[int], list[int]]]:
        chance = random.Random(seed)
        drafter.reset(prompt, best(chance, len(prompt), drafter.prompt_top_k))
        trees = []
        for root in roots:
            top = [root, *range(6, 6 + drafter.top_k)][: drafter.top_k]
            tree = drafter.draft(root, top)
            assert tree.tokens[0] == root
            assert len(tree) <= drafter.capacity
            assert all(parent < node for node, parent in enumerate(tree.parents[1:], start=1))
            last = chance.randrange(len(tree))
            path = [n for n in range(len(tree)) if tree.ancestor_mask()[last, n]]
            drafter.observe(tree, path, best(chance, len(tree), drafter.node_top_k))
            trees.append((tree.tokens, tree.parents))
        return trees

    used = new_drafter(name)
    run(used, other)
    if name in KEEPERS:
        used.forget()
    assert run(used, prompt) == run(new_drafter(name), prompt)


@pytest.mark.parametrize(
    "name", sorted(n for n, d in DRAFTERS.items() if "draft_tree_capacity" in d.options)
)
@pytest.mark.parametrize("capacity", [1, 2, 9])
def test_a_small_capacity_bounds_every_drafter(name: str, capacity: int) -> None:
    drafter = new_drafter(name, draft_tree_capacity=capacity)
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9] * 3
    drafter.reset(text, [[(t + 1) % 10, *range(10, 9 + drafter.prompt_top_k)] for t in text])
    for _ in range(2):
        tree = drafter.draft(1, [1, 2, 3, 4, 5, 6, 7, 8, 9][: drafter.top_k])
        assert len(tree) <= capacity
        drafter.observe(tree, [0], [[2, 3, 4, 5, 6, 7, 8, 9]] * len(tree))
    assert capacity == 1 or len(tree) > 1


def test_prompt_lookup_copies_the_full_chain_after_the_earliest_occurrence() -> None:
    drafter = PromptLookupDrafter(num_pred_tokens=3)
    drafter.reset([1, 2, 3, 4, 5, 6, 1, 2, 7, 8, 9, 1])
    assert branches(drafter.draft(2, [])) == [[3, 4, 5]]  # "1 2", first followed by 3


def test_prompt_lookup_prefers_the_longest_pattern() -> None:
    drafter = PromptLookupDrafter(num_pred_tokens=2)
    drafter.reset([3, 8, 8, 1, 2, 3, 4, 5, 6, 1, 2])
    assert branches(drafter.draft(3, [])) == [[4, 5]]  # "1 2 3", though 3 alone came first


def test_prompt_lookup_passes_over_an_occurrence_without_enough_tokens_after_it() -> None:
    drafter = PromptLookupDrafter(num_pred_tokens=4)
    drafter.reset([5, 1, 6, 7, 8, 9, 2, 1])
    # "2 1 5"? No: the pattern is "1 5", which never was; 5 has its four tokens after it
    assert branches(drafter.draft(5, [])) == [[1, 6, 7, 8]]
    drafter.reset([9, 8, 5, 1, 6])
    assert len(drafter.draft(5, [])) == 1  # three tokens after 5, the root included
    drafter.reset([9, 8, 5, 1, 6, 7])
    assert branches(drafter.draft(5, [])) == [[1, 6, 7, 5]]  # the root is the fourth


def test_prompt_lookup_learns_the_answer() -> None:
    drafter = PromptLookupDrafter(max_ngram_size=2, num_pred_tokens=1)
    drafter.reset([1])
    tree = drafter.draft(2, [])
    assert len(tree) == 1
    drafter.observe(tree, [0])
    drafter.observe(DraftTree(1, 1), [0])
    assert branches(drafter.draft(2, [])) == [[1]]  # after "1 2"


def test_the_published_static_tree() -> None:
    shape = static_tree()
    assert len(shape) == 80
    depths = [0]
    for parent, _ in shape:
        depths.append(depths[parent] + 1)
    assert depths == sorted(depths)  # breadth first
    assert [depths.count(d) for d in range(8)] == [1, 8, 21, 25, 15, 8, 3, 0]
    assert TokenRecyclingDrafter().capacity == 81


def test_recycling_follows_the_rows_of_verified_tokens() -> None:
    drafter = TokenRecyclingDrafter(draft_tree_capacity=12)
    drafter.reset([1, 2, 3])
    assert drafter.draft(1, []).tokens == [1]  # the prompt teaches nothing
    tree = DraftTree(1, 3)
    tree.add(2, 0)
    tree.add(3, 0)
    rows = [
        [2, 3, 4, 5, 6, 7, 8, 9],
        [3, 12, 13, 14, 15, 16, 17, 18],
        [21, 22, 23, 24, 25, 26, 27, 28],
    ]
    drafter.observe(tree, [0], rows)  # 2 and 3 were verified, though neither was accepted
    drafted = drafter.draft(1, [])
    assert drafted.tokens == [1, *rows[0], 3, 12, 13]
    assert drafted.parents == [0] * 9 + [1, 1, 1]
    drafter.reset([7])
    assert drafter.draft(1, []).tokens == drafted.tokens  # kept
    drafter.observe(DraftTree(1, 1), [0], [[5, 6, 7, 8, 9, 10, 11, 12]])
    assert drafter.draft(1, []).tokens == [1, 5, 6, 7, 8, 9, 10, 11, 12]  # 5 is unknown
    drafter.forget()
    assert drafter.draft(1, []).tokens == [1]


def test_racers_trie_counts_ngrams_and_finds_the_borders() -> None:
    trie = NgramTrie(3, 100)
    trie.extend([1, 2, 3, 1, 2, 4, 1, 2])
    borders = trie.borders(3, least_depth=2)
    assert [(node.depth, node.count) for node in borders] == [(3, 1), (2, 1)]  # 1 2 3, 2 3
    assert [node.depth for node in trie.borders(9, least_depth=2)] == []
    (bigram,) = trie.borders(1, least_depth=1)  # "2 1" never was, "1" was three times
    assert (bigram.depth, bigram.count) == (1, 3)
    assert {token: child.count for token, child in bigram.children.items()} == {2: 3}


@settings(max_examples=60, deadline=None)
@given(text=st.lists(st.integers(0, 9), max_size=120))
def test_racers_trie_never_outgrows_its_nodes(text: list[int]) -> None:
    small, large = NgramTrie(3, 12), NgramTrie(3, 10_000)
    for token in text:
        small.extend([token])
        large.extend([token])
        nodes = [*walk(small._root)]
        assert len(nodes) == small.size <= 12
        recent = [node.depth for node in small._suffixes]
        assert recent == list(range(min(3, len(text), small._time) + 1))  # never dropped
        for node in nodes:
            assert node.count <= count_of(large, node)


def walk(node: TrieNode) -> Iterator[TrieNode]:
    for child in node.children.values():
        yield child
        yield from walk(child)


def count_of(trie: NgramTrie, node: TrieNode) -> int:
    """How often a node's n-gram occurs in another trie."""
    tokens = []
    while node.parent is not None:
        tokens.append(node.token)
        node = node.parent
    found = trie._root
    for token in reversed(tokens):
        found = found.children[token]
    return found.count


def test_racers_trie_drops_the_leaf_unseen_for_longest() -> None:
    trie = NgramTrie(1, 2)
    trie.extend([1, 2, 1, 3])
    assert sorted(trie._root.children) == [1, 3]
    with pytest.raises(InputError, match="trie_nodes is 5; with a trie_depth of 3 give 12 or more"):
        NgramTrie(3, 5)


def test_racer_drafts_frequent_continuations_first_and_fills_up_with_successors() -> None:
    """Retrieval first, by count; the logits tree merges into it and takes what is left."""
    drafter = RacerDrafter(draft_tree_capacity=9, breadth=2, trie_depth=3)
    text = [1, 2, 3, 9, 1, 2, 4, 9, 1, 2, 4, 8, 1]
    drafter.reset(text, [[t + 10, 4 if t == 2 else t + 20] for t in text])
    tree = drafter.draft(2, [])
    # the border "1 2" was followed by 4 twice and by 3 once; an n-gram of three ends there
    # the root's successors are 12 and the 4 already there; of theirs, 12's are unknown and 4, of
    # rank 1, has a breadth of one: 14
    assert (tree.tokens, tree.parents) == ([2, 4, 3, 12, 14], [0, 0, 0, 0, 1])


def test_racers_logits_tree_halves_its_breadth() -> None:
    drafter = RacerDrafter(draft_tree_capacity=64, breadth=4)
    drafter.reset([50], [[51, 52, 53, 54]])
    tree = DraftTree(60, 1)
    rows = {60: [1, 2, 3, 4], 1: [11, 12, 13, 14], 2: [21, 22, 23, 24], 3: [31, 32, 33, 34],
            11: [5, 6, 7, 8], 12: [15, 16, 17, 18]}  # fmt: skip
    for token, row in rows.items():
        drafter.observe(DraftTree(token, 1), [0], [row])
    drafted = drafter.draft(60, [])
    children: dict[int, list[int]] = {}
    for node in range(1, len(drafted)):
        children.setdefault(drafted.tokens[drafted.parents[node]], []).append(drafted.tokens[node])
    assert children == {
        60: [1, 2, 3, 4],
        1: [11, 12, 13, 14],  # breadth 4 >> 0
        2: [21, 22],  # 4 >> 1
        3: [31],  # 4 >> 2
        11: [5, 6],  # 4 >> 1, one layer down
        12: [15],  # 4 >> 2
    }
    assert len(tree) == 1


def test_racer_starts_with_the_prompts_logits_and_forgets_them() -> None:
    drafter = RacerDrafter(breadth=2)
    drafter.reset([1, 2, 1], [[3, 4], [5, 6], [7, 8]])
    assert drafter.draft(1, []).tokens[:3] == [1, 7, 8]  # the last occurrence's
    drafter.reset([9], [[1, 2]])
    assert drafter.draft(1, []).tokens == [1]


def test_suffix_drafts_what_followed_here_and_in_earlier_answers() -> None:
    pytest.importorskip("arctic_inference")
    drafter = SuffixDrafter(max_spec_factor=4.0)
    drafter.reset([1, 2, 3, 4, 5, 9, 1])
    assert branches(drafter.draft(2, [])) == [[3, 4, 5, 9, 1]]  # 1 2 matched: up to 8 tokens
    for token in (30, 31, 32, 33):
        drafter.observe(DraftTree(token, 1), [0])
    drafter.reset([70, 30])
    assert branches(drafter.draft(31, [])) == [[32, 33]]  # the answer before
    drafter.forget()
    drafter.reset([70, 30])
    assert len(drafter.draft(31, [])) == 1


def test_suffix_drafts_no_more_than_alpha_times_the_match() -> None:
    pytest.importorskip("arctic_inference")
    drafter = SuffixDrafter()
    drafter.reset([1, 2, 3, 4, 5, 6, 7, 8, 0, 1, 2])
    assert branches(drafter.draft(3, [])) == [[4, 5, 6]]  # three tokens matched
    with pytest.raises(InputError, match="min_token_prob is -1"):
        SuffixDrafter(min_token_prob=-1)


def test_suffix_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arctic_inference.suffix_decoding", None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[suffix\]'"):
        SuffixDrafter()


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="two drafters are named 'logitspec'"):
        register("logitspec")(LogitSpecDrafter)
