"""The page that benchmarks.report writes, from results measured on tiny models."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import report, scale, step_cost
from evaluation import tables
from evaluation.tabulating.columns import compare
from evaluation.tabulating.phases import phases
from evaluation.tabulating.table import to_markdown
from evaluation.traces.comparing import read_comparison

from ..docs.test_docs import parses
from ..evaluation.test_tables import write

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("traces")
    paths = [
        write(folder, "base", "baseline", seconds=2.0, step=1),
        write(folder, "fast", "logitspec", seconds=0.5, step=3),
    ]
    for path in paths:
        meta = json.loads(path.with_suffix(".meta.json").read_text())
        meta["environments"][0]["kernels"] = "native"
        path.with_suffix(".meta.json").write_text(json.dumps(meta))
    return paths


@pytest.fixture(scope="module")
def results(
    tiny_path: str, chat_path: str, traces: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What the commands wrote, in one environment."""
    folder = tmp_path_factory.mktemp("results")
    few = ["--rounds", "1", "--json"]
    steps = ["--model-path", tiny_path, "--device", "cpu", "--dtype", "float32", "--nodes", "4"]
    assert step_cost.main([*steps, "--context", "9", *few, str(folder / "step_cost.json")]) == 0
    grown = ["--model-path", chat_path, "--device", "cpu", "--dtype", "float32", "--nodes", "1"]
    grown += ["--contexts", "9", "20", "--new-tokens", "8", "--window", "4", "--steps", "3"]
    grown += ["--draft-contexts", "20", "40", *few, str(folder / "scale.json")]
    assert scale.main(grown) == 0
    methods = folder / "methods-float32.json"
    assert tables.main([*map(str, traces), "--json", str(methods)]) == 0
    content = json.loads(methods.read_text())
    here = json.loads((folder / "scale.json").read_text())["environment"]
    content["environments"] = [here | {"kernels": "native"}]
    methods.write_text(json.dumps(content))
    return folder


def test_the_page_holds_what_was_measured(
    results: Path, traces: list[Path], tmp_path: Path
) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("What to make of it.\n")
    page = tmp_path / "docs" / "performance.md"
    assert report.main([str(results), "--output", str(page), "--notes", str(notes)]) == 0
    text = page.read_text()
    assert text.index("What to make of it.") < text.index("## A step by the number of nodes")
    steps = json.loads((results / "step_cost.json").read_text())["steps"]
    four = next(row for row in steps if row["nodes"] == 4)
    assert f"| 9 | 4 | {four['median']:.2f} [{four['low']:.2f}, {four['high']:.2f}] |" in text
    grown = json.loads((results / "scale.json").read_text())
    assert text.count(" 8 tokens in one generation") == len(grown["output"]) == 2
    assert f"| 20 | 1 | {grown['context'][1]['median']:.2f} [" in text
    assert "| pld | " in text
    assert "## Beside generate(), float32" in text
    assert "m, 4 questions of spec_bench, all turns, at most 64 new tokens, native kernels" in text
    comparison = read_comparison(traces)
    for table in (compare(comparison), phases(comparison)):
        assert to_markdown(table).strip() in text
    for name in ("step-cost", "scale"):
        assert f"(performance/{name}.png)" in text
        assert (page.parent / "performance" / f"{name}.png").stat().st_size > 5000


def test_the_page_in_the_repository_is_what_its_sources_give(tmp_path: Path) -> None:
    notes = ROOT / "docs" / "performance-notes.md"
    page = tmp_path / "performance.md"
    sources = ROOT / "benchmarks" / "results" / "amd-epyc-2-cores"
    assert report.main([str(sources), "--output", str(page), "--notes", str(notes)]) == 0
    assert page.read_text() == (ROOT / "docs" / "performance.md").read_text()


def test_every_command_of_the_script_parses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, python = tmp_path / "said", tmp_path / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" >>{said}\nprintf "\\n" >>{said}\n')
    python.chmod(0o755)
    folders = {"FIGURES": str(tmp_path / "figures"), "DOCS": str(tmp_path / "docs")}
    script = ["sh", str(ROOT / "benchmarks" / "pages.sh")]
    subprocess.run(script, env=os.environ | folders | {"PYTHON": str(python)}, check=True)
    lines = said.read_text().splitlines()
    assert len(lines) == 2 * 2 + 3 + 4 + 4 + 1
    for line in lines:
        _, module, *argv = line.split("\0")[:-1]
        parses(module, argv, monkeypatch)
    refused = subprocess.run([*script, "all"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("pages.sh: unknown page all; give performance, results")


UNDATED = (
    '{"kind": "evaluation.tables 1", "settings": {"dtype": "x", "model": "m", "bench_name": "b",'
    ' "max_new_tokens": 1}, "first_turns": false, "questions": 1, "environments": [], "tables": {}}'
)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "holds none of methods-*.json, step_cost.json, scale.json"),
        ("{", "is not all that the benchmark writes; measure it again, whole"),
        ("[3]", "is not all that the benchmark writes; measure it again, whole"),
        ('{"settings": {}, "environment": {}}', "is not all that the benchmark writes"),
        ('{"kind": "a trace"}', "is not all that the benchmark writes"),
        (UNDATED, "does not say what it was measured with"),
    ],
)
def test_other_folders_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / "methods-x.json").write_text(content)
    assert report.main([str(tmp_path), "--output", str(tmp_path / "out.md")]) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1
    assert report.main([str(tmp_path / "no"), "--output", str(tmp_path / "out.md")]) == 2
    assert "no folder" in capsys.readouterr().err


def test_results_of_several_machines_are_refused(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("methods-float32.json", "scale.json"):
        content = json.loads((results / name).read_text())
        if name == "scale.json":
            content["environment"]["threads"] += 1
        (tmp_path / name).write_text(json.dumps(content))
    assert report.main([str(tmp_path), "--output", str(tmp_path / "out.md")]) == 2
    assert "holds results of several machines" in capsys.readouterr().err
