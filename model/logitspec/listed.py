"""Lists of numbers that drafters keep, as one array each, to be saved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]
ScoredRow = tuple[Sequence[int], Sequence[float]]  # best tokens, their log-probabilities
MOST_TOKENS = 1 << 24  # of a vocabulary, as in drafters/calibrated/evidence.h


def list_answers(answers: Iterable[Sequence[int]]) -> Numbers:
    """Answers that are not empty, in one array: each one's tokens and a -1."""
    return np.array([t for answer in answers if answer for t in (*answer, -1)], np.int64)


def answers_of(listed: Numbers) -> list[list[int]]:
    """What list_answers() listed."""
    return [part[:-1].tolist() for part in np.split(listed, np.flatnonzero(listed < 0) + 1)[:-1]]


def are_answers(listed: Numbers) -> bool:
    """Whether list_answers() may have listed these."""
    if listed.ndim != 1 or not np.issubdtype(listed.dtype, np.integer):
        return False
    inside = (listed >= -1) & (listed < MOST_TOKENS)
    return bool(inside.all()) and (not len(listed) or bool(listed[-1] == -1))


def list_rows(rows: Mapping[int, Sequence[int]]) -> Numbers:
    """The best tokens after tokens, in one array, by ascending token: it, how many, these."""
    listed: list[int] = []
    for token, row in sorted(rows.items()):
        listed += (token, len(row), *row)
    return np.array(listed, np.int64)


def rows_of(listed: Numbers) -> dict[int, list[int]]:
    """What list_rows() listed."""
    numbers = listed.tolist()
    rows: dict[int, list[int]] = {}
    at = 0
    while at < len(numbers):
        token, count = numbers[at : at + 2]
        rows[token] = numbers[at + 2 : at + 2 + count]
        at += 2 + count
    return rows


def scored_row(tokens: Sequence[int], logs: Sequence[float]) -> ScoredRow:
    """A row of best tokens, its numbers in float32."""
    return tokens, np.array(logs, np.float32).astype(float).tolist()


def without_filtered(row: ScoredRow) -> ScoredRow:
    """A row without the tokens that are filtered out, which come last."""
    tokens, logs = row
    count = logs.index(-math.inf) if -math.inf in logs else len(logs)
    return tokens[:count], logs[:count]


def list_scored(rows: Mapping[int, ScoredRow]) -> tuple[Numbers, Numbers]:
    """The tokens of such rows as list_rows() does, and all log-probabilities in that order."""
    logs = [value for _, (_, row) in sorted(rows.items()) for value in row]
    tokens = {token: row for token, (row, _) in rows.items()}
    return list_rows(tokens), np.array(logs, np.float32)


def scored_of(listed: Numbers, logs: Numbers) -> dict[int, ScoredRow]:
    """What list_scored() listed."""
    rows: dict[int, ScoredRow] = {}
    numbers, at = logs.astype(float).tolist(), 0
    for token, row in rows_of(listed).items():
        rows[token] = row, numbers[at : at + len(row)]
        at += len(row)
    return rows


def cut_scored(listed: Numbers, logs: Numbers, width: int) -> tuple[Numbers, Numbers]:
    """What list_scored() listed, without what is beyond so many tokens of a row."""
    listed = listed.copy()
    tokens, kept = np.ones(len(listed), bool), np.ones(len(logs), bool)
    at = place = 0
    while at < len(listed):
        count = int(listed[at + 1])
        if count > width:
            tokens[at + 2 + width : at + 2 + count] = False
            kept[place + width : place + count] = False
            listed[at + 1] = width
        at, place = at + 2 + count, place + count
    return listed[tokens], logs[kept]


def are_scored(listed: Numbers, logs: Numbers) -> bool:
    """Whether list_scored() may have listed these."""
    if logs.ndim != 1 or not (np.issubdtype(logs.dtype, np.floating) or not len(logs)):
        return False
    return count_tokens(listed) == len(logs) and bool((logs <= 0).all())


def count_tokens(listed: Numbers) -> int | None:
    """How many tokens all rows hold; None: list_rows() cannot have listed these."""
    if listed.ndim != 1 or not np.issubdtype(listed.dtype, np.integer):
        return None
    numbers = listed.tolist()
    at = found = 0
    while at < len(numbers):
        count = numbers[at + 1] if at + 1 < len(numbers) else -1
        end = at + 2 + count
        tokens = [numbers[at], *numbers[at + 2 : end]]
        if count < 1 or end > len(numbers) or not all(0 <= t < MOST_TOKENS for t in tokens):
            return None
        at, found = end, found + count
    return found
