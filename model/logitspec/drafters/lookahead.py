"""Lookahead decoding (Fu et al., ICML 2024, arXiv 2402.02057): the target makes up n-grams beside
its answer, in the same forwards, and they are the drafts of later steps."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import ClassVar

from .. import origins
from ..draft_tree import DraftTree
from ..errors import InputError, require_positive
from .base import Drafter, register

SEED = 10  # of the tokens that the window begins with, as published
MOST_NODES = 4096  # of a tree


@register("lookahead")
class LookaheadDrafter(Drafter):
    """Lookahead decoding: n-grams that the target made up in a window of guesses at what follows.

    The window is a part of the tree that is only verified, never accepted. Its level 0 is a chain
    of window - 1 tokens below the root. The levels 1 to level - 2 have `window` columns: column 0
    hangs below the root, column j below the j-th token of level 0. What the target says after the
    last level is the next last level, and the first level is dropped. A column with the token that
    it hangs below and the token after it is an n-gram of `level` tokens; the pool keeps the newest
    `guess` of them by their first token. Those that begin with the root are drafted, each as a
    branch of its own. The last token of a branch is only verified, so that a step commits at most
    level - 1 tokens, as published.

    A window begins as a chain of tokens drawn from the prompt and grows a level in a step; nothing
    is drafted before it has all. Everything is reset for each prompt.

    Args:
        level: tokens of an n-gram, the paper's N.
        window: columns of the window, the paper's W.
        guess: most n-grams kept for a first token, the paper's G.
        pool_from_prompt: keep the prompt's n-grams, too.

    Raises:
        InputError: level is below 3, another number below 1, or a tree has too many nodes.
    """

    options: ClassVar[Mapping[str, str]] = {
        "level": "tokens of an n-gram, the paper's N",
        "window": "columns of the lookahead window, the paper's W",
        "guess": "most n-grams kept for a first token and drafted in a step, the paper's G",
        "pool_from_prompt": "keep the prompt's n-grams, too",
    }
    node_top_k = 1
    live_only = True

    def __init__(
        self, level: int = 5, window: int = 7, guess: int = 7, *, pool_from_prompt: bool = False
    ) -> None:
        require_positive(window=window, guess=guess)
        if level < 3:
            raise InputError(f"level is {level}; give 3 or more")
        grown = (window + guess) * (level - 1)
        self.capacity = max(grown, *((window + level - 2 - f) * (f + 1) for f in range(level - 2)))
        if self.capacity > MOST_NODES:
            raise InputError(
                f"level {level}, window {window} and guess {guess} make trees of {self.capacity} "
                f"nodes; lower one of them, {MOST_NODES} is the most"
            )
        self._level, self._window, self._guess = level, window, guess
        self._pool_from_prompt = pool_from_prompt
        self._levels: list[list[int]] = []  # of the window
        self._last_level: list[int] = []  # its nodes in the last tree
        # first token -> the rest of its n-grams, the oldest first
        self._pool: dict[int, dict[tuple[int, ...], None]] = {}

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        draw = random.Random(SEED).choice
        self._levels = [[draw(prompt_ids) for _ in range(self._window + self._level - 3)]]
        self._pool = {}
        if self._pool_from_prompt:
            for end in range(self._level, len(prompt_ids) + 1):
                first, *rest = prompt_ids[end - self._level : end]
                self._keep(first, tuple(rest))

    @property
    def _grown(self) -> bool:
        return len(self._levels) == self._level - 1

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        tree = DraftTree(root, self.capacity)
        self._add_window(tree)
        if self._grown:
            for ngram in self._pool.get(root, ()):
                node = 0
                for token in ngram[:-1]:
                    node = tree.add(token, node)
                tree.add(ngram[-1], node, probe=True)
        return tree

    def _add_window(self, tree: DraftTree) -> None:
        above = [0]
        for token in self._levels[0]:
            above.append(tree.add(token, above[-1], probe=True))
        self._last_level = above[1:]
        for level in self._levels[1:]:
            above = [tree.add(t, node, probe=True) for t, node in zip(level, above, strict=True)]
            self._last_level = above

    def observe(
        self, tree: DraftTree, path: Sequence[int], top_ids: Sequence[Sequence[int]] = ()
    ) -> None:
        rows = (top_ids[node] for node in self._last_level)
        new = [row[0] for row in rows if row]  # none after nodes behind the end of the generation
        whole = len(new) == len(self._last_level)
        if self._grown:
            firsts = (tree.tokens[0], *self._levels[0])
            for first, *rest in zip(firsts, *self._levels[1:], new, strict=False):
                self._keep(first, tuple(rest))
            if whole:
                self._levels = [self._levels[1][1:], *self._levels[2:], new]
        elif whole:
            grown = new if len(self._levels) == 1 else new[1:]
            self._levels = [*(level[1:] for level in self._levels), grown]

    def _keep(self, first: int, rest: tuple[int, ...]) -> None:
        known = self._pool.setdefault(first, {})
        known.pop(rest, None)  # said again, it is the newest
        known[rest] = None
        if len(known) > self._guess:
            del known[next(iter(known))]

    def origins(self, tree: DraftTree) -> list[str]:
        below = range(1, len(tree))
        found = (origins.PROBED if node in tree.probes else origins.RETRIEVED for node in below)
        return [origins.NEXT, *found]
