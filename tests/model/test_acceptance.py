"""accept against a walk down the tree."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.logitspec import DraftTree
from model.logitspec.acceptance import TreeTensors, Verdict, accept, longest_path
from model.logitspec.sampling import greedy

VOCAB = 4


def verdict(tree: DraftTree, chosen: list[int], top_k: int = 0, node_top_k: int = 0) -> Verdict:
    """Accept with logits whose argmax after node i is chosen[i], then falling with the token id."""
    logits = -torch.arange(VOCAB, dtype=torch.float32).repeat(len(tree), 1)
    logits[torch.arange(len(tree)), torch.tensor(chosen)] = 10.0
    return accept(logits, tree, greedy(), top_k, node_top_k)


def deepest_first(tree: DraftTree, chosen: list[int]) -> list[int]:
    """The longest agreed path; of equally long ones the one whose last node was drafted first."""
    agreed = [[0]]
    for node in range(1, len(tree)):
        for path in list(agreed):
            parent = tree.parents[node]
            right = chosen[parent] == tree.tokens[node] and node not in tree.probes
            if path[-1] == parent and right:
                agreed.append([*path, node])
    longest = max(map(len, agreed))
    return min((path for path in agreed if len(path) == longest), key=lambda path: path[-1])


@given(st.data())
def test_the_longest_agreed_path_is_accepted(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12))
    tree = DraftTree(0, size)
    for node in range(1, size):
        token, parent = data.draw(st.integers(0, VOCAB - 1)), data.draw(st.integers(0, node - 1))
        tree.add(token, parent, probe=data.draw(st.integers(0, 5)) == 0)
    chosen = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=size, max_size=size))
    result = verdict(tree, chosen)
    assert result.path == deepest_first(tree, chosen)
    known: set[int] = set()

    def choose(nodes: Sequence[int]) -> list[int]:  # as a verifier finds choices, level by level
        assert not known & set(nodes)
        assert all(not node or tree.parents[node] in known for node in nodes)
        known.update(nodes)
        return [chosen[node] for node in nodes]

    assert longest_path(tree, choose) == (result.path, result.next_root)
    assert result.next_root == chosen[result.path[-1]]
    after = [[best, *(t for t in range(VOCAB) if t != best)] for best in chosen]
    both = verdict(tree, chosen, top_k=2, node_top_k=3)
    assert both.top_ids == after[result.path[-1]][:2]
    assert both.node_top_ids == [ids[:3] for ids in after]
    assert verdict(tree, chosen, node_top_k=99).node_top_ids == after
    assert result.node_top_ids == []


def test_nothing_waits_for_the_device_before_the_one_transfer() -> None:
    """On the meta device every hidden read of a value fails; tolist() is the first."""
    tree = DraftTree(0, 4)
    tree.add_branch([1, 2, 3])
    tensors = TreeTensors.upload(tree, torch.device("meta"))
    with pytest.raises(NotImplementedError) as stopped:
        accept(torch.empty(4, VOCAB, device="meta"), tree, greedy(), 2, 2, tensors)
    assert ".tolist()" in str(stopped.traceback[1].statement)


def test_a_match_below_a_wrong_parent_does_not_count() -> None:
    tree = DraftTree(0, 4)
    tree.add_branch([1, 2, 3])
    assert verdict(tree, chosen=[3, 2, 3, 0]).path == [0]


def test_equal_branches_the_first_wins() -> None:
    tree = DraftTree(0, 8)
    tree.add_branch([1])
    tree.add_branch([1, 2])
    tree.add_branch([1, 2])
    assert verdict(tree, chosen=[1, 2, 2, 0, 2, 0]).path == [0, 2, 3]


def test_top_ids_are_those_of_the_last_accepted_node_best_first() -> None:
    tree = DraftTree(0, 2)
    tree.add_branch([1])
    assert verdict(tree, chosen=[1, 3], top_k=3).top_ids == [3, 0, 1]
    assert verdict(tree, chosen=[2, 3], top_k=2).top_ids == [2, 0]
    assert len(verdict(tree, chosen=[1, 3], top_k=99).top_ids) == VOCAB
