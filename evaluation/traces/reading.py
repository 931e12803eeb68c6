"""Traces: one JSON line per question, and a sidecar that says how the trace was made.

A question that could not be answered has a line with its `error` and no choices; a later line for
the same question replaces it.

The lines of answers have the reference implementation's fields, so its tools read them. Further
fields per turn are output_ids, prompt_tokens and the seconds of each of PHASES. Further fields with
a number per step are tree_sizes, step_seconds, misses and next_next_ranks (as in
decoding.DecodingResult).
`NAME.jsonl` has the sidecar `NAME.meta.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from model.logitspec.errors import InputError

Record = dict[str, Any]

PHASES = tuple(
    f"{phase}_seconds" for phase in ("prefill", "draft", "build", "verify", "accept", "commit")
)
PER_TURN = ("decoding_steps", "prompt_tokens", *PHASES)  # a number or null per turn
PER_STEP = ("output_ids", "tree_sizes", "step_seconds", "misses", "next_next_ranks")

MT_BENCH_CATEGORIES = (
    "writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities",
)  # fmt: skip

TASKS = ("mt_bench", "translation", "summarization", "qa", "math_reasoning", "rag")


def validate(record: object) -> str | None:
    """What is wrong with a trace line, or None. Lines of the reference implementation pass."""
    if not isinstance(record, dict):
        return "is not a JSON object"
    for key, kinds in (("question_id", (int, str)), ("category", str), ("model_id", str)):
        if not isinstance(record.get(key), kinds):
            return f"has no {key!r}"
    if "error" in record:
        return None if isinstance(record["error"], str) else "has an error that is no text"
    if not isinstance(record.get("choices"), list) or not record["choices"]:
        return "has no choices"
    for choice in record["choices"]:
        if not isinstance(choice, dict):
            return "has a choice that is not an object"
        if not isinstance(choice.get("turns"), list) or not all(
            isinstance(t, str) for t in choice["turns"]
        ):
            return "has no list of texts 'turns' in a choice"
        for key in ("new_tokens", "wall_time", "accept_lengths"):
            values = choice.get(key)
            if not isinstance(values, list) or not values or not all(is_number(v) for v in values):
                return f"has no list of numbers {key!r} in a choice"
        if sum(choice["wall_time"]) <= 0:
            return "has a wall_time that is not positive"
        wrong = [key for key, value in choice.items() if not well_formed(key, value)]
        if wrong:
            return f"has no numbers {wrong[0]!r} in a choice"
    return None if is_number(record.get("tstamp", 0)) else "has a 'tstamp' that is no time"


def well_formed(key: str, value: object) -> bool:
    """Whether a field of a choice has this version's form; unknown fields may have any."""
    if key in PER_TURN:
        return isinstance(value, list) and all(v is None or is_number(v) for v in value)
    if key in PER_STEP:
        return isinstance(value, list) and all(
            isinstance(turn, list) and all(v == -1 or is_number(v) for v in turn) for turn in value
        )
    return True


def is_number(value: object) -> bool:
    """Whether a JSON value counts tokens or seconds: finite, not negative, not absurd."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e15


class Lines(NamedTuple):
    """What a trace holds."""

    answered: list[Record]
    failed: list[Record]  # lines with an error


def read_trace(path: Path) -> list[Record]:
    """The answers in a trace; InputError as of read_lines(), or if no question was answered."""
    lines = read_lines(path)
    check_answered(path, lines)
    return lines.answered


def check_answered(path: Path, lines: Lines) -> None:
    """Raise InputError, with the first question's error, if a trace holds no answer."""
    if not lines.answered:
        raise InputError(
            f"no question was answered in the trace {path}: {lines.failed[0]['error']}; "
            "mend that and run the inference script again"
        )


def read_lines(path: Path) -> Lines:
    """All lines of a trace, the last one for each question.

    InputError if there are none, one is no trace line, or a question is answered twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot read the trace {path}: {reason}") from error
    records: dict[Any, Record] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}:{number} is not JSON; delete the line") from error
        if (problem := validate(record)) is not None:
            raise InputError(f"{path}:{number} {problem}; it is no trace line")
        if "error" not in records.get(record["question_id"], {"error": ""}):
            raise InputError(
                f"{path}:{number} repeats question {record['question_id']}; "
                "delete one of the two lines"
            )
        records[record["question_id"]] = record
    if not records:
        raise InputError(f"the trace {path} is empty; run the inference script first")
    return Lines(
        [record for record in records.values() if "error" not in record],
        [record for record in records.values() if "error" in record],
    )


def output_ids(record: Record, choice: Record, path: Path) -> list[list[int]]:
    """The generated token ids of every turn of a choice; InputError if the trace lacks them."""
    ids = choice.get("output_ids")
    if not isinstance(ids, list) or not all(isinstance(turn, list) for turn in ids):
        raise InputError(
            f"question {record['question_id']} in {path} has no output_ids to compare; "
            "the reference implementation's traces have none"
        )
    return ids


def task_of(category: str) -> str:
    """A category's task: Spec-Bench puts MT-Bench's eight under one name, others are their own."""
    return "mt_bench" if category in MT_BENCH_CATEGORIES else category


def list_tasks(records: Sequence[Record]) -> list[str]:
    """The tasks present, Spec-Bench's first in its order."""
    found = dict.fromkeys(task_of(record["category"]) for record in records)
    return [t for t in TASKS if t in found] + [t for t in found if t not in TASKS]
