"""The drafter lookahead against its window and pool written out, and on a model."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.logitspec import (
    DraftTree,
    InputError,
    LlamaKVForCausalLM,
    LookaheadDrafter,
    Sampling,
    VanillaDrafter,
    decode,
)
from model.logitspec.acceptance import longest_path

PROMPT = [5, 6, 7, 8, 5, 6, 7]


def says(text: Sequence[int]) -> int:
    """A target that looks at the last three tokens."""
    return hash(tuple(text[-3:])) % 4


class Written:
    """The window and pool as the paper has them, on whole texts instead of a tree."""

    def __init__(self, prompt: Sequence[int], level: int, window: int, guess: int) -> None:
        draw = random.Random(10)
        self.level, self.window, self.guess = level, window, guess
        self.rows = [[draw.choice(prompt) for _ in range(window + level - 3)]]
        self.pool: dict[int, list[tuple[int, ...]]] = {}

    def guesses(self, root: int) -> list[tuple[int, ...]]:
        return self.pool.get(root, []) if len(self.rows) == self.level - 1 else []

    def step(self, text: Sequence[int]) -> None:
        """`text` ends with the root."""
        last = self.rows[-1]
        if len(self.rows) == 1:
            new = [says([*text, *last[: j + 1]]) for j in range(len(last))]
        else:
            new = [
                says([*text, *self.rows[0][:j], *(row[j] for row in self.rows[1:])])
                for j in range(len(last))
            ]
        if len(self.rows) < self.level - 1:
            added = new if len(self.rows) == 1 else new[1:]
            self.rows = [*(row[1:] for row in self.rows), added]
            return
        for j in range(self.window):
            key = self.rows[0][j - 1] if j else text[-1]
            ngram = (*(row[j] for row in self.rows[1:]), new[j])
            known = [kept for kept in self.pool.get(key, []) if kept != ngram]
            self.pool[key] = [*known, ngram][-self.guess :]
        self.rows = [self.rows[1][1:], *self.rows[2:], new]


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    level=st.integers(3, 7),
    window=st.integers(1, 8),
    guess=st.integers(1, 4),
)
def test_the_window_moves_and_the_pool_fills_as_written(
    prompt: list[int], level: int, window: int, guess: int
) -> None:
    drafter = LookaheadDrafter(level, window, guess)
    drafter.reset(prompt)
    written = Written(prompt, level, window, guess)
    text = [*prompt, says(prompt)]
    for step in range(30):
        tree = drafter.draft(text[-1], [])
        assert len(tree) <= drafter.capacity
        drafts = written.guesses(text[-1])
        assert drafts == [] or step >= level - 2
        size = 1 + sum(map(len, written.rows))
        ends = range(size + level - 2, len(tree), level - 1)
        assert [tuple(tree.path_tokens(end)[1:]) for end in ends] == drafts
        assert len(tree) == size + len(drafts) * (level - 1)
        assert tree.probes == {*range(1, size), *ends}
        said = [says([*text[:-1], *tree.path_tokens(node)]) for node in range(len(tree))]
        path, root = longest_path(tree, lambda nodes: [said[n] for n in nodes])  # noqa: B023
        assert len(path) <= level - 1
        drafter.observe(tree, path, [[token] for token in said])
        written.step(text)
        text = [*text, *(tree.tokens[node] for node in path[1:]), root]
    assert any(written.pool.values())


def test_the_published_sizes() -> None:
    drafter = LookaheadDrafter()
    assert drafter.capacity == 1 + 7 * 4 - 1 + 7 * 4
    drafter.reset([1])
    sizes = []
    for _ in range(5):
        tree = drafter.draft(1, [])
        sizes.append(len(tree) - 1)
        drafter.observe(tree, [0], [[1]] * len(tree))
    assert sizes == [9, 8 + 9, 7 + 8 + 8, 6 + 3 * 7, 6 + 3 * 7 + 4]
    # level 0 is a chain; of the last level column 0 lies 3 deep, column 6 below all of level 0
    assert [tree.depths[node] for node in range(21, 28)] == [3, 4, 5, 6, 7, 8, 9]
    assert tree.parents[7:14] == [0, 1, 2, 3, 4, 5, 6]


def test_the_pool_keeps_the_newest_and_counts_a_repetition_as_new() -> None:
    drafter = LookaheadDrafter(level=3, window=1, guess=2, pool_from_prompt=True)

    def drafted(prompt: list[int]) -> list[list[int]]:
        drafter.reset(prompt)
        grown = drafter.draft(1, [])
        drafter.observe(grown, [0], [[0]] * len(grown))
        tree = drafter.draft(1, [])
        return [tree.path_tokens(node)[1:] for node in range(3, len(tree), 2)]

    assert drafted([1, 2, 3, 1, 4, 5]) == [[2, 3], [4, 5]]
    assert drafted([1, 2, 3, 1, 4, 5, 1, 6, 7]) == [[4, 5], [6, 7]]
    assert drafted([1, 2, 3, 1, 4, 5, 1, 2, 3, 1, 6, 7]) == [[2, 3], [6, 7]]
    assert drafted([1, 2]) == []  # and nothing of the prompt before


def test_rows_that_are_missing_at_the_end_stop_the_window() -> None:
    drafter = LookaheadDrafter(level=3, window=2, guess=1)
    drafter.reset([1])
    first = drafter.draft(1, [])
    drafter.observe(first, [0], [[7], [2], []])
    assert drafter.draft(1, []).tokens == first.tokens
    drafter.observe(first, [0], [[7], [2], [3]])
    grown = drafter.draft(1, [])
    assert (grown.tokens, grown.parents) == ([1, 1, 2, 3], [0, 0, 0, 1])
    drafter.observe(grown, [0], [[7], [7], [4], []])
    again = drafter.draft(1, [])
    assert again.tokens == [*grown.tokens, 2, 4]  # what column 0 said is known


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_no_probe_is_accepted(
    tiny: LlamaKVForCausalLM, monkeypatch: pytest.MonkeyPatch, graphs: bool, temperature: float
) -> None:
    """Where the window is right, a step commits its root alone: in every walk over the tree."""
    monkeypatch.setattr(tiny, "graphs", graphs)
    chooser = Sampling(temperature, seed=1).chooser(PROMPT[:-1])
    expected = decode(tiny, PROMPT, VanillaDrafter(), max_new_tokens=30, chooser=chooser).tokens

    class Right(VanillaDrafter):
        """Drafts what is to come, once as a probe and once as a draft below a probe."""

        capacity = 3
        at = 0

        def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
            tree = DraftTree(root, self.capacity)
            for token in expected[self.at + 1 : self.at + 3]:
                tree.add(token, len(tree) - 1, probe=len(tree) == 1)
            return tree

        def observe(
            self, tree: DraftTree, path: Sequence[int], top_ids: Sequence[Sequence[int]] = ()
        ) -> None:
            self.at += len(path)

    chooser = Sampling(temperature, seed=1).chooser(PROMPT[:-1])
    result = decode(tiny, PROMPT, Right(), max_new_tokens=30, chooser=chooser)
    assert result.tokens == expected
    assert result.accept_lengths == [1] * 30
    assert max(result.tree_sizes) == 3
    assert result.misses == [0] * 30  # a probe is no draft


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 2}, "level is 2; give 3 or more"),
        ({"window": 0}, "window is 0; give 1 or more"),
        ({"guess": 0}, "guess is 0; give 1 or more"),
        ({"window": 2000}, "window 2000 and guess 7 make trees of 8028 nodes"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LookaheadDrafter(**options)
