"""benchmarks.compare: figures by hand, a run on a small random model, what it keeps."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare
from benchmarks.compare import main
from benchmarks.compare_results import (
    PHASES,
    Ratio,
    Record,
    Results,
    draw,
    markdown,
    phase_table,
    speed_table,
    summarize,
)
from evaluation.engines import HFEngine, KVEngine
from evaluation.methods import METHODS
from evaluation.tables import Table
from model.logitspec import InputError

from .conftest import question

Make = Callable[..., Path]
Run = Callable[..., int]


def record(number: int, seconds: float, tokens: int, first: float, **more: Any) -> Record:
    """An answer of transformers' generate(): a step a token, no phases."""
    entry = {
        "question_id": number, "category": "qa", "prompt_tokens": 5, "max_new_tokens": 64,
        "place": 0, "seconds": seconds, "tokens": tokens, "steps": tokens, "tree_nodes": tokens,
        "first_token_seconds": first, "phase_seconds": None,
    }  # fmt: skip
    return Record(**entry | more)


def phases(*seconds: float) -> dict[str, float]:
    return dict(zip(PHASES, seconds, strict=True))


def made_up() -> dict[str, list[Record]]:
    """Tokens/s: baseline 10, 20, 10; vanilla 20, 20, 20; pld 40, 100, 20; hf_pld 20, 10, 40."""
    even = phases(0.0, 0.0, 0.5, 0.0, 0.0)
    return {
        "baseline": [
            record(1, 1.0, 10, 0.2), record(2, 1.0, 20, 0.4), record(3, 4.0, 40, 0.8),
        ],
        "vanilla": [
            record(1, 0.5, 10, 0.1, phase_seconds=even),
            record(2, 1.0, 20, 0.1, phase_seconds=even),
            record(3, 2.0, 40, 0.1, phase_seconds=even),
        ],
        "pld": [
            record(1, 0.25, 10, 0.1, steps=5, tree_nodes=20,
                   phase_seconds=phases(0.01, 0.02, 0.08, 0.05, 0.04)),
            record(2, 0.2, 20, 0.1, steps=10, tree_nodes=25,
                   phase_seconds=phases(0.01, 0.01, 0.06, 0.01, 0.01)),
            record(3, 2.0, 40, 0.1, steps=20, tree_nodes=60,
                   phase_seconds=phases(0.02, 0.02, 1.80, 0.12, 0.04)),
        ],
        "hf_pld": [
            record(1, 0.5, 10, 0.3, steps=8, tree_nodes=None),
            record(2, 2.0, 20, 0.3, steps=8, tree_nodes=None),
            record(3, 1.0, 40, 0.6, steps=4, tree_nodes=None),
        ],
    }  # fmt: skip


def results(records: dict[str, list[Record]] | None = None, **settings: Any) -> Results:
    known = {
        "model": "m", "dtype": "float32", "device": "cpu", "device_name": "A CPU",
        "kernels": "plain", "max_new_tokens": 64, "question_count": 4, "bench_name": "mine",
        "left_out": {},
    }  # fmt: skip
    return Results(known | settings, {"threads": 2}, made_up() if records is None else records)


def cells(table: Table, method: str) -> dict[str, str]:
    (row,) = [row for row in table.rows if row.name == method]
    return {key: table.cell(row, key) for key in table.columns}


def test_ratios_are_taken_question_by_question() -> None:
    found = summarize(made_up())
    pld = found["pld"]
    assert pld.tokens_per_second == 40  # of 40, 100, 20
    # 4, 5 and 2 times generate(); the quartiles lie half way; 70 tokens in 2.45 s by 70 in 6 s
    assert pld.over_generate == Ratio(4.0, 3.0, 4.5, pytest.approx(6 / 2.45))
    # 2, 5 and 1 times vanilla, which took 3.5 s
    assert pld.over_vanilla == Ratio(2.0, 1.5, 3.5, pytest.approx(3.5 / 2.45))
    assert found["baseline"].over_generate == Ratio(1.0, 1.0, 1.0, 1.0)
    assert found["baseline"].over_vanilla == Ratio(0.5, 0.5, 0.75, pytest.approx(3.5 / 6))


def test_mat_and_tree_size_are_over_all_steps() -> None:
    found = summarize(made_up())
    assert (found["pld"].mat, found["pld"].tree_size) == (70 / 35, 105 / 35)
    assert (found["hf_pld"].mat, found["hf_pld"].tree_size) == (70 / 20, None)


def test_phases_are_medians_of_per_step_means() -> None:
    pld = summarize(made_up())["pld"]
    # ms per step of the three questions: draft 2, 1, 1; build 4, 1, 1; verify 16, 6, 90;
    # accept 10, 1, 6; commit 8, 1, 2; verify's share 40, 60 and 90 percent
    assert pld.phase_ms == pytest.approx(phases(1, 1, 16, 6, 2))
    assert pld.outside_verify_percent == pytest.approx(40)
    # with accept 65, 70 and 96 percent
    on_gpu = summarize(made_up(), waits_in_accept=True)["pld"]
    assert on_gpu.phase_ms == pld.phase_ms
    assert on_gpu.outside_verify_percent == pytest.approx(30)
    baseline = summarize(made_up())["baseline"]
    assert (baseline.phase_ms, baseline.outside_verify_percent) == (None, None)


def test_the_first_token_is_a_time_by_a_time() -> None:
    found = summarize(made_up())
    assert found["pld"].first_token_ms == pytest.approx(100)
    assert found["pld"].first_token_over_generate == pytest.approx(0.25)  # of 1/2, 1/4, 1/8
    assert found["hf_pld"].first_token_ms == pytest.approx(300)
    assert found["hf_pld"].first_token_over_generate == pytest.approx(0.75)  # of 3/2, 3/4, 3/4


def test_the_tables() -> None:
    speed = speed_table(results())
    assert cells(speed, "pld") == {
        "speed": "40.00", "over_generate": "4.00 [3.00, 4.50]", "over_generate_total": "2.45",
        "over_vanilla": "2.00 [1.50, 3.50]", "over_vanilla_total": "1.43", "mat": "2.00",
        "tree_size": "3.00", "first_token": "100.00", "first_token_ratio": "0.25",
    }  # fmt: skip
    assert cells(speed, "hf_pld")["tree_size"] == "-"
    steps = phase_table(results())
    assert [*cells(steps, "pld").values()] == ["1.00", "1.00", "16.00", "6.00", "2.00", "40.00"]
    assert {*cells(steps, "hf_pld").values()} == {"-"}
    text = markdown(results(left_out={"suffix": "no package"}))
    assert "| pld | **40.00** | **4.00 [3.00, 4.50]** | **2.45** |" in text
    assert "| pld | 1.00 | 1.00 | 16.00 | 6.00 | 2.00 | 40.00 |" in text
    assert "3 of 4 questions answered by all" in text
    assert "Without suffix: no package." in text
    assert "On a GPU" not in text
    assert "30.00 |" in markdown(results(device="cuda:0"))
    assert "On a GPU" in markdown(results(device="cuda:0"))


def test_without_a_partner_there_is_no_ratio() -> None:
    alone = {"pld": made_up()["pld"]}
    summary = summarize(alone)["pld"]
    assert summary.over_generate is summary.over_vanilla is None
    assert summary.first_token_over_generate is None
    shown = cells(speed_table(results(alone)), "pld")
    missing = {key for key, cell in shown.items() if cell == "-"}
    assert missing == {
        "over_generate", "over_generate_total", "over_vanilla", "over_vanilla_total",
        "first_token_ratio",
    }  # fmt: skip


def test_the_bars_are_sorted_and_have_their_quartiles() -> None:
    pytest.importorskip("matplotlib")
    speed, steps = draw(results()).axes
    assert [tick.get_text() for tick in speed.get_yticklabels()] == [
        "pld", "vanilla", "hf_pld", "baseline"
    ]  # fmt: skip
    bars, whiskers = speed.containers
    assert [bar.get_width() for bar in bars] == [4.0, 2.0, 2.0, 1.0]
    ends = [[float(x) for x in line[:, 0]] for line in whiskers.lines[2][0].get_segments()]
    assert ends == [[3.0, 4.5], [1.5, 2.0], [1.25, 3.0], [1.0, 1.0]]
    assert [stack.get_label() for stack in steps.containers] == [*PHASES]
    (last,) = [bar for bar in steps.containers[-1] if bar.get_y() < 0]  # pld's, in the first row
    assert last.get_x() + last.get_width() == pytest.approx(26)
    assert sum("does not say" in text.get_text() for text in steps.texts) == 2


@pytest.fixture
def run(chat_path: str) -> Run:
    """run(*flags): the exit status, on benchmark `mine` with 8 tokens."""

    def call(*flags: str) -> int:
        argv = ["--model-path", chat_path, "--bench-name", "mine", "--max-new-tokens", "8"]
        argv += ["--dtype", "float32", "--device", "cpu", "--warmup", "1"]
        try:
            return main([*argv, *flags])
        except SystemExit as exit_:
            return int(exit_.code or 0)

    return call


FEW = ("--methods", "baseline,hf_pld,vanilla,recycling")


def test_a_run_from_questions_to_json_and_back(
    run: Run, make_bench: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    # the third leaves 4 of the 512 positions, or so; the fourth is another slice's
    long = "hello " * 474
    make_bench(question(1, "Who?", "Why?"), question(2), question(3, long), question(4))
    out = tmp_path / "deep"
    files = [str(out / name) for name in ("r.json", "r.png", "r.md")]
    flags = ("--json", files[0], "--plot", files[1], "--markdown", files[2])
    assert run(*FEW, "--question-end", "3", "--draft_tree_capacity", "9", *flags) == 0
    said = capsys.readouterr()
    assert "answer/s" in said.err
    assert "--draft-tree-capacity is ignored by baseline, hf_pld, vanilla\n" in said.out
    content = json.loads((out / "r.json").read_text())
    assert content["settings"]["methods"]["recycling"]["draft_tree_capacity"] == 9
    assert content["environment"]["threads"] > 0
    places = []
    for name, method in content["methods"].items():
        records = [Record.parse(entry) for entry in method["records"]]
        assert [r.question_id for r in records] == [1, 2, 3]
        assert all(1 <= r.tokens <= r.max_new_tokens for r in records)
        assert [r.max_new_tokens == 8 for r in records] == [True, True, False]
        split = name in ("vanilla", "recycling")
        assert all((r.phase_seconds is not None) is split for r in records)
        assert (method["summary"]["phase_ms"] is None) is not split
        places.append([r.place for r in records])
        if split:
            for r in records:
                assert r.phase_seconds is not None
                assert r.seconds >= r.first_token_seconds + sum(r.phase_seconds.values())
    assert places == [[0, 3, 2], [1, 0, 3], [2, 1, 0], [3, 2, 1]]
    assert content["methods"]["baseline"]["summary"]["mat"] == 1
    assert content["methods"]["hf_pld"]["summary"]["tree_size"] is None
    assert imread(files[1])[..., :3].std() > 0.02  # not a blank page
    assert (out / "r.md").read_text() == markdown(Results.read(out / "r.json"))

    again = tmp_path / "again.md"
    picture = tmp_path / "again.png"
    argv = ["--from", files[0], "--markdown", str(again), "--plot", str(picture)]
    assert main(argv) == 0
    assert capsys.readouterr().out in said.out
    assert again.read_text() == (out / "r.md").read_text()
    assert picture.read_bytes() == (out / "r.png").read_bytes()


def test_transformers_first_token_is_measured_in_its_turn(
    run: Run, make_bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def note(cls: Any) -> None:
        original = cls.generate

        def generate(self: Any, prompt_ids: list[int], max_new_tokens: int) -> Any:
            asked.append((cls.__name__, max_new_tokens))
            return original(self, prompt_ids, max_new_tokens)

        monkeypatch.setattr(cls, "generate", generate)

    note(HFEngine)
    note(KVEngine)
    make_bench(question(1), question(2))
    assert run("--methods", "baseline,vanilla", "--warmup", "0") == 0
    turn, ours = [("HFEngine", 1), ("HFEngine", 8)], [("KVEngine", 8)]
    assert asked == [*turn, *ours, *ours, *turn]


def test_what_the_warm_up_taught_is_forgotten(
    run: Run, make_bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    generate, forget = KVEngine.generate, KVEngine.forget
    monkeypatch.setattr(KVEngine, "generate", lambda *a: (done.append("ask"), generate(*a))[1])
    monkeypatch.setattr(KVEngine, "forget", lambda *a: (done.append("forget"), forget(*a))[1])
    make_bench(question(1))
    assert run("--methods", "vanilla", "--warmup", "2") == 0
    assert done == ["ask", "ask", "forget", "ask"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_is_finished_survives_however_it_ends(
    run: Run,
    make_bench: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: type[BaseException],
) -> None:
    """It ends within the third question, when one of two methods has answered it."""
    original = compare.ask
    measured: list[object] = []

    def ask(*args: Any) -> Record:
        if len(measured) == 5:
            raise error("out of the blue")
        measured.append(args)
        return original(*args)

    monkeypatch.setattr(compare, "ask", ask)
    make_bench(*(question(i, f"Question {i}?") for i in range(4)))
    path = tmp_path / "r.json"
    flags = ("--methods", "vanilla,pld", "--warmup", "0", "--json", str(path))
    if error is KeyboardInterrupt:
        assert run(*flags) == 130
    else:
        with pytest.raises(RuntimeError, match="out of the blue"):
            run(*flags)
    said = capsys.readouterr()
    assert "2 of 4 questions answered by all" in said.out
    kept = Results.read(path)
    assert {name: [r.question_id for r in own] for name, own in kept.records.items()} == {
        "vanilla": [0, 1], "pld": [0, 1]
    }  # fmt: skip
    assert not path.with_name("r.json.part").exists()
    if error is KeyboardInterrupt:
        assert said.err.endswith(f"interrupted; {path} keeps what is finished\n")


def test_ctrl_c_before_the_first_answer_prints_no_table(
    run: Run, make_bench: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "measure", stop)
    make_bench(question(1))
    assert run("--methods", "vanilla") == 130
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "python -m benchmarks.compare: interrupted\n"


def test_a_method_that_cannot_run_is_left_out_unless_it_is_named(
    run: Run, make_bench: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(*_: Any) -> None:
        raise InputError("the method pld needs a package")

    monkeypatch.setattr(METHODS["pld"], "check", missing)
    few = {name: METHODS[name] for name in ("vanilla", "pld")}
    monkeypatch.setattr(compare, "METHODS", few)
    make_bench(question(1))
    assert run() == 0
    said = capsys.readouterr()
    assert "pld is left out: the method pld needs a package\n" in said.err
    assert "Without pld: the method pld needs a package." in said.out
    assert run("--methods", "vanilla,pld") == 2
    assert capsys.readouterr().err.endswith(": the method pld needs a package\n")


def test_every_registered_method_takes_part_by_itself() -> None:
    methods, left_out = compare.choose_methods(None, {"draft_tree_capacity": 7})
    assert methods.keys() | left_out.keys() == METHODS.keys()
    assert left_out.keys() <= {"suffix"}
    assert methods["logitspec"][1]["draft_tree_capacity"] == 7


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--methods", "vanilla,medusa"), "no method 'medusa'; there are baseline"),
        (("--methods", "vanilla,vanilla"), "names vanilla twice"),
        (("--methods", ","), "names none"),
        (("--bench-name", "other"), "no benchmark 'other'"),
        (("--question-begin", "1"), "questions 1 to 1"),
        (("--methods", "vanilla", "--merge"), "--merge means nothing to vanilla"),
        (("--methods", "vanilla", "--plot", "x.png"), "ratio to the method baseline"),
        (("--plot", "x.svg"), "x.svg is no .png file"),
        (("--json", "/dev/null/x"), "cannot write /dev/null/x"),
        (("--json", "/dev"), "--json /dev is a folder"),
        (("--json", __file__), "is there already"),
        (("--dtype", "int3"), "dtype 'int3' is not known"),
        (("--from", "none.json", "--model-path", "x"), "means nothing to --from"),
    ],
)
def test_bad_flags(
    run: Run,
    make_bench: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr(compare, "Models", None)  # none of it may get as far as the weights
    make_bench(question(1))
    assert run(*flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_from_takes_only_what_json_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*flags: str) -> str:
        assert main([*flags]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    path = tmp_path / "r.json"
    assert f"cannot read {path}: No such file or directory" in refused("--from", str(path))
    whole = results().to_json()
    lacking = json.loads(json.dumps(whole))
    lacking["methods"]["pld"]["records"].pop()
    still = json.loads(json.dumps(whole))
    still["methods"]["pld"]["records"][0]["seconds"] = 0
    for content in (
        "{", "[]", "3", json.dumps({"kind": "a trace"}), json.dumps(whole | {"methods": {}}),
        json.dumps(whole | {"settings": {}}), json.dumps(lacking), json.dumps(still),
    ):  # fmt: skip
        path.write_text(content)
        message = refused("--from", str(path))
        assert "r.json is not what `python -m benchmarks.compare --json FILE` writes" in message
    path.write_text(json.dumps(whole))
    assert "leave it out" in refused("--from", str(path), "--json", str(tmp_path / "x.json"))
    assert main(["--from", str(path)]) == 0
    assert "4.00 [3.00, 4.50]" in capsys.readouterr().out
    alone = {"pld": made_up()["pld"]}
    path.write_text(json.dumps(results(alone).to_json()))
    assert main(["--from", str(path)]) == 0
    picture = str(tmp_path / "x.png")
    assert "not among pld; add it" in refused("--from", str(path), "--plot", picture)


def test_without_matplotlib_the_extra_is_named(
    run: Run, make_bench: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    make_bench(question(1))
    assert run(*FEW, "--plot", "x.png") == 2
    assert capsys.readouterr().err.endswith(
        "plots need matplotlib; `pip install -e '.[plots]'` installs it\n"
    )


def test_a_json_that_can_no_longer_be_written_does_not_cost_the_table(
    run: Run, make_bench: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compare, "write_atomically", full)
    make_bench(question(1), question(2))
    assert run("--methods", "vanilla", "--json", str(tmp_path / "r.json")) == 2
    said = capsys.readouterr()
    assert "1 of 2 questions answered by all" in said.out
    assert said.err.endswith("r.json: No space left on device; make room\n")


def test_records_are_checked() -> None:
    whole = record(1, 1.0, 4, 0.1)
    entry = {**vars(replace(whole, phase_seconds=phases(1, 1, 1, 1, 1)))}
    assert Record.parse(entry).speed == 4
    for wrong in ({"tokens": 0}, {"seconds": None}, {"phase_seconds": {"draft": 1.0}}):
        with pytest.raises((ValueError, TypeError, KeyError)):
            Record.parse(entry | wrong)
