"""Which methods of the table are measured, and which flags are refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from benchmarks import sampling
from evaluation.vocabulary import state_of_vocabulary


def test_only_the_methods_asked_for_have_rows(
    chat_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = partial(state_of_vocabulary, most=500)
    monkeypatch.setattr(sampling, "state_of_vocabulary", few)
    out = tmp_path / "sampling.json"
    asked = ["--model-path", chat_path, "--bench-name", "quick", "--question-stride", "24"]
    asked += ["--dtype", "float32", "--max-new-tokens", "4", "--seeds", "1"]
    asked += ["--only", "temperature 1"]
    asked += ["--rows", "--methods", "calibrated, rows", "calibrated@auto"]
    assert sampling.main([*asked, "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["sampling"]
    assert [row["method"] for row in rows] == ["calibrated@auto", "calibrated, rows"]
    assert all(row["equal"] == row["answers"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--rows", "--others"], "--rows is for calibrated, and --others leaves it out"),
        (["--methods", "racer"], "--methods 'racer': give some of ['calibrated, blind', "),
        (["--methods", "calibrated, rows"], "--methods 'calibrated, rows': give some of "),
        (["--methods", "vanilla"], "--methods 'vanilla': give some of "),
    ],
)
def test_bad_flags_are_one_sentence(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sampling.main(flags) == 2
    assert capsys.readouterr().err.startswith(f"python -m benchmarks.sampling: {sentence}")
