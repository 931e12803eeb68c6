"""Nodes, time to the first token and the phases of a step, from traces: figures by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation import tables
from evaluation.tabulating.origin import read_tables
from evaluation.tabulating.phases import STEP_PHASES, phases
from evaluation.tabulating.table import Row, Table, to_markdown
from evaluation.traces.comparing import read_comparison

from .test_tables import SETTINGS

Phases = tuple[float, float, float, float, float]  # of STEP_PHASES


def record(
    number: int,
    seconds: float,
    tokens: int,
    first: float | None,
    *,
    steps: int | None = None,
    nodes: int | None = None,
    spent: Phases | None = None,
) -> dict[str, Any]:
    """An answer in one turn, of transformers' generate() unless the phases are given.

    Args:
        number: the question's id.
        seconds: of wall time.
        tokens: of the answer.
        first: seconds of the prefill, or of generate()'s first step; None: not in the trace.
        steps: forwards; None: one a token.
        nodes: of all steps' trees; None: not in the trace.
        spent: seconds of each phase over all steps.
    """
    steps = steps or tokens
    choice = {
        "index": 0, "turns": ["a"], "new_tokens": [tokens], "wall_time": [seconds],
        "accept_lengths": [1] * (steps - 1) + [tokens - steps + 1], "decoding_steps": [steps],
        "tree_sizes": [[] if nodes is None else [1] * (steps - 1) + [nodes - steps + 1]],
        "prefill_seconds": [first if spent else None],
        "step_seconds": [[] if spent or first is None else [first]],
    }  # fmt: skip
    for phase, total in zip(STEP_PHASES, spent or [None] * len(STEP_PHASES), strict=True):
        choice[f"{phase}_seconds"] = [total]
    return {"question_id": number, "category": "qa", "model_id": "x", "choices": [choice]}


EVEN = (0.0, 0.0, 0.5, 0.0, 0.0)
MADE_UP = {
    "baseline": [
        record(1, 1.0, 10, 0.2, nodes=10), record(2, 1.0, 20, 0.4, nodes=20),
        record(3, 4.0, 40, 0.8, nodes=40),
    ],
    "vanilla": [
        record(1, 0.5, 10, 0.1, nodes=10, spent=EVEN),
        record(2, 1.0, 20, 0.1, nodes=20, spent=EVEN),
        record(3, 2.0, 40, 0.1, nodes=40, spent=EVEN),
    ],
    "pld": [
        record(1, 0.25, 10, 0.05, steps=5, nodes=20, spent=(0.01, 0.02, 0.08, 0.05, 0.04)),
        record(2, 0.2, 20, 0.1, steps=10, nodes=25, spent=(0.01, 0.01, 0.06, 0.01, 0.01)),
        record(3, 2.2, 40, 0.2, steps=20, nodes=60, spent=(0.02, 0.02, 1.80, 0.12, 0.04)),
    ],
    "hf_pld": [
        record(1, 0.5, 10, 0.3, steps=8), record(2, 2.0, 20, 0.3, steps=8),
        record(3, 1.0, 40, 0.6, steps=4),
    ],
}  # fmt: skip


def written(folder: Path, answers: dict[str, list[dict[str, Any]]], **changed: Any) -> list[Path]:
    """The traces of methods' answers."""
    paths = []
    for method, records in answers.items():
        path = folder / f"{method}.jsonl"
        path.write_text("".join(f"{json.dumps(r)}\n" for r in records))
        settings = SETTINGS | {"method": method, "model_id": method} | changed
        meta = {"settings": settings, "environments": []}
        path.with_suffix(".meta.json").write_text(json.dumps(meta))
        paths.append(path)
    return paths


def table(folder: Path, answers: dict[str, Any] | None = None, **changed: Any) -> Table:
    return phases(read_comparison(written(folder, answers or MADE_UP, **changed)))


def row(of: Table, method: str) -> Row:
    (found,) = [row for row in of.rows if row.name == method]
    return found


def test_tree_size_is_over_all_steps(tmp_path: Path) -> None:
    found = table(tmp_path)
    assert row(found, "pld").values["tree_size"] == 105 / 35
    assert "tree_size" not in row(found, "hf_pld").values
    assert row(found, "vanilla").values["tree_size"] == 1


def test_phases_are_medians_of_per_step_means(tmp_path: Path) -> None:
    pld = row(table(tmp_path), "pld")
    # ms per step of the three questions: draft 2, 1, 1; build 4, 1, 1; verify 16, 6, 90;
    # accept 10, 1, 6; commit 8, 1, 2; verify's share 40, 60 and 90 percent
    assert [pld.values[phase] for phase in STEP_PHASES] == pytest.approx([1, 1, 16, 6, 2])
    assert pld.values["outside"] == pytest.approx(40)
    # with accept 65, 70 and 96 percent
    on_gpu = table(tmp_path, device="cuda:0")
    assert [row(on_gpu, "pld").values[phase] for phase in STEP_PHASES] == [
        pld.values[phase] for phase in STEP_PHASES
    ]
    assert row(on_gpu, "pld").values["outside"] == pytest.approx(30)
    assert "On a GPU" in on_gpu.notes[-1]
    assert not {*STEP_PHASES, "outside"} & row(on_gpu, "baseline").values.keys()


def test_the_first_token_is_a_time_by_a_time(tmp_path: Path) -> None:
    found = table(tmp_path)
    pld, hf_pld = row(found, "pld").values, row(found, "hf_pld").values
    assert pld["first_token"] == pytest.approx(100)  # of 50, 100 and 200
    assert pld["first_token_ratio"] == pytest.approx(0.25)  # in every question
    assert hf_pld["first_token"] == pytest.approx(300)
    assert hf_pld["first_token_ratio"] == pytest.approx(0.75)  # of 3/2, 3/4, 3/4


def test_speed_after_prefill(tmp_path: Path) -> None:
    found = table(tmp_path)
    assert row(found, "pld").values["after_prefill"] == pytest.approx(50)  # of 50, 200 and 20
    assert "after_prefill" not in row(found, "baseline").values


def test_what_a_trace_does_not_say_is_a_dash(tmp_path: Path) -> None:
    silent = {**MADE_UP, "baseline": [record(i, 1.0, 10, None) for i in (1, 2, 3)]}
    found = table(tmp_path, silent)
    pld = row(found, "pld")
    assert pld.values["first_token"] == pytest.approx(100)
    assert found.cell(pld, "first_token_ratio") == "–"
    assert {found.cell(row(found, "baseline"), key) for key in found.columns} == {"–"}
    oldest = json.loads(json.dumps(MADE_UP))
    for entry in oldest["pld"]:  # steps without their prefill
        del entry["choices"][0]["prefill_seconds"]
        entry["choices"][0]["step_seconds"] = [[0.01]]
    found = table(tmp_path, oldest)
    assert found.cell(row(found, "pld"), "first_token") == "–"
    older = json.loads(json.dumps(MADE_UP))
    for entry in older["pld"]:  # accept counted as verify
        del entry["choices"][0]["accept_seconds"]
    found = table(tmp_path, older)
    pld = row(found, "pld")
    assert pld.values["verify"] == pytest.approx(16)
    assert (found.cell(pld, "accept"), found.cell(pld, "outside")) == ("–", "–")


def test_first_turns_only(tmp_path: Path) -> None:
    answers = json.loads(json.dumps(MADE_UP))
    for records in answers.values():
        for entry in records:
            choice = entry["choices"][0]
            choice["accept_lengths"] *= 2
            for key, value in choice.items():
                if isinstance(value, list) and key != "accept_lengths":
                    choice[key] = value * 2
    paths = written(tmp_path, answers)
    both, first = (phases(read_comparison(paths, first_turns=cut)) for cut in (False, True))
    assert [r.values for r in both.rows] == [pytest.approx(r.values) for r in first.rows]
    for entry in answers["pld"]:
        entry["choices"][0]["verify_seconds"][1] *= 3
    paths = written(tmp_path, answers)
    both, again = (phases(read_comparison(paths, first_turns=cut)) for cut in (False, True))
    assert row(again, "pld").values == pytest.approx(row(first, "pld").values)
    assert row(both, "pld").values["verify"] == pytest.approx(32)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(path) for path in written(tmp_path, MADE_UP)]
    out = tmp_path / "deep" / "methods.json"
    argv = [*paths, "--phases", "--format", "markdown", "--json", str(out)]
    assert tables.main(argv) == 0
    said = capsys.readouterr().out
    assert (
        "| pld | 3.00 | 50.00 | 100.00 | 0.25 | 1.00 | 1.00 | 16.00 | 6.00 | 2.00 | 40.00 |" in said
    )
    assert "**" not in said  # less is better in some columns
    content = json.loads(out.read_text())
    assert content["settings"]["dtype"] == "float32"
    assert content["questions"] == 3
    kept = read_tables(content)
    assert to_markdown(kept["phases"]) == said
    assert tables.main([*paths, "--format", "markdown"]) == 0
    assert to_markdown(kept["speed"]) == capsys.readouterr().out
    assert tables.main([*paths, "--phases"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines if "│" in line) <= 105
    assert [row.values for row in table(tmp_path).rows] == [r.values for r in kept["phases"].rows]
    for flags, message in (
        (["--json", paths[0]], f"--json {paths[0]} is one of the traces"),
        (["--json", "/dev/null/x"], "cannot write /dev/null/x"),
        (["--by-bench", "--phases"], "leave out --phases, --by-sample and --json, or"),
    ):
        assert tables.main([*paths, *flags]) == 2
        assert message in capsys.readouterr().err
