"""The report: its numbers by hand, its table, its JSON, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.speed import main
from evaluation.traces.comparing import compare_speeds, recorded_tokens, retokenized
from model.logitspec import InputError

ROOT = Path(__file__).resolve().parents[2]


def record(
    question_id: int, category: str, tokens: list[int], seconds: list[float], accepted: list[int]
) -> dict[str, Any]:
    choice = {
        "index": 0,
        "turns": ["x " * n for n in tokens],
        "decoding_steps": [len(accepted)],
        "new_tokens": tokens,
        "wall_time": seconds,
        "accept_lengths": accepted,
    }
    ignored = choice | {"index": 1, "wall_time": [99.0], "accept_lengths": [50]}
    return {
        "question_id": question_id,
        "category": category,
        "model_id": "some-model",
        "choices": [choice, ignored],
    }


METHOD = [
    record(1, "writing", [30, 10], [1.0, 1.0], [4, 4, 2, 20, 10]),
    record(2, "math", [60], [1.0], [3, 3]),
    record(3, "qa", [12], [0.5], [6, 6]),
]
BASE = [
    record(3, "qa", [12], [1.0], [1] * 12),
    record(1, "writing", [30, 10], [4.0, 4.0], [1] * 40),
    record(2, "math", [60], [4.0], [1] * 60),
]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.fixture
def traces(tmp_path: Path) -> tuple[str, str]:
    return str(write(tmp_path / "m.jsonl", METHOD)), str(write(tmp_path / "b.jsonl", BASE))


def test_the_numbers() -> None:
    rows = compare_speeds(METHOD, BASE, recorded_tokens)
    assert list(rows) == ["mt_bench", "qa", "overall"]
    mt_bench = rows["mt_bench"]
    assert mt_bench["questions"] == 2
    assert mt_bench["tokens_per_second"] == (40 / 2 + 60 / 1) / 2
    assert mt_bench["baseline_tokens_per_second"] == (40 / 8 + 60 / 4) / 2
    assert mt_bench["speedup"] == 4.0
    assert mt_bench["mat"] == np.mean([4, 4, 2, 20, 10, 3, 3])
    overall = rows["overall"]
    assert overall["tokens_per_second"] == pytest.approx((20 + 60 + 24) / 3)
    assert overall["baseline_tokens_per_second"] == pytest.approx((5 + 15 + 12) / 3)
    assert overall["speedup"] == pytest.approx(104 / 32)
    assert overall["mat"] == np.mean([4, 4, 2, 20, 10, 3, 3, 6, 6])


def test_retokenizing_counts_each_text_less_one_and_encodes_it_once() -> None:
    encoded: list[str] = []

    class Tokenizer:
        def __call__(self, text: str) -> Any:
            encoded.append(text)
            return type("Encoding", (), {"input_ids": [0, *text.split(), 1]})

    rows = compare_speeds(METHOD, BASE, retokenized(Tokenizer()))
    assert rows["qa"]["baseline_tokens_per_second"] == 13 / 1.0
    assert rows["mt_bench"]["baseline_tokens_per_second"] == ((31 + 11) / 8 + 61 / 4) / 2
    assert rows["mt_bench"]["tokens_per_second"] == 40  # the method's own counts stay
    assert len(encoded) == len(set(encoded))


def test_retokenizing_with_the_default_model(
    traces: tuple[str, str], default_model_path: str, default_tokenizer: Any, tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    argv = ["--file-path", traces[0], "--base-path", traces[1], "--json", str(out)]
    assert main([*argv, "--tokenizer-path", default_model_path]) == 0
    tokens = len(default_tokenizer("x " * 12).input_ids) - 1
    row = json.loads(out.read_text())["tasks"]["qa"]
    assert row["baseline_tokens_per_second"] == tokens / 1.0


def test_as_a_script_it_prints_the_table_and_writes_json(
    traces: tuple[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "report.json"
    script = [sys.executable, str(ROOT / "evaluation" / "speed.py")]
    argv = ["--file-path", traces[0], "--base-path", traces[1], "--json", str(out)]
    done = subprocess.run([*script, *argv], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    overall = next(line for line in done.stdout.splitlines() if "overall" in line)
    assert [cell.strip() for cell in overall.split("│")[1:-1]] == [
        "overall", "3", "6.44", "34.67", "10.67", "3.25",
    ]  # fmt: skip
    assert json.loads(out.read_text())["tasks"]["overall"]["speedup"] == 3.25


def test_mean_report(
    traces: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slower = [json.loads(json.dumps(r)) for r in METHOD]
    for r in slower:
        r["choices"][0]["wall_time"] = [2 * s for s in r["choices"][0]["wall_time"]]
        r["choices"][0]["accept_lengths"] = [1]
    other = str(write(tmp_path / "m2.jsonl", slower))
    out = tmp_path / "report.json"
    argv = ["--mean-report", "--file-path", traces[0], other, "--base-path", *[traces[1]] * 2]
    assert main([*argv, "--json", str(out)]) == 0
    row = json.loads(out.read_text())["tasks"]["overall"]
    assert row["speedup"] == pytest.approx((3.25 + 1.625) / 2)
    assert row["speedup_std"] == pytest.approx(np.std([3.25, 1.625], ddof=1))
    accepted = [4, 4, 2, 20, 10, 3, 3, 6, 6]
    assert row["mat"] == pytest.approx(np.mean([*accepted, 1, 1, 1]))
    assert "± 1.15" in capsys.readouterr().out  # the deviation is not cut off
    assert row["mat_std"] == pytest.approx(np.std([np.mean(accepted), 1], ddof=1))


def test_a_baseline_without_tokens_has_no_speed() -> None:
    with pytest.raises(InputError, match="count no tokens"):
        compare_speeds(METHOD, BASE, lambda record: 0)


def test_names_that_look_like_markup_are_shown_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = [record(1, "math[easy]", [3], [1.0], [3]), record(2, "[/b]", [3], [1.0], [3])]
    path = str(write(tmp_path / "odd.jsonl", odd))
    assert main(["--file-path", path, "--base-path", path]) == 0
    out = capsys.readouterr().out
    assert "math[easy]" in out
    assert "[/b]" in out


def test_differing_question_sets_are_refused(
    traces: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fewer = str(write(tmp_path / "fewer.jsonl", BASE[:2]))
    assert main(["--file-path", traces[0], "--base-path", fewer]) == 2
    error = capsys.readouterr().err
    assert "answer different questions: 1 are in one only, the first is 2 (math)" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--mean-report"], "--mean-report takes two or more"),
        (["--file-path", "a", "b"], "--file-path has 2 files, --base-path 1"),
        (["--file-path", "/nowhere/x.jsonl"], "cannot read the trace /nowhere/x.jsonl"),
        (["--json", "TRACE"], "is one of the traces; choose another file"),
        (["--json", "/nowhere/x.json"], "cannot write /nowhere/x.json"),
        (["--tokenizer-path", "/nowhere/model"], "no model directory '/nowhere/model'"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_input(
    change: list[str],
    message: str,
    traces: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["--file-path", traces[0], "--base-path", traces[1], *change]
    argv = [traces[1] if word == "TRACE" else word for word in argv]
    try:
        status = main(argv)
    except SystemExit as exit_:
        status = int(exit_.code or 0)
    assert status == 2
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1] and "Traceback" not in error


def failed(question_id: int, category: str) -> dict[str, Any]:
    return {
        "question_id": question_id, "category": category, "model_id": "some-model",
        "error": "out of memory",
    }  # fmt: skip


def test_questions_that_failed_are_left_out_of_both_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = write(tmp_path / "m.jsonl", [METHOD[0], failed(2, "math"), METHOD[2]])
    base = write(tmp_path / "b.jsonl", [BASE[0], BASE[1], BASE[2]])
    out = tmp_path / "r.json"
    assert main(["--file-path", str(trace), "--base-path", str(base), "--json", str(out)]) == 0
    said = capsys.readouterr().err
    assert "1 question(s) that could not be answered left out, as 2 (m.jsonl: out of" in said
    found = json.loads(out.read_text())["tasks"]
    kept = compare_speeds([METHOD[0], METHOD[2]], BASE[:2], recorded_tokens)
    assert found == kept and found["overall"]["questions"] == 2
    everything = write(tmp_path / "e.jsonl", [METHOD[0], failed(2, "math"), failed(3, "qa")])
    other = write(tmp_path / "o.jsonl", [failed(1, "writing"), BASE[2], BASE[0]])
    assert main(["--file-path", str(everything), "--base-path", str(other)]) == 2
    assert "no question is answered in both" in capsys.readouterr().err


ENVIRONMENT = {
    "versions": {"torch": "2.13.0", "python": "3.11"}, "device_names": ["A CPU"], "threads": 2,
    "platform": "Linux", "commit": "0123", "uncommitted_changes": False, "kernels": "plain",
}  # fmt: skip
SETTINGS = {
    "bench_name": "mine", "questions": "q", "model": "m", "model_fingerprint": "f",
    "template": "tokenizer", "max_new_tokens": 64, "temperature": 0.0, "dtype": "float32",
    "device": "cpu", "num_gpus_per_model": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "environment", "said"),
    [
        ({}, {}, None),
        ({"model_fingerprint": "g"}, {}, "model_fingerprint is 'f' in"),
        ({"dtype": "bfloat16"}, {}, "dtype is 'float32' in"),
        ({}, {"device_names": ["Another"]}, "they differ in device names."),
        ({}, {"commit": "4567", "threads": 3}, "they differ in threads, commit."),
        ({}, {"versions": {"torch": "2.9", "python": "3.11"}}, "they differ in the versions of to"),
        (None, {}, "is not known: there is no sidecar"),
    ],
)
def test_traces_of_other_making_are_named_and_refused_if_strict(
    traces: tuple[str, str],
    settings: dict[str, Any] | None,
    environment: dict[str, Any],
    said: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, other = (Path(trace).with_suffix(".meta.json") for trace in traces)
    one.write_text(json.dumps({"settings": SETTINGS, "environments": [ENVIRONMENT]}))
    if settings is not None:
        changed = {"settings": SETTINGS | settings, "environments": [ENVIRONMENT | environment]}
        other.write_text(json.dumps(changed))
    argv = ["--file-path", traces[0], "--base-path", traces[1]]
    assert main(argv) == 0
    printed = capsys.readouterr().err
    assert (said in printed) if said else not printed
    assert main([*argv, "--strict"]) == (2 if said else 0)
    assert not said or said in capsys.readouterr().err
