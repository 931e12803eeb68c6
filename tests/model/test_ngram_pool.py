"""NgramPool against a re-scan of the whole context that states the rule literally."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.logitspec import InputError, NgramPool

contexts = st.lists(st.integers(0, 3), max_size=60)


def oracle(ids: list[int], sequence: list[int], max_ngram_size: int, longest: int) -> list[int]:
    """Longest suffix first; of its occurrences the longest capped continuation, then the latest."""
    for n in range(min(max_ngram_size, len(sequence)), 0, -1):
        suffix = sequence[-n:]
        starts = [i for i in range(n, len(ids)) if ids[i - n : i] == suffix]
        if starts:
            best = max(starts, key=lambda i: (min(len(ids) - i, longest), i))
            return ids[best : best + longest]
    return []


@given(contexts, st.lists(st.integers(0, 3), max_size=5), st.integers(1, 4), st.integers(1, 8))
def test_lookup_equals_a_rescan(ids: list[int], seq: list[int], n: int, longest: int) -> None:
    pool = NgramPool(n, longest)
    pool.extend(ids)
    assert pool.lookup(seq) == oracle(ids, seq, n, longest)


@given(st.lists(contexts, max_size=6), st.integers(1, 3), st.integers(1, 5))
def test_growing_in_pieces_equals_growing_at_once(
    pieces: list[list[int]], n: int, longest: int
) -> None:
    pool = NgramPool(n, longest)
    ids: list[int] = []
    for piece in pieces:
        pool.extend(piece)
        ids += piece
        for token in range(4):
            sequence = [*ids[-n:], token]
            assert pool.lookup(sequence) == oracle(ids, sequence, n, longest)


def test_a_full_continuation_beats_a_later_short_one() -> None:
    pool = NgramPool(1, 3)
    pool.extend([7, 1, 2, 3, 7, 4])
    assert pool.lookup([7]) == [1, 2, 3]  # the later 7 has only one token after it
    pool.extend([5, 6])
    assert pool.lookup([7]) == [4, 5, 6]  # now both are full: the latest wins


def test_the_eldest_of_the_young_wins() -> None:
    pool = NgramPool(1, 10)
    pool.extend([7, 1, 7, 2])
    assert pool.lookup([7]) == [1, 7, 2]


def test_the_longest_known_suffix_wins() -> None:
    pool = NgramPool(2, 2)
    pool.extend([1, 5, 8, 8, 2, 5, 9, 9])
    assert pool.lookup([1, 5]) == [8, 8]
    assert pool.lookup([3, 5]) == [9, 9]
    assert pool.lookup([4]) == []


def test_the_cost_of_a_token_does_not_grow_with_the_context() -> None:
    pool = NgramPool(3, 20)

    def seconds(tokens: int) -> float:
        start = time.perf_counter()
        pool.extend(i % 50 for i in range(tokens))
        return time.perf_counter() - start

    seconds(1_000)
    early = min(seconds(1_000) for _ in range(5))
    seconds(100_000)
    late = min(seconds(1_000) for _ in range(5))
    assert late < 5 * early  # a re-scan would be a hundred times slower


@pytest.mark.parametrize("sizes", [(0, 20), (3, 0)])
def test_sizes_below_one_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="is 0; give 1 or more"):
        NgramPool(*sizes)
