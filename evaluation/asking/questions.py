"""Question sets: data/NAME/question.jsonl, one question a line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.logitspec.errors import InputError

from ..command.files import ROOT, is_plain
from .settings import QuestionSettings


@dataclass(frozen=True)
class Question:
    """One question: its turns are asked one after the other, each with the answers before it."""

    question_id: int | str
    category: str
    turns: tuple[str, ...]
    answer: str = ""  # what the last turn's answer is checked against; empty: not known


def question_path(bench_name: str) -> Path:
    """The question file of a benchmark; InputError if it does not exist."""
    if not is_plain(bench_name):
        raise InputError(f"{bench_name!r} is no benchmark's name; give a plain word")
    path = ROOT / "data" / bench_name / "question.jsonl"
    if not path.is_file():
        there = sorted(place.parent.name for place in ROOT.glob("data/*/question.jsonl"))
        raise InputError(
            f"no benchmark {bench_name!r} in data/, where {', '.join(there)} are; put yours into "
            f"data/{bench_name}/question.jsonl, or fetch a published one (`python -m data.prepare "
            "--help` lists them)"
        )
    return path


def load_questions(path: Path) -> list[Question]:
    """All questions of a file; InputError if there are none, or a line is no question."""
    questions: dict[int | str, Question] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            question = parse_question(json.loads(line))
        except (ValueError, RecursionError) as error:
            by_parse_question = type(error) is ValueError  # json raises subclasses
            reason = str(error) if by_parse_question else "is not JSON"
            raise InputError(
                f"{path}:{number} {reason}; "
                'a line is {"question_id": 1, "category": "qa", "turns": ["…"]}'
            ) from error
        if question.question_id in questions:
            raise InputError(f"{path}:{number} repeats question_id {question.question_id!r}")
        questions[question.question_id] = question
    if not questions:
        raise InputError(f"{path} holds no questions")
    return list(questions.values())


def parse_question(entry: object) -> Question:
    """A question from a line's JSON; ValueError says what is wrong with it."""
    if not isinstance(entry, dict):
        raise ValueError("is not a JSON object")
    question_id, category, turns = (entry.get(key) for key in ("question_id", "category", "turns"))
    if isinstance(question_id, bool) or not isinstance(question_id, int | str):
        raise ValueError("has no number or string 'question_id'")
    if not isinstance(category, str) or not category:
        raise ValueError("has no string 'category'")
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t for t in turns):
        raise ValueError("has no list of non-empty strings 'turns'")
    text = "".join([str(question_id), category, *turns])
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("has half a surrogate pair, which is no text")
    return Question(question_id, category, tuple(turns), known_answer(entry))


def known_answer(entry: Mapping[str, Any]) -> str:
    """The `answer` of a line, or GSM8K's form of one in its first `reference`; else empty."""
    references = entry.get("reference")
    first = references[0] if isinstance(references, list) and references else ""
    given = entry.get("answer", first if "####" in str(first) else "")
    known = isinstance(given, str | int | float) and not isinstance(given, bool)
    return str(given) if known else ""


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def answer_folder(bench_name: str) -> Path:
    """The default folder of a benchmark's traces."""
    return ROOT / "data" / bench_name / "model_answer"


def chosen_questions(settings: QuestionSettings) -> tuple[Path, list[Question]]:
    """The benchmark's file, and the questions of it that are asked; InputError if none are."""
    path = question_path(settings.bench_name)
    questions = load_questions(path)
    first = 0 if settings.question_begin is None else settings.question_begin
    last = len(questions) if settings.question_end is None else settings.question_end
    if not 0 <= first < last <= len(questions):
        raise InputError(
            f"questions {first} to {last} (--question-begin, --question-end) are no slice of the "
            f"{len(questions)} in {path}; give 0 <= begin < end <= {len(questions)}"
        )
    return path, questions[first : last : settings.question_stride]
