"""What vLLM does with a proposer, as its runner and scheduler of version 0.32 do it, in numpy.

The model is a function of the last two tokens. Greedy: what a step samples is the best token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

VOCABULARY = 48
LONGEST = 256


def graph_mode(name: str, decode: str | None = None) -> Any:
    """One of vLLM's CUDAGraphMode, with one for steps that decode if these have their own."""
    of_decode = SimpleNamespace(name=decode or name)
    return SimpleNamespace(
        name=name, separate_routine=lambda: decode is not None, decode_mode=lambda: of_decode
    )


def config(
    drafts: int = 6, requests: int = 8, longest: int = LONGEST, *, graphs: bool = False
) -> Any:  # fmt: skip
    """The parts of a VllmConfig that a proposer reads."""
    mode = graph_mode("FULL_AND_PIECEWISE", "FULL") if graphs else graph_mode("NONE")
    return SimpleNamespace(
        compilation_config=SimpleNamespace(cudagraph_mode=mode, max_cudagraph_capture_size=512),
        speculative_config=SimpleNamespace(num_speculative_tokens=drafts),
        model_config=SimpleNamespace(max_model_len=longest),
        parallel_config=SimpleNamespace(distributed_executor_backend="mp", world_size=1),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=requests * (drafts + 1)),
    )


def logits_after(before: int, token: int) -> np.ndarray:
    """The model's logits: greedy answers come back to where they were after some 30 tokens."""
    seed = before % VOCABULARY * VOCABULARY + token % VOCABULARY  # -1 is padding
    return np.random.default_rng(seed).normal(size=VOCABULARY)


def answer(prompt: list[int], length: int) -> list[int]:
    """What the model answers, token by token."""
    tokens = [*prompt]
    for _ in range(length):
        tokens.append(int(np.argmax(logits_after(tokens[-2], tokens[-1]))))
    return tokens[len(prompt) :]


@dataclass
class Request:
    name: str
    prompt: list[int]
    length: int
    tokens: list[int] = field(default_factory=list)
    computed: int = 0  # tokens whose keys and values are in the cache
    drafts: list[int] = field(default_factory=list)

    @property
    def answer(self) -> list[int]:
        return self.tokens[len(self.prompt) :][: self.length]

    @property
    def done(self) -> bool:
        return len(self.answer) == self.length


class Runner:
    """The parts of vLLM's GPUModelRunner that drafting touches; a subclass is to be wrapped."""

    def __init__(self, drafter: Any) -> None:
        self.drafter = drafter
        self.requests: dict[str, Any] = {}
        self.input_batch = SimpleNamespace(req_ids=[])
        self.query_start_loc = SimpleNamespace(np=np.zeros(256, np.int32))

    def _sample(self, logits: Any, spec_decode_metadata: Any) -> Any:
        return logits.argmax(-1)


class Engine:
    """Runs requests with a proposer.

    Args:
        proposer: told of every step.
        runner: whose `_sample` is called.
        chunk: most tokens of a prompt that are read in a step.
    """

    def __init__(self, proposer: Any, runner: Any = None, chunk: int = 16) -> None:
        self.proposer = proposer
        self.runner = runner or Runner(proposer)
        self.chunk = chunk
        self.rows: list[Request] = []
        self.waiting: list[Request] = []
        self.steps = self.verified = self.accepted = 0
        self.proposed: list[dict[str, list[int]]] = []  # of each step, by request
        self.keep_drafts = 10**6  # most drafts that the scheduler lets a request keep

    def add(self, name: str, prompt: list[int], length: int) -> Request:
        request = Request(name, prompt, length, [*prompt])
        self.rows.append(request)
        self.runner.requests[name] = request
        return request

    def remove(self, request: Request) -> None:
        """End a request, or abort it: the last row takes its place, as in vLLM."""
        self._leave_row(request)
        del self.runner.requests[request.name]

    def preempt(self, request: Request) -> None:
        """Take a request out of the batch: its cache is lost, its drafts are, too."""
        self._leave_row(request)
        request.computed, request.drafts = 0, []
        self.waiting.append(request)

    def resume(self) -> None:
        self.rows += self.waiting
        self.waiting = []

    def _leave_row(self, request: Request) -> None:
        at = self.rows.index(request)
        self.rows[at] = self.rows[-1]
        self.rows.pop()

    def step(self, *, propose: bool = True) -> None:
        """One step; without `propose` as when a sequence is nearly as long as it may be."""
        if not self.rows:
            return
        counts, sampled, rows, run = [], [], [], [0]
        drafted: list[int] = []
        for request in self.rows:
            request.drafts = request.drafts[: self.keep_drafts]
            left = len(request.tokens) - request.computed
            if left > 1:  # a prompt, or one that was preempted
                request.drafts = []
                request.computed += min(left, self.chunk)
                run.append(min(left, self.chunk))
                counts.append(0)
                rows.append(logits_after(*request.tokens[-2:]))
                if request.computed < len(request.tokens):
                    sampled.append([])
                    continue
                sampled.append([int(rows[-1].argmax())])
                continue
            counts.append(len(request.drafts))
            run.append(1 + len(request.drafts))
            drafted += request.drafts
            context, right, wrong = [*request.tokens], [], False
            for draft in (*request.drafts, -1):
                rows.append(logits_after(*context[-2:]))
                best = int(rows[-1].argmax())
                if not wrong:
                    right.append(best)
                wrong = wrong or draft != best
                context.append(draft)
            request.computed += len(right)
            self.verified += len(request.drafts)
            self.accepted += len(right) - 1
            sampled.append(right)
        self.steps += 1
        self.runner.input_batch.req_ids = [request.name for request in self.rows]
        self.runner.query_start_loc.np[: len(run)] = np.cumsum(run)
        metadata = None
        if drafted:
            ids = torch.tensor(drafted)
            metadata = SimpleNamespace(num_draft_tokens=counts, draft_token_ids=ids)
        self.runner._sample(torch.tensor(np.array(rows)), metadata)
        ids = np.zeros((len(self.rows), LONGEST), np.int32)
        for row, request in enumerate(self.rows):
            request.tokens += sampled[row]
            ids[row, : len(request.tokens)] = request.tokens
        lengths = np.array([len(request.tokens) for request in self.rows], np.int32)
        drafts = [[0] * 3 for _ in self.rows]
        if propose:
            drafts = self.proposer.propose(sampled, lengths, ids, slot_mappings=None)
        names = [request.name for request in self.rows]
        self.proposed.append(dict(zip(names, drafts, strict=True)))
        for request, own in zip(self.rows, drafts, strict=True):
            request.drafts = own
        for request in [request for request in self.rows if request.done]:
            self.remove(request)

    def run(self, most: int = 10_000) -> None:
        for _ in range(most):
            if not self.rows:
                return
            self.step()
        raise AssertionError(f"{len(self.rows)} requests have not ended")
