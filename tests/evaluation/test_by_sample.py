"""Several answers to one prompt: read once, and tables of how methods gain from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import main as performance
from evaluation.equal import main as equal
from evaluation.report import main as report
from evaluation.run import main as run
from evaluation.tables import main as tables
from evaluation.tabulating.by_sample import by_sample, spans
from evaluation.traces.comparing import read_comparison

from ..conftest import question

METHODS = ("baseline", "vanilla", "racer", "calibrated")


@pytest.fixture
def traces(make_bench: Callable[..., Path], chat_path: str, tmp_path: Path) -> list[Path]:
    """Of three answers to each of two questions."""
    make_bench(question(1, "Who?", "Why?"), question(2, "Count to ten."))
    flags = ["--model-path", chat_path, "--model-id", "x", "--bench-name", "mine"]
    flags += ["--max-new-tokens", "12", "--dtype", "float32", "--device", "cpu", "--warmup", "0"]
    flags += ["--num-choices", "3", "--temperature", "0.9", "--answer-dir", str(tmp_path / "out")]
    assert run([*flags, "--methods", ",".join(METHODS)]) == 0
    return [tmp_path / "out" / f"x-{name}.jsonl" for name in METHODS]


def choices(path: Path) -> list[list[dict[str, Any]]]:
    return [json.loads(line)["choices"] for line in path.read_text().splitlines()]


def test_a_prompt_is_read_once_for_all_its_answers(traces: list[Path]) -> None:
    for name, path in zip(METHODS, traces, strict=True):
        for first, *others in choices(path):
            assert first["cached_tokens"] == [0] * len(first["turns"])
            for other in others:
                prompt = other["prompt_tokens"][0]
                assert other["cached_tokens"][0] == (0 if name == "baseline" else prompt - 1)
    ours = [str(path) for path in traces[1:]]
    assert equal([ours[1], ours[0], "--strict"]) == equal([ours[2], ours[0], "--strict"]) == 0


def test_samples_are_compared_by_their_number(
    traces: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [[*group] for group in spans(11)] == [[0], [1], [2, 3], [4, 5, 6, 7], [8, 9, 10]]
    read = read_comparison(traces[1:])
    for trace in read.traces:
        for record in trace.records:
            for index, choice in enumerate(record["choices"]):
                steps = 2 if trace.label == "vanilla" else 1 + (index < 2)
                choice["accept_lengths"] = [12 // steps] * steps
                choice["new_tokens"], choice["wall_time"] = [12], [float(steps)]
    vanilla, _, ours = by_sample(read).rows
    assert vanilla.values["MAT:3"] == vanilla.values["MAT:all"] == 6
    assert vanilla.values["speed:3"] == vanilla.values["gain"] == 1
    assert [ours.values[f"MAT:{title}"] for title in ("1", "2", "3")] == [6, 6, 12]
    assert ours.values["MAT:all"] == pytest.approx(36 / 5)
    assert [ours.values[f"speed:{title}"] for title in ("1", "3", "all")] == [1, 2, 6 / 5]
    assert ours.values["gain"] == 2

    paths = [str(path) for path in traces]
    file = tmp_path / "tables.json"
    assert tables([*paths, "--by-sample", "--format", "markdown", "--json", str(file)]) == 0
    assert "| method | MAT 1 | MAT 2 | MAT 3 | MAT all | speed 1 |" in capsys.readouterr().out
    assert set(json.loads(file.read_text())["tables"]) == {"speed", "phases", "samples"}
    figures = tmp_path / "figures"
    figures.mkdir()
    file.rename(figures / "samples-mine.json")
    page = tmp_path / "performance.md"
    assert performance([str(figures), "--output", str(page)]) == 0
    text = page.read_text()
    assert "### mine, temperature 0.9" in text and "| method | MAT 1 | MAT 2 | MAT 3 |" in text
    assert report([*paths, "--output", str(tmp_path / "page.md")]) == 0
    assert "## By sample" in (tmp_path / "page.md").read_text()


def test_other_tables_have_no_samples(
    traces: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in traces:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            del line["choices"][1:]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    wanted = {
        "--phases": "--phases and --by-sample are two tables; give one of them",
        "--task-mat": "the table of --by-sample has no tasks",
        "--by-bench": "a table by benchmark has no phases and no samples",
        None: "--by-sample needs several answers to each question; run with --num-choices",
    }
    for flag, said in wanted.items():
        flags = [] if flag is None else [flag]
        assert tables([*map(str, traces), "--by-sample", *flags]) == 2
        assert said in capsys.readouterr().err
