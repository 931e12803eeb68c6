"""The soak benchmark: a line for every so many generations, and what became of memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.soak import main, summary

from ..conftest import question


def test_a_line_for_every_few_generations(
    chat_path: str, make_bench: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bench(question(1), question(2, "Who are you?"))  # type: ignore[operator]
    out = tmp_path / "soak.json"
    argv = ["--model-path", chat_path, "--bench-name", "mine", "--device", "cpu", "--dtype"]
    argv += ["float32", "--method", "suffix", "--max-new-tokens", "4", "--json", str(out)]
    assert main([*argv, "--generations", "25", "--every", "6"]) == 0
    rows = json.loads(out.read_text())["soak"]
    assert [row["generations"] for row in rows] == [6, 12, 18, 24]
    assert all(row["mib"] > 50 and row["files"] > 2 and row["mat"] >= 1 for row in rows)
    assert "per 1,000 generations" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*argv[:-2], "--generations", "5", "--every", "6"])


def test_the_slope_is_that_of_the_second_half() -> None:
    sizes = [100.0, 300.0, 500.0, 500.5, 501.0, 501.5]
    rows = [
        {"generations": 500 * i, "mib": mib, "files": 9 + i % 2, "mat": 2.0 + i}
        for i, mib in enumerate(sizes, start=1)
    ]
    said = summary(rows)
    assert said[-1] == "slope of memory in the second half: +1.00 MiB per 1,000 generations"
    assert said[1] == "open files: 10 at first, 9 at last, 10 at most"
