"""Scores: what counts as right, their intervals, programs in their limits, the tables' columns."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.asking.questions import load_questions, sha256
from evaluation.score import main
from evaluation.scoring import accuracy as scoring
from evaluation.scoring import judging
from evaluation.scoring.accuracy import accuracy, difference
from evaluation.scoring.judging import is_right, same_value
from evaluation.scoring.keys import Key
from evaluation.tables import main as tables

from .test_tables import SETTINGS

Make = Callable[..., Path]


@pytest.mark.parametrize(
    ("expected", "text", "right"),
    [
        ("18", "16 - 7 = 9, so she makes 9 * 2 = $18 every day.", True),
        ("18", "She makes 18. Each egg is 2 dollars, and the answer is 18. That is for 9.", True),
        ("18", "The answer is \\boxed{17}, or 18.", False),
        ("so it is 5,600\n#### 5,600", "We get \\boxed{5600}.", True),
        ("The answer is 7 boxes of 5.\n#### 35", "It is 35.", True),
        ("5600", "答案是 5,600 美元。", True),
        ("070", "Therefore \\boxed{70}", True),
        ("7", "A: The answer is 7.\n\nQ: And then?\nA: The answer is 8.", True),
        ("\\frac{14}{3}", "so $x = \\boxed{\\dfrac{14}{3}}$", True),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "\\boxed{(3, \\pi/2)}", True),
        ("\\left( 3, \\frac{\\pi}{2} \\right)", "\\boxed{(\\pi/2, 3)}", False),
        ("\\text{Evelyn}", "It is $\\boxed{\\text{Evelyn}}$.", True),
        ("18", "I do not know.", False),
        ("18", "", False),
    ],
)
def test_what_counts_as_the_same_value(expected: str, text: str, right: bool) -> None:
    assert same_value(expected, text) == right


def test_the_answer_of_a_question_is_read_with_it(tmp_path: Path) -> None:
    rows: tuple[dict[str, Any], ...] = (
        {"answer": "7"}, {"answer": 7}, {"reference": ["x\n#### 7"]}, {"reference": ["a text"]},
        {"answer": ["7"]}, {}, {"answer": 0.5}, {"answer": True},
    )  # fmt: skip
    path = tmp_path / "question.jsonl"
    lines = [
        json.dumps({"question_id": at, "category": "qa", "turns": ["?"]} | row) + "\n"
        for at, row in enumerate(rows)
    ]
    path.write_text("".join(lines))
    assert [q.answer for q in load_questions(path)] == ["7", "7", "x\n#### 7", *[""] * 3, "0.5", ""]


def test_wilsons_interval() -> None:
    share, (low, high) = accuracy([True] * 81 + [False] * 182)
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662
    assert share == pytest.approx(100 * 81 / 263)
    assert (low, high) == (pytest.approx(25.53, abs=0.01), pytest.approx(36.62, abs=0.01))
    assert accuracy([False] * 10)[1] == (0.0, pytest.approx(27.75, abs=0.01))
    assert accuracy([True])[1][1] == 100.0


def test_the_interval_of_a_paired_difference() -> None:
    base = [True] * 50 + [False] * 50
    assert difference(base, base)[0] == 0.0
    low, high = difference(base, base)[1]
    assert low == -high and 1 < high < 3
    worse = [False] * 10 + [True] * 40 + [False] * 50
    middle, (low, high) = difference(worse, base)
    assert middle == -10.0
    assert low < -10 and -10 < high < 0


PROMPT = 'import math\n\ndef helper(x):\n    return x + 1\n\n\ndef f(x):\n    """One more."""\n'
PROGRAM = Key("", PROMPT, "f", "def check(candidate):\n    assert candidate(1) == 2\n")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("```python\ndef f(x):\n    return helper(x)\n```\nThis adds one.", True),
        ("def f(x):\n    return x + math.floor(1.5)", True),
        ("return x + 1", True),
        ("y = 1\n    return x + y", True),
        ("```\n    return x + 2\n```", False),
        ("def f(x):\n    return", False),
        ("Here is the code.", False),
        ("import os\nos._exit(0)", False),
        ("raise SystemExit", False),
        ("big = bytes(1 << 31)\n    return x + 1", False),
        ("open('big', 'wb').write(bytes(1 << 21))\n    return x + 1", False),
    ],
)
def test_programs(text: str, right: bool) -> None:
    assert is_right(PROGRAM, text) == right


def test_a_program_that_does_not_end_is_stopped_with_what_it_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(judging, "SECONDS", 1)
    mark = tmp_path / "mark"
    child = f"import time\ntime.sleep(3)\nopen({str(mark)!r}, 'w')"
    text = (
        "import subprocess, sys, time\n"
        f"    subprocess.Popen([sys.executable, '-c', {child!r}])\n    time.sleep(60)"
    )
    start = time.monotonic()
    assert not is_right(PROGRAM, text)
    assert time.monotonic() - start < 3
    time.sleep(3.5 - (time.monotonic() - start))
    assert not mark.exists()


@pytest.fixture
def bench(make_bench: Make) -> Path:
    """Four questions with the answers 0, 1, 2 and none."""
    rows = [
        {"question_id": at, "category": "math_reasoning", "turns": ["?"]} | {"answer": str(at)}
        for at in range(3)
    ]
    return make_bench(*rows, {"question_id": 3, "category": "math_reasoning", "turns": ["?"]})


@pytest.fixture
def trace(bench: Path, tmp_path: Path) -> Callable[..., Path]:
    """trace(method, *texts): a trace of the benchmark's first questions, with these answers."""

    def make(method: str, *texts: str, **changed: Any) -> Path:
        path = tmp_path / f"{method}.jsonl"
        lines = [
            {
                "question_id": at, "category": "math_reasoning", "model_id": method,
                "choices": [{
                    "index": 0, "turns": [text], "new_tokens": [64 if at == 1 else 9],
                    "wall_time": [1.0], "accept_lengths": [1],
                }],
            }
            for at, text in enumerate(texts)
        ]  # fmt: skip
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        asked = {"bench_name": "mine", "questions": sha256(bench / "question.jsonl")}
        settings = SETTINGS | {"method": method} | asked | changed
        meta = {"settings": settings, "environments": []}
        path.with_suffix(".meta.json").write_text(json.dumps(meta))
        return path

    return make


def test_the_table(trace: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    paths = [
        trace("baseline", "It is 0.", "It is 1.", "It is 9.", "x"),
        trace("pld", "It is 0.", "It is 7.", "It is 2.", "x", dtype="bfloat16"),
    ]
    assert main([*map(str, paths), "--format", "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = "accuracy % [95 %] | right | cut off | over baseline [95 %] | equal answers"
    assert lines[0] == f"| method | {heads} |"
    assert lines[2] == "| baseline | 66.67 [20.77, 93.85] | 2 | 1 | – | – |"
    assert lines[3].startswith("| pld | 66.67 [20.77, 93.85] | 2 | 1 | 0.00 [-")
    assert lines[3].endswith(" | 2 |")
    assert "4 questions, 3 of them with an answer to check" in lines[5]
    assert main([str(paths[1]), "--format", "markdown"]) == 0
    assert "| pld | 66.67 [20.77, 93.85] | 2 | 1 |\n" in capsys.readouterr().out


def test_the_tables_have_the_columns(
    trace: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    paths = [trace("baseline", "0", "1", "9", "x"), trace("pld", "0", "7", "9", "x")]
    argv = [*map(str, paths), "--format", "markdown"]
    assert tables(argv) == 0
    said = capsys.readouterr().out
    assert "| slowest 5 % | accuracy % [95 %] | equal answers |" in said
    assert "| 33.33 [6.15, 79.23] | 3 |" in said
    assert "Accuracy: of 3 questions" in said
    assert tables([*argv, "--by-bench"]) == 0
    assert "| method | mine MAT | mine speedup | mine accuracy % |" in capsys.readouterr().out
    out = tmp_path / "table.csv"
    assert tables([*argv[:2], "--format", "csv", "--output", str(out)]) == 0
    assert out.read_text().splitlines()[0].endswith("accuracy_low,accuracy_high")
    monkeypatch.setattr(scoring, "can_judge_mathematics", lambda: False)
    assert tables(argv) == 0
    said = capsys.readouterr().out
    assert "accuracy %" not in said
    assert said.count("No accuracy: math-verify is not installed") == 1


def test_answers_beside_the_questions_and_programs(
    trace: Callable[..., Path], bench: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = {"question_id": 3, "prompt": PROMPT, "entry_point": "f", "test": PROGRAM.test}
    (bench / "answers.jsonl").write_text(json.dumps(key) + "\n")
    path = trace("pld", "9", "9", "9", "return x + 1")
    assert main([str(path)]) == 2
    assert "mine is scored by running the programs that the model wrote; --run-code does so" in (
        capsys.readouterr().err
    )
    assert main([str(path), "--run-code", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("pld,,25.0,1,")


def test_bad_input(
    trace: Callable[..., Path],
    bench: Path,
    make_bench: Make,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = trace("pld", "0", "1")
    for argv, message in (
        ([str(path), str(path)], "one trace is given twice"),
        ([str(path), "--output", str(path)], "is one of the traces"),
        ([str(path), "--base-path", "none.jsonl"], "--base-path none.jsonl is none of the traces"),
        ([str(path), str(trace("racer", "0"))], "answer different questions"),
        ([str(trace("hf_pld", "0", bench_name="other"))], "no benchmark 'other' in data/, where"),
        ([str(trace("suffix", "0", questions="0"))], "holds other questions than"),
    ):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    (bench / "answers.jsonl").write_text("{}\n")
    assert main([str(path)]) == 2
    assert (
        "delete it, and prepare mine again if data.prepare has made it" in capsys.readouterr().err
    )
    (bench / "answers.jsonl").unlink()
    monkeypatch.setattr("evaluation.score.can_judge_mathematics", lambda: False)
    assert main([str(path)]) == 2
    assert "math-verify is not installed; `pip install -e '.[score]'`" in capsys.readouterr().err
    make_bench({"question_id": 0, "category": "qa", "turns": ["?"]})
    assert main([str(trace("suffix", "0"))]) == 2
    assert "no answer is known of the 1 questions in" in capsys.readouterr().err
    path.with_suffix(".meta.json").unlink()
    assert main([str(path)]) == 2
    assert "has no sidecar that says which benchmark" in capsys.readouterr().err
