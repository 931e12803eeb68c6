"""What drafting costs as the context grows, measured without a model."""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence

from model.logitspec import DRAFTERS, Drafter, DraftTree, InputError
from model.logitspec.acceptance import longest_path

from .measure import Figures, Results, quartiles

MOST_ACCEPTED = 3  # tokens of a step of DraftingRun
COLUMNS = {
    "drafter": (10, "{drafter}"),
    "context": (7, "{context}"),
    "µs": (24, "{median:.1f} [{low:.1f}, {high:.1f}]"),
    "to shortest": (11, "{to_shortest:.2f}"),
    "nodes": (5, "{mean_nodes:.1f}"),
    "accepted": (8, "{mean_accepted:.2f}"),
    "reset µs/token": (14, "{reset_us_per_token:.1f}"),
}


class BigramModel:
    """A made-up target: what it ranks best after a token depends on that token alone."""

    def __init__(self) -> None:
        self._chance = random.Random(0)
        vocabulary = range(400)
        self._ranked = [self._chance.sample(vocabulary, len(vocabulary)) for _ in vocabulary]

    def best(self, token: int, count: int) -> list[int]:
        return self._ranked[token][:count]

    def text(self, length: int) -> list[int]:
        """A walk along the rankings, a third of it passages of 20 to 60 tokens said before."""
        text = [0]
        while len(text) < length:
            if self._chance.random() < 1 / 80:
                start = self._chance.randrange(len(text))
                text += text[start : start + self._chance.randint(20, 60)]
            rank = min(int(self._chance.expovariate(0.5)), 20)
            text.append(self._ranked[text[-1]][rank])
        return text[:length]


def measure_drafting(args: argparse.Namespace, results: Results) -> None:
    """A row per drafter and context: microseconds of draft and observe, of reset per token.

    All contexts are the ends of one text, and go on alike: only how much came before differs. The
    contexts are measured in turn, step by step.
    """
    contexts = sorted(set(args.draft_contexts))
    target = BigramModel()
    text = target.text(contexts[-1] + MOST_ACCEPTED * args.steps + 2)
    table = results.table(
        "drafting",
        f"draft() + observe(), microseconds of {args.steps} steps: median [quartiles]",
        COLUMNS,
    )
    for name, drafter in DRAFTERS.items():
        try:
            drafter()
        except InputError as error:
            print(f"left out: {error}")
            continue
        runs = [DraftingRun(drafter(), target, text[contexts[-1] - c :], c) for c in contexts]
        for _ in range(args.steps):
            for run in runs:
                run.step()
        shortest = 0.0
        for context, run in zip(contexts, runs, strict=True):
            seconds, nodes, accepted = zip(*run.steps, strict=True)
            row: Figures = {
                "drafter": name,
                "context": context,
                **quartiles(seconds, 1e6),
                "mean_nodes": statistics.fmean(nodes),
                "mean_accepted": statistics.fmean(accepted),
                "reset_us_per_token": 1e6 * run.reset_seconds / context,
            }
            shortest = shortest or row["median"]
            row["to_shortest"] = row["median"] / shortest
            table.add(row)


class DraftingRun:
    """A new drafter going through a text, timed: it is reset with `context` tokens of it."""

    def __init__(
        self, drafter: Drafter, target: BigramModel, text: Sequence[int], context: int
    ) -> None:
        self.steps: list[tuple[float, int, int]] = []  # seconds, nodes, accepted tokens
        self._drafter, self._target, self._text = drafter, target, text
        self._at = context
        prompt = text[:context]
        top_ids = self._rank(prompt, drafter.prompt_top_k)
        start = time.perf_counter()
        drafter.reset(prompt, top_ids)
        self.reset_seconds = time.perf_counter() - start

    def _rank(self, tokens: Sequence[int], width: int) -> list[list[int]]:
        return [self._target.best(token, width) for token in tokens] if width else []

    def step(self) -> None:
        """Draft after the next token of the text, and commit what of it the text says."""
        root = self._text[self._at]
        top_ids = self._target.best(self._text[self._at - 1], self._drafter.top_k)
        start = time.perf_counter()
        tree = self._drafter.draft(root, top_ids)
        drafted = time.perf_counter()
        path = agreed(tree, self._text[self._at : self._at + MOST_ACCEPTED])
        ranked = self._rank(tree.tokens, self._drafter.node_top_k)
        observing = time.perf_counter()
        self._drafter.observe(tree, path, ranked)
        end = time.perf_counter()
        self.steps.append((drafted - start + end - observing, len(tree), len(path)))
        self._at += len(path)


def agreed(tree: DraftTree, text: Sequence[int]) -> list[int]:
    """The longest path of the tree that says the text from its first token on."""
    following = [*text[1:], -1]  # by depth; no token is -1
    return longest_path(tree, lambda nodes: [following[tree.depths[node]] for node in nodes])[0]
