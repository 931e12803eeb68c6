"""The suffix automaton against a search through the text, and the two drafters over it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.logitspec import InputError, SamDrafter, SamRecyclingDrafter
from model.logitspec.drafters.sam_recycling import CHILDREN
from model.logitspec.drafters.token_recycling import static_tree
from model.logitspec.suffix_automaton import SuffixAutomaton

texts = st.lists(st.integers(0, 2), max_size=40)


def ends(text: list[int], part: list[int]) -> list[int]:
    """Where a part of the text ends."""
    found = range(len(part), len(text) + 1)
    return [end for end in found if text[end - len(part) : end] == part]


@given(text=texts, token=st.integers(0, 3), count=st.integers(1, 9))
def test_the_longest_suffix_seen_before_and_its_first_place(
    text: list[int], token: int, count: int
) -> None:
    automaton = SuffixAutomaton()
    automaton.extend(text)
    assert automaton.ids == text
    state, length = automaton.match(token)
    whole = [*text, token]
    suffixes = [whole[len(whole) - n :] for n in range(len(whole) + 1)]
    assert length == max(n for n, suffix in enumerate(suffixes) if ends(text, suffix))
    first = ends(text, suffixes[length])[0] if length else 0
    assert automaton.continuation(state, count) == text[first : first + count]

    suffix = suffixes[length]
    while len(text) - (ends(text, suffix)[0] if suffix else 0) < count:
        shorter = (suffixes[n] for n in range(len(suffix) - 1, 0, -1))
        more = [s for s in shorter if len(ends(text, s)) > len(ends(text, suffix))]
        if not more:
            break
        suffix = more[0]
    first = ends(text, suffix)[0] if suffix else 0
    followed = automaton.followed_by(state, count)
    assert automaton.continuation(followed, count) == text[first : first + count]


def test_sam_copies_after_the_first_place_of_the_longest_match() -> None:
    drafter = SamDrafter(alpha=2)
    drafter.reset([1, 2, 3, 4, 5, 6, 7, 8, 2, 9, 1])
    tree = drafter.draft(2, [])  # "1 2" was seen: four tokens; 2 alone was followed by 9, too
    assert (tree.tokens, tree.parents) == ([2, 3, 4, 5, 6], [0, 0, 1, 2, 3])
    drafter.observe(tree, [0])
    assert drafter.draft(3, []).tokens == [3, 4, 5, 6, 7, 8, 2]  # three matched
    assert drafter.draft(11, []).tokens == [11]
    drafter.reset([4])
    assert drafter.draft(2, []).tokens == [2]


def test_sam_draws_no_longer_chain_than_asked_for() -> None:
    drafter = SamDrafter(n_predicts=3)
    drafter.reset([1, 2, 3, 4, 5, 6])
    assert drafter.draft(1, []).tokens == [1, 2, 3]
    assert SamDrafter().capacity == 40
    with pytest.raises(InputError, match="n_predicts is 0"):
        SamDrafter(n_predicts=0)
    for alpha in (-1.0, float("inf"), float("nan")):
        with pytest.raises(InputError, match=r"alpha is (-1|inf|nan).*; give"):
            SamDrafter(alpha=alpha)


def test_the_fixed_tree_of_sam_recycling() -> None:
    shape = static_tree(CHILDREN)
    assert len(shape) == 60
    depths = [0]
    for parent, _ in shape:
        depths.append(depths[parent] + 1)
    assert [depths.count(d) for d in range(7)] == [1, 7, 20, 21, 8, 4, 0]
    assert SamRecyclingDrafter().capacity == 61
    assert SamRecyclingDrafter(draft_tree_capacity=16).capacity == 16


def test_sam_recycling_copies_after_a_long_match_and_recycles_after_a_short_one() -> None:
    drafter = SamRecyclingDrafter(len_threshold=3, n_predicts=4)
    text = [1, 2, 3, 4, 5, 6, 1, 2]
    drafter.reset(text, [[t + 10, *range(20, 27)] for t in text])
    assert drafter.draft(3, []).tokens == [3, 4, 5, 6]  # three matched
    assert drafter.origins(drafter.draft(3, []))[1:] == ["retrieved after the next token"] * 3
    tree = drafter.draft(1, [])  # one; the prompt's rows are known
    assert tree.tokens[:8] == [1, 11, *range(20, 26)]
    assert drafter.origins(tree)[1:] == ["copied logits"] * (len(tree) - 1)
    drafter.observe(tree, [0], [[7] * 8] * len(tree))
    drafter.reset([9], [[8] * 8])
    assert drafter.draft(1, []).tokens[:3] == [1, 7, 7]  # kept
    drafter.forget()
    assert drafter.draft(1, []).tokens == [1]


def test_sam_recycling_goes_to_a_place_that_is_followed_by_enough() -> None:
    drafter = SamRecyclingDrafter(len_threshold=2, n_predicts=4)
    text = [3, 5, 6, 7, 8, 2, 3, 1, 2]
    drafter.reset(text, [[0] * 8] * len(text))
    # "2 3" is followed by two tokens; its suffix 3 was at the beginning, too
    assert drafter.draft(3, []).tokens == [3, 5, 6, 7]
