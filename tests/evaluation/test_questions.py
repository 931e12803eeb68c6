"""Question files: the quick set in the repository, and what is refused in a user's."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from evaluation.asking.questions import load_questions, question_path
from evaluation.traces.reading import TASKS, task_of
from model.logitspec import InputError

QUICK = Path(__file__).resolve().parents[2] / "data" / "quick" / "question.jsonl"


def test_the_quick_set_has_four_questions_for_every_row_of_the_report() -> None:
    questions = load_questions(QUICK)
    assert Counter(task_of(q.category) for q in questions) == dict.fromkeys(TASKS, 4)
    for question in questions:
        assert len(question.turns) == (2 if task_of(question.category) == "mt_bench" else 1)
        if question.category in ("summarization", "rag"):
            assert len(question.turns[0].split()) > 400


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"question_id": 2, "category": "\\ud83d", "turns": ["a"]}', "surrogate"),
        ('{"category": "qa", "turns": ["a"]}', "has no number or string 'question_id'"),
        ('{"question_id": true, "category": "qa", "turns": ["a"]}', "'question_id'"),
        ('{"question_id": 2, "turns": ["a"]}', "has no string 'category'"),
        ('{"question_id": 2, "category": "qa", "turns": []}', "'turns'"),
        ('{"question_id": 2, "category": "qa", "turns": "a"}', "'turns'"),
        ('{"question_id": 2, "category": "qa", "turns": [""]}', "'turns'"),
        ('{"question_id": 2, "category": "qa", "turns": ["\\ud83d"]}', "surrogate"),
        ('{"question_id": 1, "category": "qa", "turns": ["a"]}', "repeats question_id 1"),
    ],
)
def test_a_malformed_line_is_named(line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "question.jsonl"
    path.write_text('{"question_id": 1, "category": "qa", "turns": ["a"]}\n\n' + line + "\n")
    with pytest.raises(InputError) as refused:
        load_questions(path)
    assert problem in str(refused.value)
    assert f"{path}:3 " in str(refused.value)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "question.jsonl"
    line = '{"question_id": 1, "category": "qa", "turns": ["a\u2028b"]}\n'
    path.write_text(line, encoding="utf-8-sig")
    assert load_questions(path)[0].turns == ("a\u2028b",)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "question.jsonl"
    path.write_text("\n")
    with pytest.raises(InputError, match="holds no questions"):
        load_questions(path)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        load_questions(path)


@pytest.mark.parametrize("name", ["../mine", "..", "a/b", "", "/etc", "a\0b", "a b"])
def test_a_name_that_leads_elsewhere_is_no_benchmark(name: str) -> None:
    with pytest.raises(InputError, match="is no benchmark's name"):
        question_path(name)
