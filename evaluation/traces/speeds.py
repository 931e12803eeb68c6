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


def compare_speeds(
    trace: Sequence[Record], base: Sequence[Record], count_base: TokenCount
) -> dict[str, SpeedRow]:
    """One row per task present, Spec-Bench's first in its order, and `overall`.

    A task's tokens/s is the mean over its questions. `count_base` counts the baseline's tokens;
    InputError if it finds none.
    """
    rows: dict[str, SpeedRow] = {}
    for name in [*list_tasks(trace), "overall"]:
        ours, theirs = (
            [r for r in records if name in ("overall", task_of(r["category"]))]
            for records in (trace, base)
        )
        speed = float(np.mean([question_speed(record) for record in ours]))
        base_speed = float(np.mean([question_speed(record, count_base) for record in theirs]))
        if base_speed == 0:
            raise InputError(
                "the baseline's answers count no tokens, so there is no speedup to give"
            )
        accept_lengths = [n for r in ours for n in r["choices"][0]["accept_lengths"]]
        rows[name] = {
            "questions": len(ours),
            "steps": len(accept_lengths),
            "mat": float(np.mean(accept_lengths)),
            "tokens_per_second": speed,
            "baseline_tokens_per_second": base_speed,
            "speedup": speed / base_speed,
        }
    return rows
