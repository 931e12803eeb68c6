"""A question's task: Spec-Bench puts MT-Bench's eight categories under one name."""

from __future__ import annotations

from collections.abc import Sequence

from .reading import Record

MT_BENCH_CATEGORIES = (
    "writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities",
)  # fmt: skip

TASKS = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")


def task_of(category: str) -> str:
    """A category's task: Spec-Bench puts MT-Bench's eight under one name, others are their own."""
    return "mt_bench" if category in MT_BENCH_CATEGORIES else category


def list_tasks(records: Sequence[Record]) -> list[str]:
    """The tasks present, Spec-Bench's first in its order."""
    found = dict.fromkeys(task_of(record["category"]) for record in records)
    return [t for t in TASKS if t in found] + [t for t in found if t not in TASKS]
