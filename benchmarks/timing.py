"""Times steps and prompts of loaded models in turn, for step_cost and scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

import torch

from model.logitspec import DraftTree, LlamaKVForCausalLM
from model.logitspec.fastest import SETTLING
from model.logitspec.prefill import prefill
from model.logitspec.sizing.measuring import filled_cache, interleaved, wide_tree
from model.logitspec.verification import Verifier, find_verifier


def step_times(
    models: Mapping[str, LlamaKVForCausalLM], context: int, nodes: Sequence[int], rounds: int
) -> dict[tuple[str, int], tuple[list[float], list[float]]]:
    """Seconds of draft-tree verification (inputs up, forward, acceptance, result down), each round,
    by the name of the model and the nodes; all take turns.

    Beside them the seconds of it that a GPU spent on the forward; none on a CPU.
    """
    on_device: dict[tuple[str, int], list[float]] = {(m, n): [] for m in models for n in nodes}
    event = cast("Any", torch.cuda.Event)

    def on_cpu(step: Verifier, tree: DraftTree, _: list[float]) -> None:
        step.build(tree)
        step.forward()
        step.accept()

    def on_gpu(step: Verifier, tree: DraftTree, took: list[float]) -> None:
        start, end = event(enable_timing=True), event(enable_timing=True)
        step.build(tree)
        start.record()
        step.forward()
        end.record()
        step.accept()
        end.synchronize()
        took.append(start.elapsed_time(end) / 1e3)

    with ExitStack() as stack:
        steps = {}
        for name, model in models.items():
            cache = stack.enter_context(filled_cache(model, context, room=max(nodes)))
            step = find_verifier(model, cache, top_k=min(64, model.config.vocab_size))
            run = on_gpu if model.device.type == "cuda" else on_cpu
            for n in nodes:
                key = name, n
                steps[key] = partial(run, step, wide_tree(n), on_device[key])
        measured = interleaved(steps, rounds, SETTLING)
    return {key: (seconds, on_device[key][1:]) for key, seconds in measured.items()}


def prompt_times(
    models: Mapping[str, LlamaKVForCausalLM], tokens: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds to read a prompt of so many tokens, each round, by the name of the model."""

    def read(model: LlamaKVForCausalLM) -> None:
        ids = [i % min(1000, model.config.vocab_size) for i in range(tokens)]
        with model.cache(tokens + 1) as cache:
            prefill(model, ids, cache, top_k=0)

    reads = {name: partial(read, model) for name, model in models.items()}
    return interleaved(reads, rounds, SETTLING)
