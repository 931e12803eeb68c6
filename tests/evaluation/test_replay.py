"""Recordings, replays, and drafters in files of the user's."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.asking.target import eos_token_ids, load_tokenizer
from evaluation.record import main as record
from evaluation.recordings.costs import KINDS, closest_curve, load_step_costs
from evaluation.recordings.format import (
    RecordedTurn,
    Recording,
    load_recording,
)
from evaluation.recordings.replaying import Configuration, RecordedRows, replay_turn
from evaluation.replay import main as replay
from evaluation.run import main as run
from model.logitspec import (
    DraftTree,
    LlamaKVForCausalLM,
    PromptLookupDrafter,
    VanillaDrafter,
    decode,
    load,
)
from model.logitspec.sizing.measuring import MeasuredModel

from .test_run import HERE

Make = Callable[..., Path]

EXACT = [name for name in ("vanilla", "pld", "logitspec", "sam", "suffix") if name in HERE]


def live(
    model: LlamaKVForCausalLM, recording: Recording, name: str, eos: set[int]
) -> list[tuple[list[int], list[int]]]:
    """Accept lengths and tree sizes of a live run over the recorded prompts, turn by turn."""
    drafter = Configuration(name, (), ()).drafter()
    found = []
    for recorded_question in recording.questions:
        for turn in recorded_question.turns:
            result = decode(
                model, turn.prompt.tolist(), drafter, max_new_tokens=turn.max_new_tokens,
                eos_token_ids=eos,
            )  # fmt: skip
            assert result.tokens == turn.output.tolist()
            found.append((result.accept_lengths, result.tree_sizes))
    return found


def test_replayed_accept_lengths_are_the_live_ones(
    recorded: Callable[..., tuple[int, Path]], chat_path: str
) -> None:
    status, folder = recorded()
    assert status == 0
    recording = load_recording(folder)
    assert [q.question_id for q in recording.questions] == [1, 2, 3]
    assert_exact(recording, chat_path, load(chat_path, dtype=torch.float32))


def assert_exact(recording: Recording, path: str, model: LlamaKVForCausalLM) -> None:
    eos = eos_token_ids(path, model.config, load_tokenizer(path))
    for name in EXACT:
        drafter = Configuration(name, (), ()).drafter()
        replayed = []
        for q in recording.questions:
            for turn in q.turns:
                done = replay_turn(turn, drafter, None)
                replayed.append((done.accept_lengths, done.tree_sizes))
        assert replayed == live(model, recording, name, eos), name


@pytest.mark.slow
def test_replayed_accept_lengths_are_the_live_ones_of_the_real_model(
    default_model: LlamaKVForCausalLM, default_model_path: str, tmp_path: Path
) -> None:
    argv = ["--model-path", default_model_path, "--bench-name", "quick", "--dtype", "float32"]
    argv += ["--device", "cpu", "--question-stride", "9", "--max-new-tokens", "64"]
    argv += ["--tree-rows", "0", "--output", str(tmp_path / "real")]
    assert record(argv) == 0
    recording = load_recording(tmp_path / "real")
    assert recording.tokens >= 64
    assert_exact(recording, default_model_path, default_model)


def test_with_the_rows_of_its_own_trees_an_estimate_is_near(
    recorded: Callable[..., tuple[int, Path]], chat_path: str
) -> None:
    status, folder = recorded("--tree-rows", "16")
    assert status == 0
    recording = load_recording(folder)
    from evaluation.recordings.recording import NodeRows

    drafter = NodeRows(16)
    drafter.prepare(MeasuredModel(load(chat_path, dtype=torch.float32)))
    twin = NodeRows(16)
    twin.prepare(recording)
    for q in recording.questions:
        for turn in q.turns:
            wanted = decode(
                load(chat_path, dtype=torch.float32), turn.prompt.tolist(), drafter,
                max_new_tokens=len(turn.output),
            ).accept_lengths  # fmt: skip
            found = replay_turn(turn, twin, RecordedRows(turn, 16)).accept_lengths
            assert abs(len(found) - len(wanted)) <= 1


def made_up(output: list[int], rows: list[list[int]]) -> RecordedTurn:
    """A turn with the prompt [7]; `rows` after each token."""
    return RecordedTurn(
        np.array([7], np.int32), np.array(output, np.int32), np.array(rows, np.int32),
        np.zeros((len(rows), len(rows[0])), np.float16), 0.5, 10,
    )  # fmt: skip


def test_a_turn_by_hand() -> None:
    turn = made_up([1, 2, 1, 2, 5], [[1, 9], [2, 8], [1, 8], [2, 8], [5, 2], [6, 6]])
    done = replay_turn(turn, PromptLookupDrafter(num_pred_tokens=2), None)
    # 1 | 2 | 1 and what followed it, 2 1: 2 is right and the 1 after it wrong | 5
    assert done.accept_lengths == [1, 1, 2, 1]
    assert done.tree_sizes == [1, 1, 3, 1]
    assert done.committed == [1, 2, 3, 5]
    done = replay_turn(turn, VanillaDrafter(), None)
    assert done.accept_lengths == [1] * 5


def test_rows_of_nodes_are_exact_on_the_answer_and_the_nearest_off_it() -> None:
    turn = made_up([1, 2, 3], [[1, 9], [2, 8], [3, 8], [4, 8]])
    turn.node_at = np.array([[1, 7, 4], [3, 7, 4], [2, 1, 6]], np.int32)
    turn.node_ids = np.array([[10, 11], [12, 13], [14, 15]], np.int32)
    tree = DraftTree(1, 9)
    right = tree.add(2, 0)
    wrong = tree.add(6, 0)
    tree.add(3, wrong)  # right in itself, its parent is not
    tree.add(3, right)
    rows = RecordedRows(turn, 2)
    assert rows.of(tree, 1) == [[2, 8], [3, 8], [14, 15], [], [4, 8]]
    other = DraftTree(7, 2)
    other.add(4, 0)
    assert rows.of(other, 2)[1] == [12, 13]
    assert RecordedRows(turn, 1).of(other, 0)[1] == [10]
    assert RecordedRows(turn, 3)._nodes == {}  # recorded narrower than wanted


def test_a_recording_is_gone_on_with_and_torn_files_are_named(
    recorded: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    status, folder = recorded()
    assert status == 0
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("?.npz")}
    assert set(before) == {"1.npz", "2.npz", "3.npz"}
    (folder / "2.npz").unlink()
    assert recorded()[0] == 0
    assert "2 of 3 questions are recorded" in capsys.readouterr().out
    after = {file.name: file.stat().st_mtime_ns for file in folder.glob("?.npz")}
    assert {name for name in after if after[name] != before[name]} == {"2.npz"}
    content = (folder / "3.npz").read_bytes()
    (folder / "3.npz").write_bytes(content[: len(content) // 2])
    for command in (recorded, lambda: (sweep(folder), folder)):
        assert command()[0] == 2
        said = capsys.readouterr().err
        assert "3.npz is not whole" in said and "Traceback" not in said


def test_another_recording_in_the_folder_is_refused(
    recorded: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert recorded()[0] == 0
    assert recorded("--top-k", "32")[0] == 2
    assert "was recorded with top_k 64, now it is 32" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    assert recorded(folder="full")[0] == 2
    assert "is there and is no recording" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert recorded(folder="file")[0] == 2


def sweep(folder: Path, *flags: str, methods: str = "logitspec,pld") -> int:
    argv = ["--recording", str(folder), "--methods", methods, "--processes", "1"]
    try:
        return replay([*argv, *flags])
    except SystemExit as exit_:
        return int(exit_.code or 0)


def test_a_sweep_writes_every_number(
    recorded: Callable[..., tuple[int, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = recorded()
    grid = ["--grid", "max_ngram_size=1,3", "draft_tree_capacity=2,8"]
    out, picture = tmp_path / "sweep.csv", tmp_path / "sweep.png"
    methods = "vanilla,logitspec,pld,recycling"
    assert sweep(folder, *grid, "--csv", str(out), "--plot", str(picture), methods=methods) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    varied = [(r["method"], r["max_ngram_size"], r["draft_tree_capacity"]) for r in rows]
    assert varied == [
        ("vanilla", "", ""),
        *(("logitspec", n, c) for n in "13" for c in "28"),
        ("pld", "1", ""), ("pld", "3", ""),
        ("recycling", "", "2"), ("recycling", "", "8"),
    ]  # fmt: skip
    assert float(rows[0]["mat"]) == 1.0
    assert [r["estimated"] for r in rows] == ["0"] * 7 + ["1"] * 2
    assert all(float(r["mean_nodes"]) <= float(r["draft_tree_capacity"] or 99) for r in rows)
    assert all(float(r["speedup"]) > 0 and float(r["mat:math_reasoning"]) >= 1 for r in rows)
    assert picture.stat().st_size > 5000
    said = capsys.readouterr().out
    assert "≈ recycling draft_tree_capacity=8" in said and "logitspec max_ngram_size=1" in said


def test_two_processes_find_the_same(
    recorded: Callable[..., tuple[int, Path]], tmp_path: Path
) -> None:
    _, folder = recorded()
    mats = []
    for processes in ("1", "2"):
        out = tmp_path / f"{processes}.csv"
        flags = ["--csv", str(out), "--processes", processes, "--grid", "draft_tree_capacity=4,16"]
        assert sweep(folder, *flags) == 0
        with out.open(newline="") as file:
            mats.append([(r["method"], r["mat"], r["mean_nodes"]) for r in csv.DictReader(file)])
    assert mats[0] == mats[1]


def test_the_step_costs_of_another_machine_make_the_speed(
    recorded: Callable[..., tuple[int, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_turn = ["--question-begin", "1", "--question-end", "2"]  # the speed is a mean over turns
    _, folder = recorded("--tree-rows", "0", *one_turn)
    own = load_step_costs(folder / "step-cost.json")
    assert set(own) == {(0, False), (0, True), (16, False)}
    recording = load_recording(folder)
    assert recording.step_cost(1, 0) == own[0, False]
    assert recording.step_cost(1, 8) == own[16, False]  # not one of steps that read no node's
    assert closest_curve(own, 0, rejected=True) is own[0, True]
    assert closest_curve(own, 8, rejected=True) is own[16, False]
    given = tmp_path / "costs.json"
    curve = {"contexts": [1, 1000], "nodes": [1, 128], "seconds": [[1.0, 128.0], [1.0, 128.0]]}
    given.write_text(json.dumps({"curves": [curve]}))
    out = tmp_path / "out.csv"
    flags = ["--step-cost", str(given), "--csv", str(out), "--grid", "draft_tree_capacity=8"]
    assert sweep(folder, *flags, methods="vanilla,logitspec") == 0
    with out.open(newline="") as file:
        vanilla, logitspec = csv.DictReader(file)
    assert float(vanilla["tokens_per_second"]) == pytest.approx(1.0, rel=0.05)
    expected = float(logitspec["mat"]) / float(logitspec["mean_nodes"])
    assert float(logitspec["speedup"]) == pytest.approx(expected, rel=0.1)
    cheap = curve | {"rejected": True, "seconds": [[0.5, 1.0], [0.5, 1.0]]}
    given.write_text(json.dumps({"curves": [curve, cheap]}))
    assert sweep(folder, *flags, methods="vanilla,logitspec") == 0
    with out.open(newline="") as file:
        again, faster = csv.DictReader(file)
    assert float(again["tokens_per_second"]) == pytest.approx(2.0, rel=0.05)
    assert float(faster["tokens_per_second"]) > 1.5 * float(logitspec["tokens_per_second"])
    dearer = curve | {"node_top_k": 8, "seconds": [[2.0, 256.0], [2.0, 256.0]]}
    given.write_text(json.dumps({"curves": [curve, dearer]}))
    speeds = []
    for methods in ("recycling", "logitspec"):
        assert sweep(folder, *flags, methods=methods) == 0
        with out.open(newline="") as file:
            (row,) = csv.DictReader(file)
        rate, mat, nodes = (float(row[k]) for k in ("tokens_per_second", "mat", "mean_nodes"))
        speeds.append(rate / mat * nodes)
    assert speeds[0] == pytest.approx(0.5, rel=0.05) and speeds[1] == pytest.approx(1, rel=0.05)
    curve = {"contexts": [1, 1000], "nodes": [1, 4], "seconds": [[1.0, 2.0], [1.0, 2.0]]}
    given.write_text(json.dumps({"curves": [curve]}))
    capsys.readouterr()
    assert sweep(folder, *flags, methods="logitspec") == 2
    assert "trees of up to 8 nodes, and the step costs end at 4" in capsys.readouterr().err


def test_live_traces_are_compared_with(
    recorded: Callable[..., tuple[int, Path]],
    chat_path: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, folder = recorded()
    argv = ["--model-path", chat_path, "--model-id", "x", "--bench-name", "mine", "--dtype"]
    argv += ["float32", "--device", "cpu", "--warmup", "0", "--answer-dir", str(tmp_path / "live")]
    costs = tmp_path / "costs.json"
    argv += ["--step-cost", str(costs)]
    assert run([*argv, "--max-new-tokens", "24", "--methods", "vanilla,logitspec"]) == 0
    assert set(load_step_costs(costs)) == set(KINDS)
    assert run([*argv, "--max-new-tokens", "24", "--methods", "baseline"]) == 2
    assert "measures this project's own loop in one process" in capsys.readouterr().err
    traces = [str(tmp_path / "live" / f"x-{name}.jsonl") for name in ("vanilla", "logitspec")]
    capsys.readouterr()
    given = ["--step-cost", str(costs)]
    assert sweep(folder, *given, "--against", *traces, methods="logitspec") == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "4 of 4" in x)
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert cells[0] == "logitspec" and cells[1] == cells[2]
    assert float(cells[5]) > 0
    assert sweep(folder, "--against", traces[1], methods="pld") == 2
    assert "options that are not replayed" in capsys.readouterr().err
    assert sweep(folder, "--against", *traces, methods="logitspec@64") == 0
    assert "logitspec@64" in capsys.readouterr().out
    meta = Path(traces[1]).with_suffix("").with_suffix(".meta.json")
    whole = meta.read_text()
    sidecar = json.loads(whole)
    sidecar["settings"]["tokenizer_fingerprint"] = "another"
    meta.write_text(json.dumps(sidecar))
    assert sweep(folder, "--against", traces[1], methods="logitspec") == 2
    assert "was made with tokenizer_fingerprint 'another'" in capsys.readouterr().err
    meta.write_text(whole)
    assert run([*argv, "--max-new-tokens", "20", "--methods", "pld"]) == 0
    assert sweep(folder, "--against", str(tmp_path / "live/x-pld.jsonl"), methods="pld") == 2
    assert "was made with max_new_tokens 20, the recording with 24" in capsys.readouterr().err


BAD_SWEEPS = [  # flags, methods, complaint
    (["--grid", "size=1,2"], "logitspec", "logitspec has no option 'size'; there are"),
    (["--grid", "max_ngram_size="], "logitspec", "gives no values"),
    (["--grid", "max_ngram_size"], "logitspec", "gives no values"),
    (["--grid", "max_ngram_size=0"], "logitspec", "'0' is not a whole number"),
    (["--grid", "merge=maybe"], "logitspec", "merge=maybe is neither true nor false"),
    (["--grid", "max_ngram_size=1", "max_ngram_size=2"], "pld", "names max_ngram_size twice"),
    (["--grid", "draft_tree_capacity=auto"], "recycling", "cannot do draft_tree_capacity=auto"),
    (["--grid", "draft_tree_capacity=65"], "logitspec", "wants the 65 best tokens of the last"),
    (["--grid", "num_pred_tokens=" + ",".join(map(str, range(1, 4000))),
      "max_ngram_size=1,2,3"], "logitspec", "more than 10000"),
    ([], "baseline", "has no drafter"),
    ([], "nothing", "no method 'nothing'"),
    ([], "pld,lookahead", "lookahead drafts what the target says after tokens off the answer"),
    ([], ",", "names none"),
    ([], "pld,logitspec,pld", "names pld twice"),
    (["--grid", "draft_tree_capacity=8,16"], "logitspec@4", "@4 has no option 'draft_tree"),
    (["--grid", "num_pred_tokens=150"], "pld", "trees of up to 151 nodes, and the step costs"),
    ([], "no/file.py:Mine", "there is no file no/file.py"),
    (["--step-cost", "no.json"], "pld", "cannot read the step costs no.json"),
    (["--csv", "no/such/folder.csv"], "pld", "cannot write no/such/folder.csv"),
]  # fmt: skip


def test_bad_sweeps_are_refused(
    recorded: Callable[..., tuple[int, Path]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, folder = recorded("--tree-rows", "0", "--question-stride", "3")
    for flags, methods, complaint in BAD_SWEEPS:
        assert sweep(folder, *flags, methods=methods) == 2, complaint
        said = capsys.readouterr().err
        assert complaint in said and "Traceback" not in said
