"""What vLLM does not hand to a proposer: the logits of the positions that a step verified.

vLLM calls a proposer with tokens alone. But the runner that calls it has the logits, one row for
each position whose next token was sampled or verified, and passes them to its method `_sample` just
before. So that method is wrapped, once in a process, when the first proposer is made. Logits are
only read. A structured output's grammar has been applied to them by then: tokens that it forbids
are no candidates.

A step without any drafts is sampled as one without speculation: vLLM 0.32 ends with an error where
none are to be verified and a request has a top-k.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.functional import pad

log = logging.getLogger("vllm.logitspec")  # vLLM's own handlers print it

PARAMETERS = ["self", "logits", "spec_decode_metadata"]  # of the method in vLLM 0.32
WRAPPED = "_logitspec_wrapped"
BLOCK = 64  # tokens of the vocabulary, in whose best ones the best of all are looked for


class Seen(NamedTuple):
    """A step, by the runner's rows of its batch.

    Attributes:
        requests: the id of each row's request.
        alive: ids of all requests that did not end, those that wait in between included.
        drafts: of each row, how many drafts were verified.
        draft_ids: [sum of drafts] these drafts, row by row; below 0: vLLM's own padding.
        tokens: that the step was over, of prompts, too; None: not known.
        best: [sum of drafts + rows, width] ids of the best tokens after each verified position, the
            best first, and -1 where there are no more: of a row's last sampled token, then of its
            drafts. None: not wanted.
        seconds: that it took to find them.
    """

    requests: Sequence[str]
    alive: Collection[str]
    drafts: Sequence[int]
    draft_ids: torch.Tensor
    tokens: int | None
    best: torch.Tensor | None
    seconds: float = 0.0


class Watcher(Protocol):
    """What the wrapped method tells of a step."""

    seen: Seen | None  # the step that propose() is called for next
    width: int  # best tokens that it wants of each position
    looks: bool  # whether it wants them of the next step


def watch() -> str | None:
    """Have every runner of this process show its steps to its drafter, where that is a Watcher.

    Returns:
        Why that is not possible with this version of vLLM; None: it is done.
    """
    try:
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    except ImportError as error:
        return f"{error}"
    return wrap(GPUModelRunner)


def wrap(runner: Any) -> str | None:
    """Wrap `_sample` of a class of runners, see watch()."""
    sample = getattr(runner, "_sample", None)
    if getattr(sample, WRAPPED, False):
        return None
    if sample is None or [*inspect.signature(sample).parameters] != PARAMETERS:
        return f"{runner.__name__}._sample does not take {', '.join(PARAMETERS)}"

    @functools.wraps(sample)
    def shown(self: Any, logits: torch.Tensor | None, spec_decode_metadata: Any) -> Any:
        watcher = getattr(self, "drafter", None)
        if watcher is not None and hasattr(watcher, "seen"):
            width = watcher.width if watcher.looks else 0
            watcher.seen = look(self, logits, spec_decode_metadata, width)
            if spec_decode_metadata is not None and not sum(spec_decode_metadata.num_draft_tokens):
                spec_decode_metadata = None
        return sample(self, logits, spec_decode_metadata)

    setattr(shown, WRAPPED, True)
    runner._sample = shown
    return None


def look(runner: Any, logits: torch.Tensor | None, metadata: Any, width: int) -> Seen | None:
    """What a runner's step shows, with so many best tokens of each position; None: it is not built
    as in vLLM 0.32."""
    batch = getattr(runner, "input_batch", None)
    ids, alive = getattr(batch, "req_ids", None), getattr(runner, "requests", None)
    if logits is None or ids is None or alive is None:
        return None
    drafts = [0] * len(ids) if metadata is None else [*metadata.num_draft_tokens]
    if len(drafts) != len(ids) or sum(drafts) + len(ids) != len(logits):
        return None
    starts = getattr(getattr(runner, "query_start_loc", None), "np", None)
    tokens = None if starts is None else int(starts[len(ids)])
    none = torch.empty(0, dtype=torch.int64)
    draft_ids = none if metadata is None else getattr(metadata, "draft_token_ids", None)
    if draft_ids is None:
        return None
    start = time.perf_counter()
    best = best_tokens(logits, width) if width else None
    seconds = time.perf_counter() - start
    return Seen([*ids], alive.keys(), drafts, draft_ids, tokens, best, seconds)


def best_tokens(logits: torch.Tensor, width: int) -> torch.Tensor:
    """The best tokens of each row of logits [n, vocabulary], the best first, and -1 where no more
    are allowed: [n, width], or as many as there are.

    On a CPU torch.topk over a vocabulary takes some 0.1 ms a row. The best tokens are in the blocks
    whose best token is among the best of all blocks, so a third of that does.
    """
    n, vocabulary = logits.shape
    width = min(width, vocabulary)
    if logits.is_cpu and vocabulary >= 2 * BLOCK * width:
        if missing := -vocabulary % BLOCK:
            logits = pad(logits, (0, missing), value=-torch.inf)
        blocks = logits.reshape(n, -1, BLOCK)
        chosen = blocks.amax(-1).topk(width, sorted=False).indices
        within = blocks.gather(1, chosen[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
        values, at = within.topk(width)
        best = chosen.gather(1, at // BLOCK) * BLOCK + at % BLOCK
    else:
        values, best = logits.topk(width)
    return torch.where(values > -torch.inf, best, -1)
