"""benchmarks.warm on a small random model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import report, warm

from ..conftest import question


@pytest.fixture
def run(chat_path: str, make_bench: Callable[..., Path]) -> Callable[..., int]:
    folder = make_bench(*(question(i, f"Say {i} and {i}.") for i in range(8)))
    shutil.copytree(folder, folder.with_name("other"))

    def call(*flags: str) -> int:
        argv = ["--model-path", chat_path, "--dtype", "float32", "--device", "cpu"]
        return warm.main([*argv, "--benches", "mine", "other", *flags])

    return call


def test_what_was_learnt_helps_and_changes_no_answer(
    run: Callable[..., int], tmp_path: Path
) -> None:
    file = tmp_path / "results" / "warm.json"
    file.parent.mkdir()
    flags = ["--questions", "3", "--max-new-tokens", "80", "--json", str(file)]
    assert run(*flags) == 0
    rows = json.loads(file.read_text())["warm"]
    assert [(row["bench"], row["begins"]) for row in rows] == [
        (bench, begins)
        for bench, other in (("mine", "other"), ("other", "mine"))
        for begins in ("cold", "same kind", f"of {other}")
    ]
    cold, same, _ = rows[:3]
    assert cold["gain"] == cold["late_gain"] == 1
    assert same["gain"] == pytest.approx(same["mat"] / cold["mat"])
    assert same["late_gain"] == pytest.approx(same["late"] / cold["late"])
    assert all(row["equal"] == row["answers"] == 3 for row in rows)
    page = tmp_path / "page.md"
    assert report.main([str(file.parent), "--output", str(page)]) == 0
    shown = f"| mine | same kind | {same['early']:.2f} | {same['late']:.2f} | {same['mat']:.2f} |"
    assert shown in page.read_text()


def test_accept_lengths_are_told_apart_by_tokens() -> None:
    answers = warm.Answers(lengths=[4] * 50 + [2] * 30)
    assert answers.mats() == (4, 2, 260 / 80)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--questions", "5"], "mine has 8 questions, and --questions 5 takes twice as many"),
        (["--questions", "1", "--max-new-tokens", "4"], "ask more --questions"),
        (["--benches", "mine"], "--benches wants two benchmarks or more, each once"),
        (["--benches", "none", "mine"], "no benchmark 'none' in data/"),
    ],
)
def test_bad_input(
    run: Callable[..., int], flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*flags) == 2
    assert said in capsys.readouterr().err
