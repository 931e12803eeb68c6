"""The commands of README and docs, end to end, on the real default model."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
QUICK = ROOT / "data" / "quick" / "question.jsonl"


@pytest.fixture
def one_per_task() -> Iterator[str]:
    """A benchmark of the last quick question of every task; gone after the test."""
    folder = ROOT / "data" / f"one-per-task-{os.getpid()}"  # of this process alone
    folder.mkdir(exist_ok=True)  # a killed test run leaves it
    lines = QUICK.read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "question.jsonl").write_text("".join(lines[3::4]), encoding="utf-8")
    yield folder.name
    shutil.rmtree(folder)


def python(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "form", ["default_model_path", pytest.param("default_gguf", marks=pytest.mark.slow)]
)
def test_logitspec_gives_the_baselines_output_in_float32(
    one_per_task: str, default_model_path: str, form: str, request: pytest.FixtureRequest
) -> None:
    """Manual control, as the README shows it; FULL=1 takes all quick questions to 128 tokens."""
    full = bool(os.environ.get("FULL"))
    bench = "quick" if full else one_per_task
    out = ROOT / "data" / one_per_task / "model_answer"
    model_path = request.getfixturevalue(form)
    for script in ("baseline", "logitspec"):
        done = python(
            "-m", f"evaluation.inference_{script}",
            "--model-path", model_path,
            "--model-id", script,
            "--bench-name", bench,
            "--answer-file", str(out / f"{script}.jsonl"),
            "--max-new-tokens", "128" if full else "16",
            "--temperature", "0.0",
            "--dtype", "float32",
            "--warmup", "0",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    equal = python(
        "-m", "evaluation.equal", *(str(out / f"{s}.jsonl") for s in ("baseline", "logitspec"))
    )
    assert equal.returncode == 0, equal.stdout + equal.stderr
    assert ("28 of 28" if full else "7 of 7") in equal.stdout
    speed = python(
        "evaluation/speed.py",
        "--file-path", str(out / "logitspec.jsonl"),
        "--base-path", str(out / "baseline.jsonl"),
        "--tokenizer-path", default_model_path,
    )  # fmt: skip
    assert speed.returncode == 0, speed.stderr
    for row in (
        "mt_bench",
        "translation",
        "summarization",
        "qa",
        "math_reasoning",
        "rag",
        "overall",
    ):
        assert row in speed.stdout


def shown(page: str, start: str, end: str, language: str = "bash") -> str:
    """The code blocks of a page between two texts; to the page's end where `end` is empty."""
    text = (ROOT / page).read_text(encoding="utf-8").partition(start)[2]
    assert text, f"{page} has no {start!r}"
    text = text.partition(end)[0] if end else text
    return "".join(re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_pages_commands_run_as_they_stand(default_model_path: str, tmp_path: Path) -> None:
    """In a copy of the repository, but for the number of tokens."""
    copy = tmp_path / "logitspec"
    for package in ("model", "evaluation"):
        shutil.copytree(
            ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    (copy / "data" / "quick").mkdir(parents=True)
    shutil.copy(QUICK, copy / "data" / "quick")
    (copy / "checkpoints").symlink_to(Path(default_model_path).parent)
    example = shown("docs/write-a-drafter.md", "## 2.", "## 3.", "python")
    (copy / "my_drafter.py").write_text(example, encoding="utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    printed = ""
    for count, page, start, end in (
        (11, "docs/commands.md", "## 1. Several methods", "## 6. See it"),
        (4, "docs/write-a-drafter.md", "## 1. Record once", ""),
        (1, "docs/calibrated.md", "# Our own method", "## 1."),
        (3, "README.md", "## Methods", "## From Python"),
    ):
        commands = shown(page, start, end).replace("--max-new-tokens 128", "--max-new-tokens 8")
        commands = commands.replace(". .venv/bin/activate", "")  # this test's own is on the path
        assert commands.count("python ") == count, page
        done = subprocess.run(
            ["bash", "-euc", commands], cwd=copy, env=os.environ | {"PATH": path},
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{page}: {done.stderr}"
        printed += done.stdout
    assert "28 of 28 turns equal" in printed
    for file in ("pictures/speedup.png", "report/speedup.png", "analyses/ranks.png"):
        assert (copy / file).stat().st_size > 5000


@pytest.mark.slow
def test_eval_sh_from_another_directory(one_per_task: str, tmp_path: Path) -> None:
    second = ROOT / "data" / f"{one_per_task}-again"
    second.mkdir(exist_ok=True)
    lines = (ROOT / "data" / one_per_task / "question.jsonl").read_text().splitlines(keepends=True)
    scored = [json.dumps(json.loads(line) | {"answer": "7"}) + "\n" for line in lines[-2:]]
    (second / "question.jsonl").write_text("".join(scored))
    environment = os.environ | {
        "BENCHES": f"{one_per_task},{second.name}", "METHODS": "baseline vanilla logitspec",
        "MAX_NEW_TOKENS": "8", "WARMUP": "0", "DRAFT_TREE_CAPACITY": "16",
    }  # fmt: skip
    command = ["sh", str(ROOT / "eval.sh")]
    try:
        for again in (False, True):  # the second run only reports
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            assert ("0 of 18 answers to give" in done.stdout) == again
            assert "over one-node loop" in done.stdout
            assert f"{second.name} speedup" in done.stdout
            assert f"{second.name} accuracy %" in done.stdout
        folder = ROOT / "data" / one_per_task / "model_answer"
        (report,) = folder.glob("*-new-8-capacity-16.report.md")
        assert f"report: {report.relative_to(ROOT)}" in done.stdout
        pictures = report.with_suffix("")
        for name in ("speedup", "accept-lengths", "rank", "time", "phases"):
            assert (pictures / f"{name}.png").stat().st_size > 5000
        rows = {row["method"]: row for row in csv.DictReader((pictures / "table.csv").open())}
        assert list(rows) == ["baseline", "vanilla", "logitspec"]
        assert float(rows["vanilla"]["mat"]) == 1.0
        assert float(rows["logitspec"]["mat"]) > 1.1
        assert next((second / "model_answer").glob("*.benches.md")).is_file()
        environment["DTYPE"] = "nonsense"
        failed = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
    finally:
        shutil.rmtree(second)
    assert failed.returncode == 2
    assert "dtype 'nonsense' is not known" in failed.stderr
    assert "speedup" not in failed.stdout  # stopped at the first failure


def test_eval_sh_refuses_unknown_arguments() -> None:
    done = subprocess.run(
        ["sh", str(ROOT / "eval.sh"), "--nonsense"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert (
        done.stderr == "eval.sh: unknown argument --nonsense; it takes --setup, --help or nothing\n"
    )


def test_help_of_a_command_and_of_the_script() -> None:
    for words in (["-m", "evaluation.run"], ["evaluation/speed.py"]):
        done = python(*words, "--help")
        assert done.returncode == 0 and "usage:" in done.stdout
