"""The page that benchmarks.report writes, from results measured on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import changes, report, scale, step_cost


@pytest.fixture(scope="module")
def results(tiny_path: str, chat_path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the benchmarks wrote, all but compare."""
    folder = tmp_path_factory.mktemp("results")
    few = ["--rounds", "1", "--json"]
    steps = ["--model-path", tiny_path, "--device", "cpu", "--dtype", "float32", "--nodes", "4"]
    assert step_cost.main([*steps, "--context", "9", *few, str(folder / "step_cost.json")]) == 0
    work = ["--model-path", tiny_path, "--dtypes", "float32", "--rows", "2", "--contexts", "9"]
    assert changes.main([*work, *few, str(folder / "changes.json")]) == 0
    grown = ["--model-path", chat_path, "--device", "cpu", "--dtype", "float32", "--nodes", "1"]
    grown += ["--contexts", "9", "20", "--new-tokens", "8", "--window", "4", "--steps", "3"]
    grown += ["--draft-contexts", "20", "40", *few, str(folder / "scale.json")]
    assert scale.main(grown) == 0
    return folder


def test_the_page_holds_what_was_measured(results: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("What to make of it.\n")
    page = tmp_path / "docs" / "performance.md"
    assert report.main([str(results), "--output", str(page), "--notes", str(notes)]) == 0
    text = page.read_text()
    assert text.index("What to make of it.") < text.index("## A step by the number of nodes")
    steps = json.loads((results / "step_cost.json").read_text())["steps"]
    four = next(row for row in steps if row["nodes"] == 4)
    assert f"| 9 | 4 | {four['median']:.2f} [{four['low']:.2f}, {four['high']:.2f}] |" in text
    work = json.loads((results / "changes.json").read_text())["changes"]
    (best,) = (row for row in work if row["variant"] == "max")
    assert f"→ max {best['median']:.3f} | {best['gain_in_all']:.2f} |" in text
    grown = json.loads((results / "scale.json").read_text())
    assert text.count(" 8 tokens in one generation") == len(grown["output"]) == 2
    assert f"| 20 | 1 | {grown['context'][1]['median']:.2f} [" in text
    assert "| pld | " in text
    for name in ("step-cost", "scale"):
        assert f"(performance/{name}.png)" in text
        assert (page.parent / "performance" / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "holds neither compare*.json nor step_cost.json, changes.json, scale.json"),
        ("{", "is not all that the benchmark writes; measure it again, whole"),
        ('{"settings": {}, "environment": {}}', "is not all that the benchmark writes"),
        (
            '{"settings": {"dtypes": [], "rounds": 1}, "changes": [], "environment": {}}',
            "does not say what it was measured with",
        ),
    ],
)
def test_other_folders_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / "changes.json").write_text(content)
    assert report.main([str(tmp_path), "--output", str(tmp_path / "out.md")]) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1
    assert report.main([str(tmp_path / "no"), "--output", str(tmp_path / "out.md")]) == 2
    assert "no folder" in capsys.readouterr().err
