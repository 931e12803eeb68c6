"""The decoding loop every method shares: prefill, then draft, verify, accept, commit until done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from .acceptance import TreeTensors, Verdict, accept
from .devices import sent
from .draft_tree import DraftTree
from .errors import InputError, is_whole
from .kv_cache import KVCache
from .modeling_llama_kv import LlamaKVForCausalLM
from .sampling import Chooser
from .verification import node_bucket, verifier

if TYPE_CHECKING:
    from .drafters import Drafter

PREFILL_LOGITS = 256  # prompt tokens whose logits are computed at a time, where all are wanted


@dataclass
class DecodingResult:
    """One generation: what came out, in how many steps, and where the time went.

    A step is one verification forward; prefill is none. sum(accept_lengths) == len(tokens) always.
    Seconds are wall time per phase, summed over the steps. On a GPU `verify` is the time to start
    the forward and `accept`, which needs its result, holds the wait for it; the cache moves of
    `commit` run behind the next step's work.
    """

    prompt_tokens: int
    tokens: list[int] = field(default_factory=list)  # generated ids, EOS included
    accept_lengths: list[int] = field(default_factory=list)  # tokens committed per step
    tree_sizes: list[int] = field(default_factory=list)  # nodes verified per step, root included
    step_seconds: list[float] = field(default_factory=list)  # wall time per step
    # Per step: 1 when drafts followed the last accepted node and all were wrong, else 0
    misses: list[int] = field(default_factory=list)
    # Per step that a token came after: the rank, in the logits that chose the root, of the token
    # after the root; -1 when it is not among the drafter's top_k. Empty when that is 0.
    next_next_ranks: list[int] = field(default_factory=list)
    prefill_seconds: float = 0.0
    draft_seconds: float = 0.0  # with what the drafter does with the prompt
    build_seconds: float = 0.0  # the tree to the device; where it is of a new size, its CUDA graph
    verify_seconds: float = 0.0  # the target's forward
    accept_seconds: float = 0.0  # acceptance, and its result to the host
    commit_seconds: float = 0.0  # cache, drafter's observe, bookkeeping

    @property
    def steps(self) -> int:
        return len(self.accept_lengths)

    @property
    def mean_accepted_tokens(self) -> float:
        """MAT: tokens per verification forward."""
        return len(self.tokens) / self.steps


@dataclass(frozen=True)
class Step:
    """What became of a draft tree."""

    tree: DraftTree
    path: list[int]  # committed nodes, the root's index first
    origins: list[str]  # where each node comes from, see Drafter.origins


@torch.inference_mode()
def decode(
    model: LlamaKVForCausalLM,
    prompt_ids: Sequence[int],
    drafter: Drafter,
    *,
    max_new_tokens: int,
    eos_token_ids: Collection[int] = (),
    on_commit: Callable[[list[int]], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
    stop: Callable[[list[int]], bool] | None = None,
    chooser: Chooser | None = None,
) -> DecodingResult:
    """Decode with a drafter; the tokens are the target's own, whatever the drafter.

    Args:
        model: the target, from `load`.
        prompt_ids: token ids of the prompt, at least one.
        drafter: proposes the trees.
        max_new_tokens: most tokens to generate; never exceeded.
        eos_token_ids: generation ends with the first of these, which is kept.
        on_commit: called after each step with the tokens it committed, for streaming.
        on_step: the same with the tree that was verified.
        stop: asked after every token with all tokens so far; the first that it says yes to, which
            is kept, ends the generation.
        chooser: of the target's tokens, after all of the prompt but its last token; None: the best
            ones.

    Several threads may decode with one model at a time, and a callback may decode again: each call
    has a KV cache of its own.

    Raises:
        InputError: an empty prompt, no new tokens, more tokens than the model has positions, a
            drafter that another call is using, or a draft tree over the drafter's capacity.
    """
    check_lengths(len(prompt_ids), max_new_tokens, model.max_positions)
    if chooser is not None:
        chooser.until(len(prompt_ids) + max_new_tokens, len(prompt_ids), eos_token_ids)
    result = DecodingResult(prompt_tokens=len(prompt_ids))
    with reserved(drafter):
        drafter.prepare(model)
        slots = len(prompt_ids) + max_new_tokens + node_bucket(drafter.capacity)
        with model.cache(slots) as cache:
            step = verifier(model, cache, drafter.top_k, drafter.node_top_k, chooser)

            clock = time.perf_counter()
            verdict = prefill(
                model, prompt_ids, cache, drafter.top_k, drafter.prompt_top_k, chooser
            )
            result.prefill_seconds = time.perf_counter() - clock

            clock = time.perf_counter()
            drafter.reset(prompt_ids, verdict.node_top_ids)
            result.draft_seconds = time.perf_counter() - clock

            finished = False
            while not finished:
                remaining = max_new_tokens - len(result.tokens)
                start = time.perf_counter()
                last_top_ids = verdict.top_ids
                drafted_tree = check_capacity(
                    drafter.draft(verdict.next_root, last_top_ids), drafter
                )
                tree = drafted_tree.without_deeper_than(remaining - 1)
                drafted = time.perf_counter()
                origins = drafter.origins(drafted_tree) if on_step is not None else []
                step.build(tree)
                built = time.perf_counter()
                step.forward()
                verified = time.perf_counter()
                verdict = step.accept()
                accepted = time.perf_counter()
                path, ended = until_end(tree, verdict.path, result.tokens, eos_token_ids, stop)
                cache.keep(path)
                drafter.observe(tree, path, verdict.node_top_ids)
                committed = [tree.tokens[node] for node in path]
                if chooser is not None:
                    chooser.commit(committed)
                result.tokens += committed
                result.accept_lengths.append(len(path))
                result.tree_sizes.append(len(tree))
                result.misses.append(int(not ended and has_drafts_below(tree, path)))
                if last_top_ids and committed[0] not in eos_token_ids:
                    next_next = committed[1] if len(path) > 1 else verdict.next_root
                    result.next_next_ranks.append(rank(next_next, last_top_ids))
                result.draft_seconds += drafted - start
                result.build_seconds += built - drafted
                result.verify_seconds += verified - built
                result.accept_seconds += accepted - verified
                end = time.perf_counter()
                result.commit_seconds += end - accepted
                result.step_seconds.append(end - start)
                if on_commit is not None:
                    on_commit(committed)
                if on_step is not None:
                    whole = zip(origins, drafted_tree.depths, strict=True)
                    on_step(
                        Step(tree, path, [origin for origin, depth in whole if depth < remaining])
                    )
                finished = ended or len(result.tokens) >= max_new_tokens
    return result


def prefill(
    model: LlamaKVForCausalLM,
    prompt_ids: Sequence[int],
    cache: KVCache,
    top_k: int,
    prompt_top_k: int = 0,
    chooser: Chooser | None = None,
) -> Verdict:
    """Run the prompt through the model into the cache; its last logits choose the first root.

    The verdict's node_top_ids are the best `prompt_top_k` token ids after each prompt token.
    """
    x = read_in(model, prompt_ids, cache)
    cache.keep(range(len(prompt_ids)))
    logits = model.logits(x[-1:])
    last = DraftTree(prompt_ids[-1], 1)
    chosen = None
    if chooser is not None:
        chosen = chooser.choose(logits, last)
        chooser.commit(last.tokens)
    verdict = accept(logits, TreeTensors.upload(last, logits.device), top_k, chosen=chosen)
    if prompt_top_k:
        width = min(prompt_top_k, logits.shape[1])
        best = [model.logits(some).topk(width).indices for some in torch.split(x, PREFILL_LOGITS)]
        verdict = replace(verdict, node_top_ids=torch.cat(best).tolist())
    return verdict


@torch.inference_mode()
def last_logits(model: LlamaKVForCausalLM, ids: Sequence[int]) -> torch.Tensor:
    """The target's logits after a sequence, [vocab], in one forward over all of it."""
    with model.cache(len(ids)) as cache:
        logits: torch.Tensor = model.logits(read_in(model, ids, cache)[-1:])
    return logits[0]


def read_in(model: LlamaKVForCausalLM, ids: Sequence[int], cache: KVCache) -> torch.Tensor:
    """Hidden states [n, hidden] of a sequence in an empty cache; commits nothing."""
    tokens = sent(ids, model.device)
    positions = torch.arange(len(ids), device=model.device)
    x: torch.Tensor = model.hidden_states(tokens, positions, cache, last_position=len(ids) - 1)
    return x


IN_USE: set[int] = set()  # ids of the drafters of the generations under way
IN_USE_LOCK = threading.Lock()


@contextmanager
def reserved(drafter: Drafter) -> Iterator[None]:
    """Keep a drafter to one generation.

    Raises:
        InputError: another one is using it.
    """
    with IN_USE_LOCK:
        if id(drafter) in IN_USE:
            raise InputError(
                f"this {type(drafter).__name__} is drafting for another generation; give each "
                "generation that runs at the same time a drafter of its own"
            )
        IN_USE.add(id(drafter))
    try:
        yield
    finally:
        IN_USE.discard(id(drafter))


def has_drafts_below(tree: DraftTree, path: Sequence[int]) -> bool:
    """Whether a draft followed the path's tokens, on the path or on a branch that equals it."""
    tokens = [tree.tokens[node] for node in path]
    twins = {0}
    for node in range(1, len(tree)):
        if tree.parents[node] in twins:
            depth = tree.depths[node]
            if depth == len(path):
                return True
            if tree.tokens[node] == tokens[depth]:
                twins.add(node)
    return False


def rank(token: int, top_ids: Sequence[int]) -> int:
    """Index of a token among the best ones; -1 when it is none of them."""
    return top_ids.index(token) if token in top_ids else -1


def until_end(
    tree: DraftTree,
    path: list[int],
    before: Sequence[int],
    eos_token_ids: Collection[int],
    stop: Callable[[list[int]], bool] | None,
) -> tuple[list[int], bool]:
    """The path up to and including the first token that ends the generation, and whether one does.

    Args:
        before: the tokens generated before this path.
    """
    tokens = [*before] if stop is not None else []
    for count, node in enumerate(path, start=1):
        if tree.tokens[node] in eos_token_ids:
            return path[:count], True
        if stop is not None:
            tokens.append(tree.tokens[node])
            if stop(tokens):
                return path[:count], True
    return path, False


def check_capacity(tree: DraftTree, drafter: Drafter) -> DraftTree:
    """The tree, if it is no larger than its drafter says; InputError otherwise."""
    if len(tree) > drafter.capacity:
        raise InputError(
            f"a draft tree of {len(tree)} nodes from a drafter whose capacity is "
            f"{drafter.capacity}; correct one of them"
        )
    return tree


def check_lengths(prompt_tokens: int, max_new_tokens: int, max_positions: int) -> None:
    """Raise InputError unless prompt and new tokens fit the model's positions."""
    if not is_whole(max_new_tokens):
        raise InputError(f"max_new_tokens is {max_new_tokens!r}; give a whole number, 1 or more")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens is {max_new_tokens}; give 1 or more")
    if prompt_tokens < 1:
        raise InputError("the prompt is empty; give at least one token")
    if prompt_tokens + max_new_tokens > max_positions:
        raise InputError(
            f"the prompt's {prompt_tokens} tokens and max_new_tokens {max_new_tokens} exceed "
            f"the model's {max_positions} positions (its sliding window, where it has one); "
            "shorten one of them"
        )
