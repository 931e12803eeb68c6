"""What the answers of a benchmark are checked against. Read by accuracy.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.logitspec.errors import InputError

from ..asking.questions import load_questions, question_path, sha256


@dataclass(frozen=True)
class Key:
    """A mathematical answer, or a program's tests as in HumanEval."""

    answer: str = ""
    prompt: str = ""  # the code that is to be completed
    entry_point: str = ""  # the function that `test` checks
    test: str = ""


ASKED = {"question_id"}  # what a line has beside a Key's fields
Keys = dict[int | str, Key]  # by question id; questions without a known answer are missing


def asked_questions(settings: Mapping[str, Any], trace: Path) -> Path:
    """The question file that a trace answers.

    Args:
        settings: of the trace.

    Raises:
        InputError: the question file is not there, or is another than the one that was asked.
    """
    if not settings:
        raise InputError(f"{trace} has no sidecar that says which benchmark it answers")
    path = question_path(str(settings["bench_name"]))
    if sha256(path) != settings["questions"]:
        raise InputError(
            f"{path} holds other questions than {trace} answers; prepare those it was made with"
        )
    return path


def read_keys(questions: Path) -> Keys:
    """The keys of a question file's questions; empty if there are none. InputError as for these."""
    keys: Keys = {q.question_id: Key(q.answer) for q in load_questions(questions) if q.answer}
    answers = questions.with_name("answers.jsonl")
    if answers.exists():
        keys |= read_answers(answers)
    return keys


def read_answers(path: Path) -> Keys:
    """The keys that data.prepare wrote beside a question file that has none of its own."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        if not all(isinstance(row[field], str) for row in rows for field in row.keys() - ASKED):
            raise ValueError("a field is no text")
        return {row.pop("question_id"): Key(**row) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} holds no answers, which are lines of JSON with texts; delete it, and prepare "
            f"{path.parent.name} again if data.prepare has made it"
        ) from error
