"""What the proposers for vLLM cost, measured without vLLM: python -m benchmarks.proposing --help.

They are given what vLLM gives them: the arrays of a batch, and the logits of every verified
position. The requests go through made-up texts; all drafts are verified, whatever the budget says.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from evaluation.command.parser import Parser, at_least
from model.logitspec.vllm import CalibratedProposer, LogitSpecProposer, Proposer
from model.logitspec.vllm.budget import BatchBudget
from model.logitspec.vllm.logits import Seen, best_tokens

from .drafting_cost import BigramModel
from .measure import Columns, Figures, Results, quartiles, run_benchmark

PROPOSERS: dict[str, type[Proposer]] = {
    "logitspec": LogitSpecProposer,
    "calibrated": CalibratedProposer,
}
COLUMNS: Columns = {
    "proposer": (10, "{proposer}"),
    "requests": (8, "{requests}"),
    "tokens of each": (14, "{context}"),
    "drafts a step": (13, "{drafts:.0f}"),
    "ms a request and step": (24, "{median:.3f} [{low:.3f}, {high:.3f}]"),
    "of these best tokens": (20, "{best_ms:.3f}"),
    "ms to begin a request": (21, "{begin_ms:.1f}"),
}


class Generous(BatchBudget):
    """Costs what any budget costs, and then takes all drafts."""

    def choose(self, paths: Sequence[Sequence[float]], *args: Any, **more: Any) -> list[int]:
        super().choose(paths, *args, **more)
        self.rest = 0
        return [*map(len, paths)]


class Batch:
    """Requests in the middle of texts that they will say, with a proposer of their own."""

    def __init__(
        self, kind: type[Proposer], drafts: int, requests: int, context: int, steps: int,
        vocabulary: int,
    ) -> None:  # fmt: skip
        self._target = BigramModel()
        most = steps * (drafts + 1) + 1
        text = self._target.text(requests * (context + most))
        self._texts = np.array(text, np.int32).reshape(requests, context + most)
        self._lengths = np.full(requests, context, np.int32)
        self._drafts: list[list[int]] = [[] for _ in range(requests)]
        self._names = [f"request-{number}" for number in range(requests)]
        config = SimpleNamespace(
            speculative_config=SimpleNamespace(num_speculative_tokens=drafts),
            model_config=SimpleNamespace(max_model_len=context + most),
            parallel_config=SimpleNamespace(distributed_executor_backend=None, world_size=1),
            scheduler_config=SimpleNamespace(max_num_batched_tokens=requests * (drafts + 1)),
        )
        self.proposer = kind(config, rank=0, watch=lambda: None)
        self.proposer.budget = Generous(requests * (drafts + 1))
        self.verified = 0
        self._logits = torch.rand(requests * (drafts + 1), vocabulary)  # all below 1

    def step(self) -> tuple[float, float]:
        """Verify the drafts, find the best tokens, have others proposed; the seconds of that, and
        of finding these tokens."""
        sampled: list[list[int]] = []
        best: list[list[int]] = []
        for text, length, drafts in zip(self._texts, self._lengths, self._drafts, strict=True):
            said = text[length : length + len(drafts) + 1].tolist()
            right = next((n for n, d in enumerate(drafts) if d != said[n]), len(drafts))
            sampled.append(said[: right + 1])
            before = [int(text[length - 1]), *drafts]
            best += [self._target.best(token, self.proposer.width) for token in before]
        self.verified += sum(map(len, self._drafts))
        self._lengths += np.array([*map(len, sampled)], np.int32)
        counts = [*map(len, self._drafts)]
        ids = torch.tensor([draft for own in self._drafts for draft in own])
        logits, chosen = self._logits[: len(best)], torch.tensor(best)
        ranks = torch.arange(chosen.shape[1], 0, -1.0).expand(chosen.shape)
        low = logits.gather(1, chosen)
        logits.scatter_(1, chosen, ranks)
        start = time.perf_counter()
        found = best_tokens(logits, self.proposer.width)
        looking = time.perf_counter() - start
        self.proposer.seen = Seen(self._names, self._names, counts, ids, None, found, looking)
        self._drafts = self.proposer.propose(sampled, self._lengths, self._texts)
        seconds = time.perf_counter() - start
        logits.scatter_(1, chosen, low)
        return seconds, looking


def run(args: argparse.Namespace) -> None:
    results = Results(args, "cpu")
    title = "proposing, without a model: median [quartiles] of the steps"
    table = results.table("proposing", title, COLUMNS)
    for name, kind in PROPOSERS.items():
        for requests in args.requests:
            batch = Batch(
                kind, args.drafts, requests, args.context, args.steps + 1, args.vocabulary
            )
            begin, _ = batch.step()
            seconds, looking = zip(*(batch.step() for _ in range(args.steps)), strict=True)
            row: Figures = {
                "proposer": name,
                "requests": requests,
                "context": args.context,
                "drafts": batch.verified / args.steps,
                **quartiles(seconds, 1e3 / requests),
                "best_ms": 1e3 * statistics.median(looking) / requests,
                "begin_ms": 1e3 * begin / requests,
            }
            table.add(row)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m benchmarks.proposing", "What the proposers for vLLM cost.")
    add = parser.add_argument
    add("--requests", nargs="+", type=at_least(1), default=[1, 32, 256], metavar="N",
        help="in the batch")  # fmt: skip
    add("--context", type=at_least(2), default=2000, metavar="N", help="tokens of each, at first")
    add("--drafts", type=at_least(1), default=8, metavar="N", help="most of a request in a step")
    add("--vocabulary", type=at_least(400), default=49152, metavar="N", help="of the logits")
    add("--steps", type=at_least(1), default=100, metavar="N", help="that are timed")
    return run_benchmark(parser, argv, run)


if __name__ == "__main__":
    sys.exit(main())
