"""Tokens per second of a trace's answers, and a method's against its baseline's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from model.logitspec.errors import InputError

from .reading import Record
from .tasks import list_tasks, task_of

TokenCount = Callable[[Record], int]  # of a question's first choice
SpeedRow = dict[str, float]  # the numbers of one task


def recorded_tokens(record: Record) -> int:
    return int(sum(record["choices"][0]["new_tokens"]))


def retokenized(tokenizer: Any) -> TokenCount:
    """Count a choice's tokens as the reference does: its texts encoded again, one token off each.

    Every text is encoded once, whatever number of tasks asks for it.
    """
    lengths: dict[str, int] = {}

    def count(record: Record) -> int:
        texts = record["choices"][0]["turns"]
        for text in texts:
            if text not in lengths:
                lengths[text] = len(tokenizer(text).input_ids) - 1
        return sum(lengths[text] for text in texts)

    return count


def question_speed(record: Record, count: TokenCount = recorded_tokens) -> float:
    """Tokens over wall time."""
    return float(count(record) / sum(record["choices"][0]["wall_time"]))


def tokens_per_second(records: Sequence[Record], count: TokenCount) -> float:
    """Mean over questions of tokens over wall time."""
    return float(np.mean([question_speed(record, count) for record in records]))


def compare_speeds(
    trace: Sequence[Record], base: Sequence[Record], count_base: TokenCount
) -> dict[str, SpeedRow]:
    """One row per task present, Spec-Bench's first in its order, and `overall`.

    Args:
        trace: answers of the method.
        base: the baseline's answers to the same questions.
        count_base: how the baseline's tokens are counted.

    Raises:
        InputError: the baseline's answers count no tokens.
    """
    return {
        name: compare_task(
            [r for r in trace if name in ("overall", task_of(r["category"]))],
            [r for r in base if name in ("overall", task_of(r["category"]))],
            count_base,
        )
        for name in [*list_tasks(trace), "overall"]
    }


def compare_task(
    trace: Sequence[Record], base: Sequence[Record], count_base: TokenCount
) -> SpeedRow:
    speed = tokens_per_second(trace, recorded_tokens)
    base_speed = tokens_per_second(base, count_base)
    if base_speed == 0:
        raise InputError("the baseline's answers count no tokens, so there is no speedup to give")
    accept_lengths = [a for r in trace for a in r["choices"][0]["accept_lengths"]]
    return {
        "questions": len(trace),
        "steps": len(accept_lengths),
        "mat": float(np.mean(accept_lengths)),
        "tokens_per_second": speed,
        "baseline_tokens_per_second": base_speed,
        "speedup": speed / base_speed,
    }
