"""Tables of several benchmarks, of which not all have the same baselines."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluation.tables import main

from .test_tables import write


@pytest.fixture
def traces(tmp_path: Path) -> list[Path]:
    return [
        write(tmp_path, "base", "baseline", seconds=2.0, step=1),
        write(tmp_path, "loop", "vanilla", seconds=1.0, step=1),
        write(tmp_path, "faster", "racer", seconds=0.4, step=4),
    ]


def test_benches_are_compared_over_a_baseline_that_all_have(
    traces: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not every benchmark has transformers' slow loop."""
    other = {"bench_name": "gsm8k", "questions": "z"}
    more = [write(tmp_path, f"b{step}", name, seconds=3.0 / step, step=step, **other)
            for name, step in (("vanilla", 1), ("racer", 2))]  # fmt: skip
    argv = [*map(str, traces), *map(str, more), "--by-bench", "--format", "markdown"]
    assert main(argv) == 0
    page = capsys.readouterr().out
    (vanilla,) = [line for line in page.splitlines() if line.startswith("| vanilla |")]
    (racer,) = [line for line in page.splitlines() if line.startswith("| racer |")]
    assert vanilla.count(" 1.00 |") == 4
    assert [cell.strip("* |") for cell in racer.split(" | ")[1:]] == [
        "4.00",
        "2.50",
        "2.00",
        "2.00",
    ]
