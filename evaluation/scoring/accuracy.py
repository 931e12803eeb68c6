"""Accuracy of traces with its 95 % interval, and what a method changes. For score and the tables.

The interval is Wilson's. That of a difference is for pairs, since two methods answer the same
questions: Agresti and Min, Statistics in Medicine 24 (2005), the Wald interval with half a question
added to each of the four counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from model.logitspec.errors import InputError

from ..traces.comparing import Comparison, Trace
from .judging import NOT_INSTALLED, can_judge_mathematics, is_right
from .keys import Keys, asked_questions, read_keys

Z = 1.959964  # of 95 %
Interval = tuple[float, float]


def accuracy(marks: Sequence[bool]) -> tuple[float, Interval]:
    """The share of right answers and its interval, in percent."""
    count, share = len(marks), sum(marks) / len(marks)
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z * sqrt(share * (1 - share) / count + (Z / (2 * count)) ** 2) / (1 + Z**2 / count)
    return 100 * share, (100 * max(0.0, middle - half), 100 * min(1.0, middle + half))


def difference(marks: Sequence[bool], base: Sequence[bool]) -> tuple[float, Interval]:
    """Accuracy beyond that of a baseline and the interval of it, in percent points."""
    pairs = [*zip(marks, base, strict=True)]
    won = sum(ours and not theirs for ours, theirs in pairs)
    lost = sum(theirs and not ours for ours, theirs in pairs)
    count, middle = len(pairs) + 2, (won - lost) / (len(pairs) + 2)
    half = Z * sqrt(won + lost + 1 - (won - lost) ** 2 / count) / count
    return 100 * (won - lost) / len(pairs), (100 * (middle - half), 100 * (middle + half))


def mark(trace: Trace, keys: Keys) -> list[bool]:
    """Whether the last turn of each question with a key is answered right."""
    texts = {r["question_id"]: "".join(r["choices"][0]["turns"][-1:]) for r in trace.records}
    return [is_right(key, texts[asked]) for asked, key in keys.items() if asked in texts]


def equal_answers(trace: Trace, base: Trace) -> int:
    """How many questions two traces answer with the same texts."""
    theirs = {r["question_id"]: r["choices"][0]["turns"] for r in base.records}
    return sum(r["choices"][0]["turns"] == theirs[r["question_id"]] for r in trace.records)


def find_keys(comparison: Comparison) -> tuple[Keys, str]:
    """The keys of mathematical answers for a table of traces, and a note if they cannot be used.

    Empty where the benchmark has none, or its questions are not at hand: `evaluation.score` says
    why. Programs are run by that command only.
    """
    known = next((trace for trace in comparison.traces if trace.settings), None)
    if known is None:
        return {}, ""
    try:
        questions = asked_questions(known.settings, known.path)
    except InputError:
        return {}, ""
    try:
        keys = read_keys(questions)
    except InputError as error:
        return {}, f"No accuracy: {error}."
    asked = {record["question_id"] for record in known.records}
    keys = {name: key for name, key in keys.items() if name in asked and not key.test}
    if keys and comparison.first_turns:
        return {}, "No accuracy: it is the last turn's."
    if keys and not can_judge_mathematics():
        return {}, f"No accuracy: {NOT_INSTALLED}."
    return keys, ""
