"""The tables of what evaluation.replay wrote."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from evaluation import record, replay
from evaluation.tabulating.replayed import replayed
from evaluation.tabulating.table import to_csv
from model.logitspec import InputError


@pytest.mark.parametrize(("stride", "count"), [("12", 2), ("24", 0)])
def test_a_table_of_a_replay(chat_path: str, tmp_path: Path, stride: str, count: int) -> None:
    """By task, where there are several."""
    recording, file = tmp_path / "r", tmp_path / "quick.csv"
    argv = ["--model-path", chat_path, "--bench-name", "quick", "--question-stride", stride]
    assert record.main([*argv, "--max-new-tokens", "8", "--output", str(recording)]) == 0
    methods = "vanilla,pld,calibrated@auto"
    argv = ["--recording", str(recording), "--methods", methods, "--csv", str(file)]
    assert replay.main([*argv, "--processes", "1"]) == 0
    table = replayed(file)
    assert table.title == "quick"
    assert [row.name for row in table.rows] == ["vanilla", "pld", "≈ calibrated@auto"]
    vanilla, pld, _ = table.rows
    tasks = [key for key in table.columns if key.startswith("mat:")]
    assert len(tasks) == count
    assert to_csv(table).count("\n") == 4
    assert all(vanilla.values[key] == 1.0 for key in ("mat", *tasks))
    _, line, _ = csv.DictReader(file.read_text().splitlines())
    for key in (*tasks, "mat", "mean_nodes", "draft_ms", "tokens_per_second", "speedup"):
        assert pld.values[key] == float(line[key])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no method"),
        ("method,mat\npld,1\n", "not what evaluation.replay --csv writes"),
        ("method,estimated,mat\npld,x,1\n", "not what evaluation.replay --csv writes"),
        (None, "No such file"),
    ],
)
def test_other_files(tmp_path: Path, text: str | None, problem: str) -> None:
    file = tmp_path / "a.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=problem):
        replayed(file)
