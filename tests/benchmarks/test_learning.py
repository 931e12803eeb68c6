"""The benchmark of how soon the cost of a step is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import learning
from evaluation.record import main as record

from ..conftest import question


def test_each_start_is_compared_with_the_true_cost(
    chat_path: str,
    make_bench: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_bench(*(question(i, "Hello?") for i in range(1, 5)))
    argv = ["--model-path", chat_path, "--bench-name", "mine", "--max-new-tokens", "40"]
    folder = tmp_path / "recording"
    assert record([*argv, "--dtype", "float32", "--output", str(folder)]) == 0
    given = ["--recording", str(folder)]
    assert learning.main(given) == 2
    assert "200 are needed; record more questions" in capsys.readouterr().err
    monkeypatch.setattr(learning, "FIRST", 4)
    monkeypatch.setattr(learning, "GROUPS", 1)
    file = tmp_path / "figures.json"
    assert learning.main([*given, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["starts"]
    assert [row["start"] for row in rows] == list(learning.STARTS)
    assert all(0.1 < row[part] < 2 for row in rows for part in ("first", "after"))
