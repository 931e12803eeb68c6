"""evaluation.equal: equal turns, differing turns, nothing to compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evaluation.equal import first_difference, main

from .test_traces import record


def write(path: Path, *ids: list[list[int]]) -> str:
    lines = [json.dumps(record(i, output_ids=turns)) for i, turns in enumerate(ids)]
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


def test_equal_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a.jsonl", [[1, 2], [3]], [[4]])
    assert main([a, a]) == 0
    assert capsys.readouterr().out == "3 of 3 turns equal (4 tokens)\n"


def test_differences_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a.jsonl", [[1, 2, 3], [3]], [[4]])
    b = write(tmp_path / "b.jsonl", [[1, 5, 3], [3]], [[4, 4]])
    assert main([a, b]) == 1
    out = capsys.readouterr().out
    assert "question 0, choice 0, turn 0: differs from token 1 on (3 and 3 tokens)" in out
    assert "question 1, choice 0, turn 0: differs from token 1 on (1 and 2 tokens)" in out
    assert "1 of 3 turns equal" in out


def test_first_difference() -> None:
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2], [1]) == 1
    assert first_difference([], [1]) == 0


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path / "a.jsonl", [[1]], [[2]])
    b = write(tmp_path / "b.jsonl", [[1]])
    assert main([a, b]) == 2
    assert "question 1, choice 0, turn 0 is in one only" in capsys.readouterr().err
    old = tmp_path / "old.jsonl"
    old.write_text(json.dumps(record(0)) + "\n")
    assert main([str(old), str(old)]) == 2
    assert "has no output_ids to compare" in capsys.readouterr().err
