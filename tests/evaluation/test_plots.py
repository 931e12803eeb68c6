"""Pictures and the report: what is drawn, from which numbers, and what is missing."""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation import report
from evaluation.pictures import from_traces
from evaluation.pictures.from_traces import (
    PICTURES,
    by_speed,
    chosen_question,
    conditional_acceptance,
)
from evaluation.pictures.style import FORMATS, QUIET, STRONG, looks
from evaluation.plots import main
from evaluation.traces.comparing import Trace, read_comparison
from model.logitspec import InputError

from .test_tables import record, write
from .test_traces import record as a_record

pytest.importorskip("matplotlib")
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread


def rewrite(path: Path, **per_turn: Any) -> None:
    """Put per-turn fields into every record of a trace."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in records:
        entry["choices"][0] |= per_turn
    path.write_text("".join(json.dumps(entry) + "\n" for entry in records))


@pytest.fixture
def traces(tmp_path: Path) -> list[Path]:
    paths = [
        write(tmp_path, "base", "baseline", seconds=2.0, step=1, count=8),
        write(tmp_path, "loop", "vanilla", seconds=1.0, step=1, count=8),
        write(tmp_path, "fast", "logitspec", seconds=0.5, step=3, count=8),
    ]
    for path, steps in ((paths[1], 12), (paths[2], 4)):
        rewrite(
            path,
            step_seconds=[[0.01] * steps] * 2, misses=[[0, 1] * (steps // 2)] * 2,
            prefill_seconds=[0.05] * 2, draft_seconds=[0.01] * 2, verify_seconds=[0.2] * 2,
            build_seconds=[0.01] * 2, accept_seconds=[0.03] * 2, commit_seconds=[0.02] * 2,
        )  # fmt: skip
    rewrite(paths[2], next_next_ranks=[[1, 2, -1, 5], [0, 1, 63]])
    return paths


def drawn(name: str, paths: list[Path], question: str | None = None) -> Figure:
    figure = Figure()
    comparison = read_comparison(paths)
    PICTURES[name][0](figure, by_speed(comparison), chosen_question(comparison, question))
    return figure


def test_every_picture_is_written_in_the_format_asked_for(
    traces: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*map(str, traces), "--output-dir"]
    for kind in FORMATS:
        out = tmp_path / kind
        assert main([*argv, str(out), "--format", kind]) == 0
        assert {path.name for path in out.iterdir()} == {f"{name}.{kind}" for name in PICTURES}
        assert f": {kind.upper()} in {out}" in capsys.readouterr().out
        before = {path: path.read_bytes() for path in out.iterdir()}
        assert main([*argv, str(out), "--format", kind]) == 0
        assert before == {path: path.read_bytes() for path in out.iterdir()}
    for name in PICTURES:
        pixels = imread(tmp_path / "png" / f"{name}.png")
        assert pixels[..., :3].std() > 0.02, name  # not a blank page
        assert "<svg" in (tmp_path / "svg" / f"{name}.svg").read_text()
        assert (tmp_path / "pdf" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert main([*argv, str(tmp_path / "out")]) == 0
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".png"}


def test_the_bars_are_the_speedups_by_task_the_fastest_on_top(traces: list[Path]) -> None:
    grid = [axes for axes in drawn("speedup", traces).axes if axes.get_visible()]
    assert [axes.get_title() for axes in grid] == ["overall", "mt_bench", "qa"]
    for axes in grid:
        widths = [bar.get_width() for bars in axes.containers for bar in bars]  # type: ignore[attr-defined]
        assert widths == pytest.approx([4.0, 2.0])
    labels = grid[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["logitspec", "vanilla"]
    assert [label.get_color() for label in labels] == [STRONG["logitspec"], "black"]


def test_mat_by_task(traces: list[Path]) -> None:
    grid = [axes for axes in drawn("mat", traces).axes if axes.get_visible()]
    widths = [bar.get_width() for axes in grid for bars in axes.containers for bar in bars]  # type: ignore[attr-defined]
    assert widths == [3.0, 3.0, 3.0]  # logitspec's; the others accept nothing


def test_a_method_looks_alike_in_all_pictures_and_two_stand_out() -> None:
    names = [
        *STRONG,
        "calibrated@16",
        "logitspec@auto",
        "pld",
        "suffix",
        "new",
        "racer",
        "racer@16",
    ]
    look = looks({name: name for name in names})
    assert look == looks({name: name for name in reversed(names)})
    assert [name for name in names if look[name].strong] == names[:4]
    assert look["racer"].color == look["racer@16"].color
    assert look["racer"].line() != look["racer@16"].line()
    kinds = {(kind.color, kind.marker) for name, kind in look.items() if "@" not in name}
    assert len(kinds) == 6
    many = looks({str(n): str(n) for n in range(3 * len(QUIET))})
    assert len({(kind.color, kind.marker) for kind in many.values()}) == len(many)


# Machado, Oliveira and Fernandes 2009: linear RGB as seen without long, and without middle cones
BLINDNESS = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}


@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_stay_apart_for_colour_blind_readers(kind: str) -> None:
    """By CIE76, where 2.3 is just noticeable."""

    def lab(colour: str) -> Any:
        seen = np.clip(np.array(BLINDNESS[kind]) @ np.array(to_rgb(colour)) ** 2.2, 0, 1)
        to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
        x, y, z = np.cbrt(np.array(to_xyz) @ seen / (0.9505, 1, 1.089))
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    for one, other in combinations([*STRONG.values(), *QUIET], 2):
        assert np.linalg.norm(lab(one) - lab(other)) > 15, (one, other)


def test_accept_lengths_are_shares_of_the_steps(traces: list[Path]) -> None:
    (axes,) = [axes for axes in drawn("accept-lengths", traces).axes if axes.get_visible()]
    assert [bar.get_height() for bar in axes.containers[0]][:4] == [0, 0, 1, 0]  # type: ignore[attr-defined]
    assert axes.get_title() == "logitspec, MAT 3.00"


def test_conditional_acceptance_by_hand(tmp_path: Path) -> None:
    """Paths 3 3 1 2 with a miss behind the first and third: depth 1 was tried 4 times."""
    path = write(tmp_path, "t", "racer", seconds=1.0, step=3, count=1)
    rewrite(path, accept_lengths=[3, 3, 1, 2], misses=[[1, 0], [1, 0]])
    assert conditional_acceptance(Trace.read(path)) == {1: (3, 4), 2: (2, 2), 3: (0, 1)}


def test_rates_that_rest_on_few_steps_are_not_drawn(
    traces: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (axes,) = drawn("depth", traces).axes
    (line,) = axes.lines
    # 64 steps of 3 tokens, 32 of them with a miss at depth 3
    assert [*line.get_xdata()] == [1, 2, 3]
    assert [*line.get_ydata()] == [1.0, 1.0, 0.0]
    monkeypatch.setattr(from_traces, "FEWEST", 33)
    assert [*drawn("depth", traces).axes[0].lines[0].get_xdata()] == [1, 2]


def test_ranks(traces: list[Path]) -> None:
    single, cumulative = drawn("rank", traces).axes
    shares = [bar.get_height() for bar in single.containers[0]]  # type: ignore[attr-defined]
    assert shares == pytest.approx([1 / 7, 2 / 7, 1 / 7, 0, 0, 1 / 7, *[0] * 10])
    assert cumulative.lines[0].get_ydata()[-1] == pytest.approx(6 / 7)  # one is in no rank


def test_tokens_against_time(traces: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    (axes,) = drawn("time", traces, question="2").axes
    fast, loop, base = axes.lines
    assert (base.get_xdata()[-1], base.get_ydata()[-1]) == (6.0, 12)  # no steps: a straight line
    # steps come last: 1.5 s in all, 4 of 0.01 s
    assert [*fast.get_xdata()] == pytest.approx([1.46, 1.47, 1.48, 1.49, 1.5])
    assert [*fast.get_ydata()] == [0, 3, 6, 9, 12]
    assert loop.get_ydata()[-1] == 12
    assert main([*map(str, traces), "--output-dir", "x", "--question", "99"]) == 2
    assert "--question 99 is in none of the traces" in capsys.readouterr().err


def test_a_question_is_chosen_by_its_text_or_as_json(tmp_path: Path) -> None:
    records = [a_record(i, wall_time=[n + 1.0]) for n, i in enumerate((1, "1", "first"))]
    lines = [json.dumps(entry) for entry in records]
    (tmp_path / "a.jsonl").write_text("".join(f"{line}\n" for line in lines))
    compared = read_comparison([tmp_path / "a.jsonl"], tmp_path / "a.jsonl")
    wanted = {None: 1, "1": 1, '"1"': "1", "first": "first"}
    for text, question_id in wanted.items():
        assert chosen_question(compared, text) == question_id
    with pytest.raises(InputError, match='--question 2 is in none of the traces; they hold 1, "1"'):
        chosen_question(compared, "2")
    reverse = [*reversed(lines)]
    (tmp_path / "b.jsonl").write_text("".join(f"{line}\n" for line in reverse))
    other = read_comparison([tmp_path / "b.jsonl"], tmp_path / "b.jsonl")
    assert [t.speeds().tolist() for t in compared.traces] == [
        t.speeds().tolist() for t in other.traces
    ]


def test_the_phases_add_up_to_the_wall_time(traces: list[Path]) -> None:
    whole, outside = drawn("phases", traces).axes
    names = [label.get_text() for label in whole.get_yticklabels()]
    assert names == ["logitspec", "vanilla"]  # generate() does not say
    shown = whole.get_legend_handles_labels()[1]
    assert shown == ["verify", "draft", "build", "accept", "commit", "rest"]
    ends = [
        [bar.get_x() + bar.get_width() for bar in axes.containers[-1]] for axes in (whole, outside)
    ]  # type: ignore[attr-defined]
    spent = sum(1.5 * (1 + i) for i in range(8)) - 16 * 0.05
    assert ends[0][0] == pytest.approx(1e3 * spent / 64)
    assert ends[1][0] == pytest.approx(1e3 * (spent - 16 * 0.2) / 64)


def test_what_traces_do_not_hold_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write(tmp_path, "base", "baseline", seconds=2.0, step=1)
    old = write(tmp_path, "old", "pld", seconds=1.0, step=2)
    out = tmp_path / "out"
    assert main([str(base), str(old), "--output-dir", str(out)]) == 0
    said = capsys.readouterr().out
    for name in ("depth", "rank", "phases"):
        assert f"no picture `{name}`: no trace" in said
        assert not (out / f"{name}.png").exists()
    assert "speedup, mat, accept-lengths, time: PNG in" in said


def test_without_matplotlib_the_extra_is_named(
    traces: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([*map(str, traces), "--output-dir", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.endswith(
        "plots need matplotlib; `pip install -e '.[plots]'` installs it\n"
    )


def test_an_unwritable_folder_is_refused(
    traces: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    # Of the first trace alone there is a picture that cannot be drawn, and an old one to take away.
    for some in (traces, traces[:1]):
        for place in ("/dev/null/x", str(traces[0])):
            assert main([*map(str, some), "--output-dir", place]) == 2
            assert f"cannot write the pictures into {place}" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_named(
    traces: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken.md").mkdir()
    for place in ("/dev/null/x/results.md", "/proc/results.md", str(tmp_path / "taken.md")):
        assert report.main([*map(str, traces), "--output", place]) == 2
        assert f"cannot write {place}: " in capsys.readouterr().err
    assert not (tmp_path / "taken").exists()


def test_the_report(traces: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("Remember this.\n")
    out = tmp_path / "docs" / "results.md"
    argv = [*map(str, traces), "--output", str(out), "--notes", str(notes), "--published"]
    assert report.main(argv) == 0
    text = out.read_text()
    for part in (
        "# spec_bench: speedup over transformers' generate()",
        "- 8 questions of spec_bench",
        "- model: m",
        "- date: 2027-01-15",
        "A CPU, 2 threads, Linux; torch 2.13.0; commit 0123456789ab",
        "| logitspec | **4.00** |",
        "Remember this.",
        "![depth](results/depth.png)",
    ):
        assert part in text
    assert text.count("- machine:") == 1
    assert (out.parent / "results" / "table.csv").is_file()
    assert (out.parent / "results" / "table.tex").is_file()
    assert f"report: {out}" in capsys.readouterr().out
    assert report.main([*map(str, traces), "--output", "x.txt"]) == 2
    assert "--output x.txt is no .md file" in capsys.readouterr().err
    assert report.main([*argv, "--notes", "/nowhere.md"]) == 2
    assert "cannot read the notes /nowhere.md" in capsys.readouterr().err


def test_a_report_of_several_benchmarks_and_temperatures(
    traces: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def pair(name: str, **changed: Any) -> list[Path]:
        folder = tmp_path / name
        folder.mkdir()
        return [
            write(folder, "b", "baseline", seconds=3.0, step=1, **changed),
            write(folder, "l", "logitspec", seconds=1.0, step=6, **changed),
        ]

    other = pair("gsm8k", bench_name="gsm8k", questions="z")
    warm, cold = pair("warm", temperature=0.7), pair("cold")
    out = tmp_path / "results.md"
    argv = [*map(str, traces), *map(str, other), "--output", str(out), "--format", "svg"]
    replayed = tmp_path / "quick.csv"
    replayed.write_text(
        "method,estimated,steps,mat,mean_nodes,draft_ms,tokens_per_second,speedup,mat:qa\n"
        "racer,1,9,2.5,40.25,0.125,30.0,0.5,2.5\n"
    )
    argv += ["--replayed", str(replayed)]
    assert report.main([*argv, "--temperatures", *map(str, [*warm, *cold])]) == 0
    text = out.read_text()
    for part in (
        "# spec_bench: speedup over transformers' generate()",
        "## Time per step",
        "| logitspec | – | 3.66 | 50.00 | – | 2.50 | 2.50 | 50.00 | 7.50 | 5.00 | 25.93 |",
        "## Other benchmarks",
        "| logitspec | **3.00** | **4.00** | **6.00** | **3.00** |",
        "## At a temperature",
        "| method | T=0.0 MAT | T=0.0 speedup | T=0.7 MAT | T=0.7 speedup |",
        "## quick, replayed",
        "| ≈ racer | 2.50 | 40.25 | 0.12 | 30.00 | 0.50 |",
        "![depth](results/depth.svg)",
    ):
        assert part in text
    for name in ("table", "phases", "benches", "temperatures", "replayed-quick"):
        assert f"(results/{name}.csv)" in text
        assert (tmp_path / "results" / f"{name}.csv").is_file()
    assert report.main([*argv, "--base-path", str(traces[0])]) == 2
    assert "leave it out of a report of several" in capsys.readouterr().err
    assert report.main([*argv, str(tmp_path / "again" / "quick.csv")]) == 2
    assert "again/quick.csv: No such file" in capsys.readouterr().err
    assert report.main([*argv, str(replayed)]) == 2
    assert "--replayed has two files of one name" in capsys.readouterr().err


def test_records_of_the_tables_tests_are_traces() -> None:
    from evaluation.traces.reading import validate

    assert validate(record(1, 1.0, 12, 3)) is None
