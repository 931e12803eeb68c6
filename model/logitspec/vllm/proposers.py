"""Proposers: what vLLM constructs, and calls once a step."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..drafters.calibrated.chains import Chain, Chains
from ..drafters.calibrated.drafter import CalibratedDrafter
from ..errors import InputError
from ..states import read_state, tokenizer_fingerprint, way_out
from . import logits
from .budget import BatchBudget
from .following import Drafts, Followed, Requests
from .mending import mend
from .retrieving import WIDTH, RetrievedChain, Retrieving

READING_STEPS = 16  # in turn, after which steps that read prompts tell what a step costs
OWN_SCHEDULERS = "external_launcher"
EVIDENCE = "LOGITSPEC_EVIDENCE"  # names a state, as evaluation.vocabulary writes one
MOST_DRAFTS = 128  # of a request, that vLLM 0.32 verifies
Watch = Callable[[], str | None]
Tokens = npt.NDArray[np.integer[Any]]


class Proposer(ABC):
    """Drafts chains for the requests of an engine.

    Only the first rank of those that share a layer's tensors drafts: vLLM's scheduler takes its
    drafts alone and gives them to all ranks, so the others need not come to the same ones.

    Args:
        config: vLLM's VllmConfig.
        rank: among those that share a layer's tensors; None: vLLM knows.
        watch: has vLLM show the logits, or says why it does not.

    Attributes:
        width: best tokens of each verified position that it wants to see.
        seen: the step that propose() is called for next, where vLLM shows it (logits.py).
        budget: how many drafts a step is worth.

    Raises:
        InputError: vLLM would verify so many drafts with a crash, or every rank has a scheduler of
            its own, which would take other drafts.
    """

    width: int

    def __init__(self, config: Any, rank: int | None = None, watch: Watch = logits.watch) -> None:
        ranks = config.parallel_config
        if ranks.distributed_executor_backend == OWN_SCHEDULERS and ranks.world_size > 1:
            raise InputError(
                f"with distributed_executor_backend {OWN_SCHEDULERS!r} every rank schedules by "
                "itself, and their drafts would differ; give another one, or a single rank"
            )
        self.most_drafts: int = config.speculative_config.num_speculative_tokens
        if self.most_drafts > MOST_DRAFTS:
            raise InputError(
                f"num_speculative_tokens is {self.most_drafts}, and vLLM verifies {MOST_DRAFTS} at "
                "most; give fewer"
            )
        mend()
        self._compiling = getattr(config, "compilation_config", None)
        self._longest: int = config.model_config.max_model_len
        self.budget = BatchBudget(config.scheduler_config.max_num_batched_tokens)
        self.requests = Requests(self._begin_timed, self._end)
        self.seen: logits.Seen | None = None
        self._drafts_here = (own_rank() if rank is None else rank) == 0
        self._began: float | None = None  # when the last step's drafts were made
        self._drafting = 0.0  # seconds that took, and finding the best tokens
        self._beginning = 0.0  # seconds of these for requests that were new
        self._reading = 0  # steps in turn that read prompts
        self._warned = False
        if self._drafts_here and (why := watch()):
            self._warn(why)

    def _warn(self, why: str) -> None:
        if not self._warned:
            logits.log.warning(
                "logitspec drafts from n-grams alone, because vLLM does not show the logits: %s",
                why,
            )
        self._warned = True

    @property
    def looks(self) -> bool:
        """Whether it wants the best tokens of the next step."""
        return self._drafts_here and not self.budget.rest

    @abstractmethod
    def _begin(self, ids: Sequence[int]) -> Drafts:
        """The drafts of a request with these tokens."""

    def _end(self, drafts: Any) -> None:  # noqa: B027 - optional
        """Take leave of a request's drafts."""

    def load_model(self, *_: Any, **__: Any) -> None:  # noqa: B027 - there is none
        """Called by vLLM; there is nothing to load."""

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: Tokens,
        token_ids_cpu: Tokens,
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """The drafts of every request.

        Args:
            sampled_token_ids: of each, the tokens of the last step; none while its prompt is read.
            num_tokens_no_spec: [requests] all tokens of each, these included.
            token_ids_cpu: [requests, longest] these tokens.

        Returns:
            Of each the tokens that may follow; empty where nothing is proposed.
        """
        seen, self.seen = self.seen, None
        count = len(sampled_token_ids)
        if not self._drafts_here:
            return [[] for _ in range(count)]
        start = time.perf_counter()
        if seen is None or len(seen.requests) != count:
            seen = None
            self._warn("its runner is not as in vLLM 0.32")
        last, self._beginning = self._beginning, 0.0
        known = self.requests.step(sampled_token_ids, num_tokens_no_spec, token_ids_cpu, seen)
        decoding = [request for request in known if request is not None]
        context = sum(request.count for request in decoding) // max(1, len(decoding))
        old = [request for request in decoding if not request.is_new]
        tokens = None if seen is None else seen.tokens
        if tokens is None and len(old) == count:  # no prompt was read
            tokens = sum(1 + request.looked_at for request in old)
        self.budget.most_even = most_even_tokens(self._compiling)
        self.budget.even = self.most_drafts if self.budget.most_even else 0
        self._drafting += 0.0 if seen is None else seen.seconds
        self._learn(old, tokens, context, start - last)
        drafts = self._draft(known, context)
        self._began, self._drafting = start, time.perf_counter() - start - self._beginning
        return drafts

    def _begin_timed(self, ids: Sequence[int]) -> Drafts:
        start = time.perf_counter()
        drafts = self._begin(ids)
        self._beginning += time.perf_counter() - start
        return drafts

    def _learn(self, old: Sequence[Followed], tokens: int | None, context: int, now: float) -> None:
        """Take in what became of the last drafts, and how long the step took.

        Args:
            old: the requests that had drafts, or might have.
            tokens: of the step; None: not known.
            context: tokens of a request, the mean.
            now: the time, less what the last step's new requests took.
        """
        for request in old:
            if request.verified:
                hoped = sum(request.paths[: request.verified])
                self.budget.learn(hoped, request.accepted, request.verified)
        most, count = self.budget.even, len(old)
        even = most > 0 and tokens == count * (1 + most) and all(r.looked_at == most for r in old)
        self.budget.came(even)
        if tokens is None or not old or self._began is None or any(r.missed for r in old):
            return  # without an old request, the engine may have waited before the step
        drafting = sum(1 + request.looked_at for request in old)
        self._reading = 0 if tokens == drafting else self._reading + 1
        # A prompt's tokens are cheaper than drafts, so they are counted only where all steps read
        if not self._reading or self._reading > READING_STEPS:
            self.budget.note(tokens, context, now - self._began, self._drafting, even=even)

    def _draft(self, known: Sequence[Followed | None], context: int) -> list[list[int]]:
        """The drafts of each row, as many as are worth it."""
        if self.budget.resting():
            return [[] for _ in known]
        even = self.budget.even > 0
        for request in known:
            if request is not None:
                most = min(self.most_drafts, self._longest - request.count - 1)
                request.draft(max(0, most))
            even = even and request is not None and most == self.most_drafts
        paths = [[] if request is None else request.paths for request in known]
        drafting = sum(request is not None for request in known)
        counts = self.budget.choose(paths, drafting, context, even=even)
        return [
            [] if request is None else request.offer(count)
            for request, count in zip(known, counts, strict=True)
        ]


class CalibratedProposer(Proposer):
    """Chains of the method calibrated: at every place the candidate that is most likely right.

    Where the environment variable EVIDENCE names a state of that method, it begins with its answers
    and rows.

    Raises:
        InputError: as Proposer, or that file is no such state, or of another tokenizer.
    """

    width = 24

    def __init__(self, config: Any, rank: int | None = None, watch: Watch = logits.watch) -> None:
        super().__init__(config, rank, watch)
        if not self._drafts_here:
            return
        self.chains = Chains(self.most_drafts, last_width=self.width)
        if file := os.environ.get(EVIDENCE):
            with way_out(f"give another file as {EVIDENCE}"):
                state = read_state(Path(file), CalibratedDrafter.name, fingerprint_of(config))
                self.chains.begin_with(state.arrays)
            logits.log.info("logitspec begins with what is in %s", file)

    def _begin(self, ids: Sequence[int]) -> Chain:
        return self.chains.begin(ids)

    def _end(self, drafts: Chain) -> None:
        self.chains.end(drafts)


class LogitSpecProposer(Proposer):
    """The paper's drafts as a chain: what is retrieved after the last token; where nothing is, the
    best guess of the last logits at the token after that one, and what is retrieved after it."""

    width = WIDTH

    def __init__(self, config: Any, rank: int | None = None, watch: Watch = logits.watch) -> None:
        super().__init__(config, rank, watch)
        self.retrieving = Retrieving()

    def _begin(self, ids: Sequence[int]) -> RetrievedChain:
        return self.retrieving.begin(ids, self.most_drafts)


def most_even_tokens(compiling: Any) -> int:
    """Tokens of the largest step that vLLM replays as one CUDA graph, a full one of uniform decode,
    where each request has as many drafts as vLLM was started with; 0: it replays none.

    Its runner decides that after it has made the proposer.

    Args:
        compiling: vLLM's CompilationConfig.
    """
    mode = getattr(compiling, "cudagraph_mode", None)
    if mode is None or not mode.separate_routine() or mode.decode_mode().name != "FULL":
        return 0
    return getattr(compiling, "max_cudagraph_capture_size", None) or 0


def fingerprint_of(config: Any) -> str | None:
    """Of vLLM's tokenizer; None: it has none."""
    model = config.model_config
    if getattr(model, "skip_tokenizer_init", False):
        return None
    from transformers import AutoTokenizer

    options = {"revision": model.tokenizer_revision, "trust_remote_code": model.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(model.tokenizer, **options)
    return tokenizer_fingerprint(tokenizer)


def own_rank() -> int:
    """This process's rank among those that share a layer's tensors."""
    from vllm.distributed import get_tensor_model_parallel_rank

    rank: int = get_tensor_model_parallel_rank()
    return rank
