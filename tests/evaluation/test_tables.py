"""The table: its numbers by hand, its four formats, what it refuses to compare."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.tables import main
from evaluation.tabulating.columns import bootstrap_interval, compare
from evaluation.tabulating.table import Row, Table, to_latex, to_markdown
from evaluation.traces.comparing import compare_speeds, read_comparison, recorded_tokens
from evaluation.traces.published import ABOUT, PUBLISHED
from model.logitspec import InputError

SETTINGS = {
    "bench_name": "spec_bench", "questions": "q", "model": "m", "model_fingerprint": "f",
    "template": "tokenizer", "max_new_tokens": 64, "temperature": 0.0, "dtype": "float32",
    "device": "cpu", "num_gpus_per_model": 1,
}  # fmt: skip
CATEGORIES = ("writing", "math", "qa", "qa")


def record(number: int, seconds: float, tokens: int, step: int) -> dict[str, Any]:
    """A question of 2 turns, answered `step` tokens at a time."""
    lengths = [step] * (tokens // step)
    return {
        "question_id": number,
        "category": CATEGORIES[number % len(CATEGORIES)],
        "model_id": f"run-{step}",
        "tstamp": 1.8e9,
        "choices": [
            {
                "index": 0,
                "turns": ["a", "b"],
                "decoding_steps": [len(lengths)] * 2,
                "new_tokens": [tokens, tokens],
                "wall_time": [seconds, 2 * seconds],
                "accept_lengths": lengths * 2,
            }
        ],
    }


def write(
    folder: Path,
    name: str,
    method: str,
    *,
    seconds: float,
    step: int,
    count: int = 4,
    **changed: Any,
) -> Path:
    path = folder / f"{name}.jsonl"
    records = [record(i, seconds * (1 + i), 12, step) for i in range(count)]
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    environment = {
        "versions": {"torch": "2.13.0"}, "device_names": ["A CPU"], "threads": 2,
        "platform": "Linux", "commit": "0123456789abcdef", "uncommitted_changes": False,
    }  # fmt: skip
    settings = SETTINGS | {"method": method, "model_id": f"run-{step}"} | changed
    meta = {"settings": settings, "environments": [environment]}
    path.with_suffix(".meta.json").write_text(json.dumps(meta))
    return path


@pytest.fixture
def traces(tmp_path: Path) -> list[Path]:
    return [
        write(tmp_path, "base", "baseline", seconds=2.0, step=1),
        write(tmp_path, "loop", "vanilla", seconds=1.0, step=1),
        write(tmp_path, "fast", "logitspec", seconds=0.5, step=3),
        write(tmp_path, "faster", "racer", seconds=0.4, step=4),
    ]


def test_the_numbers_are_those_of_speed_py(traces: list[Path]) -> None:
    comparison = read_comparison(traces)
    table = compare(comparison)
    assert list(table.columns) == [
        "task:mt_bench", "task:qa", "mat", "tokens_per_second", "speedup", "over:one-node loop",
        "slowest", "equal",
    ]  # fmt: skip
    base, _, fast, faster = table.rows
    assert base.values["speedup"] == 1.0
    assert base.intervals == {}
    assert fast.values["mat"] == 3.0
    assert faster.values["speedup"] == pytest.approx(5.0)
    assert faster.values["over:one-node loop"] == pytest.approx(2.5)
    assert faster.values["slowest"] == pytest.approx(2.5)
    expected = compare_speeds(
        comparison.traces[2].records, comparison.traces[0].records, recorded_tokens
    )
    for task in ("mt_bench", "qa"):
        assert fast.values[f"task:{task}"] == pytest.approx(expected[task]["speedup"])
    for key in ("mat", "tokens_per_second"):
        assert fast.values[key] == pytest.approx(expected["overall"][key])


def test_the_slowest_questions_are_told_against_the_one_node_loop(traces: list[Path]) -> None:
    records = [json.loads(line) for line in traces[2].read_text().splitlines()]
    records[1]["choices"][0]["wall_time"] = [12.0]  # the one-node loop takes 6
    traces[2].write_text("".join(json.dumps(entry) + "\n" for entry in records))
    table = compare(read_comparison(traces))
    ratios = [2.0, 0.5, 2.0, 2.0]
    assert table.rows[2].values["slowest"] == pytest.approx(np.percentile(ratios, 5))
    assert any("slowest 5 %: over one-node loop" in note for note in table.notes)


def test_the_tasks_can_show_their_mat(
    traces: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    records = [json.loads(line) for line in traces[2].read_text().splitlines()]
    records[2]["choices"][0]["accept_lengths"] = [6, 6, 6, 6]  # a question of qa
    traces[2].write_text("".join(json.dumps(entry) + "\n" for entry in records))
    row = compare(read_comparison(traces), task_mat=True).rows[2]
    assert row.values["task:mt_bench"] == 3.0
    assert row.values["task:qa"] == 4.0  # 8 steps of 3 and 4 of 6
    assert main([*map(str, traces), "--task-mat", "--format", "markdown"]) == 0
    assert "The tasks' columns are MAT." in capsys.readouterr().out


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    chance = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        base = chance.normal(10, 2, 60)
        speeds = 2 * base + chance.normal(0, 4, 60)
        low, high = bootstrap_interval(speeds, base)
        assert low < speeds.mean() / base.mean() < high
        inside += low < 2.0 < high
    assert 0.9 < inside / 200 <= 0.99
    paired = bootstrap_interval(np.array([2.0, 4.0, 8.0]), np.array([1.0, 2.0, 4.0]))
    assert paired == pytest.approx((2.0, 2.0))  # resampled together


def test_the_best_of_a_column_is_bold_and_published_rows_are_not_in_the_race(
    traces: list[Path],
) -> None:
    table = compare(read_comparison(traces), published=True)
    bold = [row.name for row in table.rows if table.best(row, "speedup")]
    assert bold == ["racer"]
    assert [row.source for row in table.rows[:4]] == [""] * 4
    eagle = next(row for row in table.rows if row.name == "EAGLE-2")
    assert eagle.values == {"speedup": 2.36, "mat": 4.34}
    assert eagle.source == "published: Vicuna-7B-v1.3; Spec-Bench leaderboard, A100"
    assert len(table.rows) == 4 + sum(p.bench_name == "spec_bench" for p in PUBLISHED)
    assert "**5.00 [5.00, 5.00]**" in to_markdown(table)
    assert r"\textbf{5.00 [5.00, 5.00]}" in to_latex(table)


def test_published_figures_are_told_apart_and_name_their_model() -> None:
    keys = [(p.bench_name, p.method, p.model, p.source) for p in PUBLISHED]
    assert len(set(keys)) == len(keys)
    without = {p.source.partition(",")[0] for p in PUBLISHED if p.model == "no model stated"}
    assert without == {"wizwand leaderboard"}
    assert all(p.source.startswith(tuple(ABOUT)) and (p.speedup or p.mat) for p in PUBLISHED)


def test_markdown_and_latex(traces: list[Path]) -> None:
    table = Table("t", {"a": "A & B", "speedup": "speedup"}, [Row("my_method", {"a": 1.234})])
    assert to_latex(table).splitlines()[1:] == [
        r"\begin{tabular}{lrr}", r"\toprule", r"method & A \& B & speedup \\", r"\midrule",
        r"my\_method & 1.23 & -- \\", r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip
    assert to_markdown(table).splitlines()[:3] == [
        "| method | A & B | speedup |", "|---|---:|---:|", "| my_method | 1.23 | – |",
    ]  # fmt: skip


def test_csv_holds_the_full_numbers(
    traces: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "table.csv"
    assert main([*map(str, traces), "--format", "csv", "--output", str(out)]) == 0
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [row["method"] for row in rows] == ["baseline", "vanilla", "logitspec", "racer"]
    fast = compare(read_comparison(traces)).rows[2]
    assert float(rows[2]["speedup"]) == fast.values["speedup"]
    ends = (float(rows[2]["speedup_low"]), float(rows[2]["speedup_high"]))
    assert ends == fast.intervals["speedup"]
    assert rows[0]["speedup_low"] == ""
    assert capsys.readouterr().out == ""


def test_the_terminal_table(traces: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*map(str, traces), "--published"]) == 0
    said = capsys.readouterr().out
    for part in ("mt_bench", "over one-node loop", "4.00 [4.00, 4.00]", "EAGLE-2", "published:"):
        assert part in said
    assert "4 questions; 95 % bootstrap interval over questions" in said


def test_only_one_baseline_or_one_that_is_named(traces: list[Path], tmp_path: Path) -> None:
    table = compare(read_comparison(traces[1:]))
    assert "speedup over one-node loop" in table.title
    assert not any(key.startswith("over:") for key in table.columns)
    named = compare(read_comparison(traces[2:], base_path=traces[0]))
    assert [row.name for row in named.rows] == ["baseline", "logitspec", "racer"]
    other = compare(read_comparison(traces, base_path=traces[2]))
    assert other.title.endswith("over logitspec")
    assert other.rows[3].values["speedup"] == pytest.approx(1.25)


def test_two_settings_of_one_method_are_told_apart(traces: list[Path], tmp_path: Path) -> None:
    again = write(tmp_path, "small", "racer", seconds=0.5, step=2, draft_tree_capacity=16)
    rows = compare(read_comparison([*traces, again])).rows
    assert [row.name for row in rows] == ["baseline", "vanilla", "logitspec", "run-4", "run-2"]


def test_several_benches_side_by_side(
    traces: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gsm = tmp_path / "gsm8k"
    gsm.mkdir()
    more = [
        write(gsm, "b", "baseline", seconds=3.0, step=1, bench_name="gsm8k", questions="z"),
        write(gsm, "l", "logitspec", seconds=1.0, step=6, bench_name="gsm8k", questions="z"),
    ]
    paths = [*map(str, traces), *map(str, more)]
    assert main([*paths, "--by-bench", "--format", "markdown", "--published"]) == 0
    said = capsys.readouterr().out
    assert "| method | spec_bench MAT | spec_bench speedup | gsm8k MAT | gsm8k speedup |" in said
    assert "| logitspec | 3.00 | 4.00 | **6.00** | **3.00** |" in said
    assert "| racer | **4.00** | **5.00** | – | – |" in said
    echo = "| LogitSpec *(published: Llama-2-7B; ECHO paper, RTX 3090)* "
    assert f"{echo}| 2.73 | 2.16 | 3.69 | 2.35 |" in said
    assert "ECHO: arXiv 2609.17241, table 1" in said and "STAND" not in said
    assert main(paths) == 2
    assert "bench_name is 'spec_bench' in the one, 'gsm8k' in the other" in capsys.readouterr().err


def test_several_temperatures_side_by_side(
    traces: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warm = tmp_path / "warm"
    warm.mkdir()
    more = [
        write(warm, "b", "baseline", seconds=3.0, step=1, temperature=0.7, top_p=0.9),
        write(warm, "l", "logitspec", seconds=1.0, step=2, temperature=0.7, top_p=0.9),
    ]
    paths = [*map(str, more), *map(str, traces)]
    assert main([*paths, "--by-temperature", "--format", "markdown"]) == 2
    assert "top_p is None in the one, 0.9 in the other" in capsys.readouterr().err
    for path in more:
        meta = path.with_suffix(".meta.json")
        meta.write_text(meta.read_text().replace(', "top_p": 0.9', ""))
    assert main([*paths, "--by-temperature", "--format", "markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| method | T=0.0 MAT | T=0.0 speedup | T=0.7 MAT | T=0.7 speedup |"
    (logitspec,) = (line for line in lines if line.startswith("| logitspec"))
    assert "2.00" in logitspec.split("|")[4] and "3.00" in logitspec.split("|")[5]
    assert main([*paths, "--by-temperature", "--by-bench"]) == 2
    assert main([*paths, "--by-temperature", "--published"]) == 2
    assert "no published figures by temperature" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_fingerprint": "g"}, "model_fingerprint is 'f' in the one, 'g' in the other"),
        ({"dtype": "float16"}, "dtype is 'float32' in the one, 'float16' in the other"),
        ({"max_new_tokens": 9}, "max_new_tokens is 64 in the one, 9 in the other"),
        ({"count": 3}, "answer different questions: 1 are in one only, the first is 3 (qa)"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    traces: list[Path],
    tmp_path: Path,
    changed: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    odd = write(tmp_path, "odd", "pld", seconds=1.0, step=2, **changed)
    assert main([*map(str, traces), str(odd)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_bad_input(traces: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    broken = write(tmp_path, "broken", "pld", seconds=1.0, step=2)
    broken.with_suffix(".meta.json").write_text("{")
    for argv, message in (
        ([*traces[2:]], "no baseline among the 2 traces; add one made with the method baseline"),
        ([*traces, empty], "empty.jsonl is empty; run the inference script first"),
        ([*traces, tmp_path / "none.jsonl"], "none.jsonl: No such file or directory"),
        ([*traces, traces[0]], "one trace is given twice"),
        ([*traces, broken], "broken.meta.json does not say how the trace was made"),
        ([*traces, "--output", traces[1]], "is one of the traces; choose another file"),
        ([traces[2], "--base-path", traces[0], "--json", traces[0]], "is one of the traces"),
        ([*traces, "--json", tmp_path / "x", "--output", tmp_path / "x"], "choose two files"),
        ([*traces, "--phases", "--published"], "leave out --task-mat and --published"),
        ([*traces, "--output", "/dev/null/x"], "cannot write /dev/null/x"),
        ([*traces, "--by-bench", "--base-path", traces[0]], "leave it out of a table by benchmark"),
    ):
        assert main([str(word) for word in argv]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    own = write(tmp_path, "own", "baseline", seconds=1.0, step=1, bench_name="mine")
    assert main([str(own), "--published"]) == 2
    assert "no published figures for the bench 'mine'" in capsys.readouterr().err


def test_traces_without_sidecars_are_compared_by_their_questions(traces: list[Path]) -> None:
    """Those of the reference implementation, say."""
    for path in traces:
        path.with_suffix(".meta.json").unlink()
    table = compare(read_comparison(traces[2:], base_path=traces[0]))
    assert [row.name for row in table.rows] == ["run-1", "run-3", "run-4"]
    assert table.rows[1].values["speedup"] == pytest.approx(4.0)


def test_first_turns_only(traces: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    records = [json.loads(line) for line in traces[2].read_text().splitlines()]
    for entry in records:
        choice = entry["choices"][0]
        choice["accept_lengths"] = [3] * 4 + [6] * 2
        choice["decoding_steps"] = [4, 2]
    traces[2].write_text("".join(json.dumps(entry) + "\n" for entry in records))
    both, first = (
        compare(read_comparison(traces, first_turns=cut)).rows[2].values for cut in (False, True)
    )
    assert (both["mat"], first["mat"]) == (4.0, 3.0)
    # the second turn takes twice the time for as many tokens
    assert first["tokens_per_second"] == pytest.approx(1.5 * both["tokens_per_second"])
    del records[0]["choices"][0]["decoding_steps"]
    traces[2].write_text("".join(json.dumps(entry) + "\n" for entry in records))
    assert main([*map(str, traces), "--first-turns"]) == 2
    assert "leave out --first-turns" in capsys.readouterr().err


def test_questions_that_one_method_failed_at_are_left_out_of_all(traces: list[Path]) -> None:
    lines = [json.loads(line) for line in traces[2].read_text().splitlines()]
    del lines[1]["choices"]
    lines[1]["error"] = "too long"
    traces[2].write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    comparison = read_comparison(traces)
    for trace in comparison.traces:
        assert [r["question_id"] for r in trace.records] == [0, 2, 3]
    assert comparison.cautions() == [
        "1 question(s) that could not be answered left out, as 1 (fast.jsonl: too long)."
    ]


def test_what_a_reader_should_know_is_noted(traces: list[Path], tmp_path: Path) -> None:
    assert read_comparison(traces).cautions() == []
    meta = json.loads(traces[2].with_suffix(".meta.json").read_text())
    meta["environments"][0]["threads"] = 16
    meta["starts"] = [0, 3]
    traces[2].with_suffix(".meta.json").write_text(json.dumps(meta))
    records = [json.loads(line) for line in traces[3].read_text().splitlines()]
    for entry in records:
        entry["tstamp"] += 86400
    traces[3].write_text("".join(json.dumps(entry) + "\n" for entry in records))
    said = compare(read_comparison(traces)).notes[1:]
    assert said[0].endswith("with one version of everything; they differ in threads.")
    with pytest.raises(InputError, match=r"^--strict: The traces were not all made"):
        read_comparison(traces, strict=True)
    assert "was finished before racer began" in said[1]
    assert said[2].startswith("logitspec was stopped and gone on with after 3 answers")
    assert len(said) == 3


def test_runs_of_one_name_are_told_apart_by_their_paths(traces: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "again"
    folder.mkdir()
    again = write(folder, "faster", "racer", seconds=0.5, step=4)
    labels = [trace.label for trace in read_comparison([*traces, again]).traces]
    assert labels == ["baseline", "vanilla", "logitspec", str(traces[3]), str(again)]


def test_a_trace_without_sidecar_does_not_hide_that_others_differ(
    traces: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    traces[0].with_suffix(".meta.json").unlink()
    odd = write(tmp_path, "odd", "pld", seconds=1.0, step=2, model="n", model_fingerprint="g")
    assert main([*map(str, traces), str(odd)]) == 2
    assert "model is 'm' in the one, 'n' in the other" in capsys.readouterr().err
    assert main([*map(str, traces), "--base-path", str(traces[0]), "--published"]) == 0


def test_benches_need_one_kind_of_baseline(
    traces: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = write(tmp_path, "b", "vanilla", seconds=3.0, step=1, bench_name="gsm8k", questions="z")
    assert main([str(traces[0]), str(loop), "--by-bench"]) == 2
    assert "that of gsm8k is one-node loop; give both one of a kind" in capsys.readouterr().err
