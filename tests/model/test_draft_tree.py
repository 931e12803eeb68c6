"""DraftTree: structure, capacity, merging, cutting, the ancestor mask."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.logitspec import DraftTree, InputError

branches = st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=10)


def build(chains: list[list[int]], capacity: int, merge: bool = False) -> DraftTree:
    tree = DraftTree(9, capacity)
    for chain in chains:
        tree.add_branch(chain, merge=merge)
    return tree


def paths(tree: DraftTree) -> list[tuple[int, ...]]:
    """The tokens from the root to each node."""
    found: list[tuple[int, ...]] = [(tree.tokens[0],)]
    for node in range(1, len(tree)):
        found.append((*found[tree.parents[node]], tree.tokens[node]))
    return found


def test_branches_hang_below_the_root_in_order() -> None:
    tree = build([[1, 2], [1, 3]], capacity=8)
    assert tree.tokens == [9, 1, 2, 1, 3]
    assert tree.parents == [0, 0, 1, 0, 3]
    assert tree.depths == [0, 1, 2, 1, 2]


def test_merged_branches_share_their_prefix() -> None:
    tree = build([[1, 2], [1, 3], [1, 2, 4]], capacity=8, merge=True)
    assert paths(tree) == [(9,), (9, 1), (9, 1, 2), (9, 1, 3), (9, 1, 2, 4)]


def test_a_branch_is_cut_to_the_room_left() -> None:
    tree = build([[1, 2, 3], [4, 5, 6]], capacity=5)
    assert tree.tokens == [9, 1, 2, 3, 4]
    assert tree.full


@given(branches, st.integers(1, 12), st.booleans())
def test_invariants(chains: list[list[int]], capacity: int, merge: bool) -> None:
    tree = build(chains, capacity, merge)
    assert len(tree) <= capacity
    for node in range(1, len(tree)):
        assert tree.parents[node] < node
        assert tree.depths[node] == tree.depths[tree.parents[node]] + 1
    if merge:
        assert len(set(paths(tree))) == len(tree)
    mask = tree.ancestor_mask()
    for node in range(len(tree)):
        ancestors, at = {node}, node
        while at:
            at = tree.parents[at]
            ancestors.add(at)
        assert set(mask[node].nonzero()[0]) == ancestors


@given(branches, st.integers(0, 6))
def test_cutting_by_depth_keeps_exactly_the_shallow_nodes(
    chains: list[list[int]], depth: int
) -> None:
    tree = build(chains, 40)
    cut = tree.only(tree.nodes_down_to(depth))
    assert paths(cut) == [path for path in paths(tree) if len(path) <= depth + 1]


def test_probes_are_no_drafts_and_stay_what_they_are_in_a_part_of_the_tree() -> None:
    tree = DraftTree(9, 6)
    probe = tree.add(1, 0, probe=True)
    assert tree.merge(1, 0) != probe
    tree.add(2, probe)
    tree.add(3, 2, probe=True)
    assert tree.wanted == [9, -1, 1, 2, -1]
    part = tree.only([0, 2, 4])
    assert (part.tokens, part.probes, part.wanted) == ([9, 1, 3], {2}, [9, 1, -1])
    assert part.merge(3, 1) == 3  # a draft of its own
    assert tree.only([0, 1]).merge(1, 0) == 2


def test_wrong_use_is_refused() -> None:
    with pytest.raises(InputError, match="capacity is 0"):
        DraftTree(1, 0)
    tree = DraftTree(1, 2)
    with pytest.raises(IndexError, match="no node 1"):
        tree.add(5, parent=1)
    tree.add(5, parent=0)
    with pytest.raises(IndexError, match="full"):
        tree.add(6, parent=0)
