"""The decoding loop every method shares: prefill, then draft, verify, accept, commit until done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from .cuda_graphs import node_bucket
from .draft_tree import DraftTree
from .drafters.base import Drafter
from .errors import InputError, is_whole
from .kv_cache import KVCache
from .ledger import DecodingResult, Ledger
from .modeling_llama_kv import LlamaKVForCausalLM
from .prefill import prefill
from .sampling import Chooser, Foresight, greedy
from .sizing.live_cost import LiveCost
from .sizing.measuring import MeasuredModel, known_cost, note_prompt
from .verification import find_verifier


@dataclass(frozen=True)
class Step:
    """What became of a draft tree."""

    tree: DraftTree  # as it was verified: without drafts behind the end of the generation
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
    reuse_prefix: bool = False,
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
        chooser: of the target's tokens; its context is the prompt without its last token. None: the
            best ones.
        reuse_prefix: do not read again what the prompt begins with, if an earlier generation with
            this model, whose weights are the same, ended with these tokens in its cache.

    Several threads may decode with one model at a time, and a callback may decode again: each call
    has a KV cache of its own.

    Raises:
        InputError: an empty prompt, no new tokens, more tokens than the model has positions, a
            drafter that another call is using, or a draft tree over the drafter's capacity.
    """
    check_lengths(len(prompt_ids), max_new_tokens, model.max_positions)
    chooser = chooser or greedy()
    chooser.until(len(prompt_ids) + max_new_tokens, len(prompt_ids), eos_token_ids)
    with (
        prepared(drafter, model, chooser.foresight) as cost,
        cache_for(model, drafter, prompt_ids, max_new_tokens, reuse=reuse_prefix) as cache,
    ):
        widths = drafter.top_k, drafter.node_top_k
        verifier = find_verifier(model, cache, *widths, chooser, drafter.capacity)
        verifier.wants_logprobs = drafter.wants_logprobs
        ledger = Ledger(len(prompt_ids), cache.length, eos_token_ids)
        tokens = ledger.result.tokens
        verdict = prefill(model, prompt_ids, cache, drafter.top_k, drafter.prompt_top_k, chooser)
        ledger.lap("prefill")
        if not drafter.prompt_top_k:  # which takes logits of every token
            read = len(prompt_ids) - ledger.result.cached_tokens
            note_prompt(model, read, len(prompt_ids) - read, ledger.result.prefill_seconds)
        drafter.reset(prompt_ids, verdict.node_top_ids)
        ledger.lap("draft")

        ended = False
        while not ended and len(tokens) < max_new_tokens:
            ledger.begin_step(verdict)
            whole = check_capacity(drafter.draft(verdict.next_root, verdict.top_ids), drafter)
            nodes = whole.nodes_down_to(max_new_tokens - len(tokens) - 1)  # none behind the end
            tree = whole.only(nodes)
            ledger.lap("draft")

            origins = drafter.origins(whole) if on_step is not None else []
            verifier.build(tree)
            ledger.lap("build")
            verifier.wants_best = drafter.wants_best
            verifier.forward()
            ledger.lap("verify")

            verdict = verifier.accept()
            ledger.lap("accept", in_model=verifier.head_seconds)

            if cost is not None and drafter.wants_best:  # nothing is to be learnt in a rest
                cost.note(verifier.nodes, cache.length, ledger.target_seconds)
            path, ended = until_end(tree, verdict.path, tokens, eos_token_ids, stop)
            committed = [tree.tokens[node] for node in path]
            accepted = [nodes[node] for node in path]
            cache.keep(path)
            chooser.commit(committed)
            told: list[Any] = [verdict.node_top_ids]
            if drafter.wants_logprobs:
                told.append(verdict.node_top_logprobs)
            rows = (rows_of_all(numbers, nodes, len(whole)) for numbers in told)
            drafter.observe(whole, accepted, *rows)
            ledger.enter(tree, path, verdict, ended=ended)

            if on_commit is not None:
                on_commit(committed)
            if on_step is not None:
                on_step(Step(tree, path, [origins[node] for node in nodes]))
        cache.ids = [*prompt_ids, *tokens]
    return ledger.result


def cache_for(
    model: LlamaKVForCausalLM,
    drafter: Drafter,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    *,
    reuse: bool,
) -> AbstractContextManager[KVCache]:
    """A cache with slots for prompt, answer and a draft tree; `reuse`: one that may hold some."""
    slots = len(prompt_ids) + max_new_tokens + node_bucket(drafter.capacity)
    return model.cache(slots, prompt_ids if reuse else (), drafter.prompt_top_k)


def rows_of_all(rows: list[list[N]], nodes: Sequence[int], count: int) -> Sequence[Sequence[N]]:
    """Rows of some of a tree's `count` nodes as rows of all: the others' are empty."""
    if not rows or len(rows) == count:
        return rows
    known = dict(zip(nodes, rows, strict=True))
    return [known.get(node, []) for node in range(count)]


N = TypeVar("N", int, float)
IN_USE: set[int] = set()  # ids of the drafters of the generations under way
IN_USE_LOCK = threading.Lock()


@contextmanager
def prepared(
    drafter: Drafter, model: LlamaKVForCausalLM, foresight: Foresight | None
) -> Iterator[LiveCost | None]:
    """Keep a drafter that knows the model, and what can be known of samples, to one generation.

    Returns:
        What its steps are to be noted in; None if no drafter with its widths asked for that.

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
        drafter.foresee(foresight)
        drafter.prepare(MeasuredModel(model))
        cost = known_cost(model, drafter.top_k, drafter.node_top_k)
        yield cost
        if cost is not None:
            cost.store()
    finally:
        IN_USE.discard(id(drafter))


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
