"""Recordings, replays, and drafters in files of the user's."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation import analyses
from evaluation.analyses import main as analyse
from evaluation.asking.methods import METHODS, DrafterMethod, find_method
from evaluation.asking.target import eos_token_ids, load_tokenizer
from evaluation.record import main as record
from evaluation.recordings.costs import KINDS, closest_curve, load_step_costs
from evaluation.recordings.format import (
    RecordedQuestion,
    RecordedTurn,
    Recording,
    load_question,
    load_recording,
    question_file,
    save_question,
)
from evaluation.recordings.replaying import Configuration, RecordedRows, replay_turn
from evaluation.recordings.sweeping import configurations, parse_grid
from evaluation.replay import main as replay
from evaluation.run import main as run
from model.logitspec import (
    DraftTree,
    InputError,
    LlamaKVForCausalLM,
    LogitSpecDrafter,
    PromptLookupDrafter,
    VanillaDrafter,
    decode,
    load,
)
from model.logitspec.sizing.measuring import MeasuredModel
from model.logitspec.sizing.step_cost import StepCost

from .conftest import question
from .test_run import HERE

Make = Callable[..., Path]
EXACT = [name for name in ("vanilla", "pld", "logitspec", "suffix") if name in HERE]
QUESTIONS = (
    question(1, "Who is it?", "Why is it?"),
    question(2, "Say a b a b a b.", category="math_reasoning"),
    question(3, "Count: 1 2 3 1 2 3."),
)


@pytest.fixture
def recorded(chat_path: str, make_bench: Make, tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """recorded(*flags): exit status and folder of a recording of the benchmark `mine`."""

    def call(*flags: str, folder: str = "recording") -> tuple[int, Path]:
        make_bench(*QUESTIONS)
        argv = ["--model-path", chat_path, "--bench-name", "mine", "--dtype", "float32"]
        argv += ["--device", "cpu", "--max-new-tokens", "24", "--vocabulary-rows", "60"]
        return record([*argv, "--output", str(tmp_path / folder), *flags]), tmp_path / folder

    return call


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
    argv += ["--tree-rows", "0", "--vocabulary-rows", "0", "--output", str(tmp_path / "real")]
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

    drafter = NodeRows(16, 60)
    drafter.prepare(MeasuredModel(load(chat_path, dtype=torch.float32)))
    twin = NodeRows(16, 60)
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
    _, folder = recorded("--tree-rows", "0")
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


@pytest.mark.parametrize(
    ("flags", "methods", "complaint"),
    [
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
        ([], ",", "names none"),
        ([], "pld,logitspec,pld", "names pld twice"),
        (["--grid", "draft_tree_capacity=8,16"], "logitspec@4", "@4 has no option 'draft_tree"),
        (["--grid", "num_pred_tokens=150"], "pld", "trees of up to 151 nodes, and the step costs"),
        ([], "no/file.py:Mine", "there is no file no/file.py"),
        (["--step-cost", "no.json"], "pld", "cannot read the step costs no.json"),
        (["--csv", "no/such/folder.csv"], "pld", "cannot write no/such/folder.csv"),
    ],
)  # fmt: skip
def test_bad_sweeps_are_refused(
    recorded: Callable[..., tuple[int, Path]],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    methods: str,
    complaint: str,
) -> None:
    _, folder = recorded("--tree-rows", "0", "--question-stride", "3")
    assert sweep(folder, *flags, methods=methods) == 2
    said = capsys.readouterr().err
    assert complaint in said and "Traceback" not in said


def test_rows_wider_than_recorded_are_refused(
    recorded: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = recorded("--question-stride", "3")
    assert load_recording(folder).node_width == 16
    wider = ["--grid", "row_width=17", "vocabulary_rows=0"]
    assert sweep(folder, *wider, methods="calibrated") == 2
    assert "holds 16 of nodes off the answer" in capsys.readouterr().err
    with pytest.raises(InputError, match="16 best tokens after each token of the vocabulary, 17"):
        load_recording(folder).successors(60, 17)


def test_an_unfinished_recording_is_said_to_be_one_and_foreign_files_are_refused(
    recorded: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = recorded("--tree-rows", "0")
    content = (folder / "3.npz").read_bytes()
    (folder / "3.npz").unlink()
    assert sweep(folder) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 questions of mine (1 not recorded yet)" in said
    (folder / "copy.npz").write_bytes(content)
    assert sweep(folder) == 2
    assert "has not the name of the question 3" in capsys.readouterr().err
    (folder / "copy.npz").unlink()
    other = load_question(folder / "2.npz")
    other.turns[0].prompt[0] = 10**6  # of a larger vocabulary
    save_question(folder, other)
    assert sweep(folder) == 2
    assert "2.npz holds token ids outside the vocabulary" in capsys.readouterr().err
    other.question_id = 9
    save_question(folder, other)
    (folder / "2.npz").unlink()
    assert sweep(folder) == 2
    assert "9.npz answers question 9, which the recording does not ask" in capsys.readouterr().err


@pytest.mark.parametrize("at", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_flipped_byte_is_a_sentence(
    at: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turn = made_up([1, 2] * 50, [[1, 9], *([[2, 8], [1, 8]] * 50)])
    save_question(tmp_path, RecordedQuestion(1, "qa", [turn]))
    content = bytearray((tmp_path / "1.npz").read_bytes())
    content[int(at * len(content))] ^= 0xFF
    (tmp_path / "1.npz").write_bytes(content)
    try:
        again = load_question(tmp_path / "1.npz")  # a flip may hit what nobody reads
        assert again.turns[0].output.tolist() == [1, 2] * 50
    except InputError as error:
        assert "1.npz is not whole" in str(error)


@pytest.mark.slow
def test_what_it_costs_is_measured_again_only_when_it_is_measured_better(
    recorded: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = recorded("--tree-rows", "0")
    path = folder / "step-cost.json"
    content = json.loads(path.read_text())
    assert content["rounds"] == 1
    path.write_text(json.dumps(content | {"rounds": 2}))
    before = path.read_text()
    (folder / "3.npz").unlink()
    assert recorded("--tree-rows", "0")[0] == 0
    assert path.read_text() == before  # two rounds are not replaced by one
    path.unlink()
    assert recorded("--tree-rows", "0")[0] == 0
    assert set(load_step_costs(path)) == set(KINDS)
    meta = folder / "recording.meta.json"
    sidecar = json.loads(meta.read_text())
    sidecar["environments"][0]["device_names"] = ["another"]
    meta.write_text(json.dumps(sidecar))
    capsys.readouterr()
    assert recorded("--tree-rows", "0")[0] == 2
    assert "was recorded on ['another'], this is" in capsys.readouterr().err


def test_what_is_no_recording_is_refused(
    recorded: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert sweep(tmp_path / "nowhere") == 2
    assert "no recording in" in capsys.readouterr().err
    _, folder = recorded("--tree-rows", "0", "--question-stride", "3")
    meta = folder / "recording.meta.json"
    text = meta.read_text()
    meta.write_text(text.replace('"format": 1', '"format": 9'))
    assert sweep(folder) == 2
    assert "is of format 9, this version reads 1" in capsys.readouterr().err
    meta.write_text(text[:50])
    assert sweep(folder) == 2
    assert "does not say how" in capsys.readouterr().err
    meta.write_text(text)
    costs = folder / "step-cost.json"
    costs.write_text('{"curves": [{"contexts": [1, 2], "nodes": [2], "seconds": [[1], [1]]}]}')
    assert sweep(folder) == 2
    assert "holds no step costs" in capsys.readouterr().err


def test_an_answer_that_its_logits_do_not_choose_is_refused(tmp_path: Path) -> None:
    turn = made_up([1, 2], [[1, 9], [3, 8], [4, 8]])
    save_question(tmp_path, RecordedQuestion("a/b", "qa", [turn]))
    path = question_file(tmp_path, "a/b")
    assert path.parent == tmp_path and path.is_file()
    with pytest.raises(InputError, match="not what its best tokens say"):
        load_question(path)
    turn.top_ids[1, 0] = 2
    save_question(tmp_path, RecordedQuestion("a/b", "qa", [turn]))
    again = load_question(path)
    assert again.question_id == "a/b"
    assert np.array_equal(again.turns[0].top_ids, turn.top_ids)


def test_calibrated_wants_no_more_successors_than_are_recorded(
    recorded: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = recorded("--question-stride", "3")
    assert sweep(folder, methods="calibrated") == 2
    assert "of 60 tokens of the vocabulary" in capsys.readouterr().err
    assert (
        sweep(folder, "--grid", "vocabulary_rows=60,0", methods="calibrated,calibrated@auto") == 0
    )


MINE = '''
from model.logitspec import Drafter, DraftTree


class Last(Drafter):
    """Drafts the last token again."""

    options = {"times": "how often"}
    capacity = 9

    def __init__(self, times: int = 2) -> None:
        self.times = times

    def reset(self, prompt_ids, top_ids=()):
        pass

    def draft(self, root, top_ids):
        tree = DraftTree(root, self.capacity)
        tree.add_branch([root] * self.times)
        return tree


class NoDefault(Last):
    options = {}

    def __init__(self, size):
        pass


class NoArgument(Last):
    options = {"size": "of what"}


class NoDict(Last):
    options = ["times"]


class Half(Drafter):
    def reset(self, prompt_ids, top_ids=()):
        pass
'''


def test_a_drafter_in_a_file_is_replayed_and_run(
    recorded: Callable[..., tuple[int, Path]],
    chat_path: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, folder = recorded("--tree-rows", "0")
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    name = f"{file}:Last"
    assert sweep(folder, "--grid", "times=1,3", "--processes", "2", methods=f"{name},pld") == 0
    assert "times=3" in capsys.readouterr().out.replace("\n", "")
    argv = ["--model-path", chat_path, "--model-id", "x", "--bench-name", "mine", "--dtype"]
    argv += ["float32", "--device", "cpu", "--warmup", "0", "--max-new-tokens", "8"]
    (tmp_path / "taken.py").write_text(MINE.replace("times", "seed"))
    assert run([*argv, "--methods", f"{tmp_path}/taken.py:Last"]) == 2
    assert "the option 'seed' of Last is a flag of this command" in capsys.readouterr().err
    (tmp_path / "twin.py").write_text(MINE)
    assert run([*argv, "--methods", f"{name},{tmp_path}/twin.py:Last"]) == 2
    assert "names Last twice" in capsys.readouterr().err
    assert run([*argv, "--methods", f"vanilla,{name}", "--times", "3"]) == 0
    meta = tmp_path / "data" / "mine" / "model_answer" / "x-Last.meta.json"
    assert json.loads(meta.read_text())["settings"]["times"] == 3
    for wrong, complaint in (
        (f"{file}:Nobody", "has no subclass of Drafter named 'Nobody'"),
        (f"{file}:Half", "Half does not define draft"),
        (f"{tmp_path}/broken.py:Last", "does not run: SyntaxError"),
        (f"{file}:NoDefault", "the argument 'size' of NoDefault.__init__ has no default"),
        (f"{file}:NoArgument", "the option 'size' of NoArgument is no argument"),
        (f"{file}:NoDict", "options of NoDict is no dict"),
    ):
        (tmp_path / "broken.py").write_text("def")
        assert sweep(folder, methods=wrong) == 2
        assert complaint in capsys.readouterr().err


def test_the_worked_example_runs_as_it_is_shown(
    recorded: Callable[..., tuple[int, Path]], tmp_path: Path
) -> None:
    page = Path(__file__).parents[1] / "docs" / "write-a-drafter.md"
    code = page.read_text().split("```python\n", 1)[1].split("```", 1)[0]
    file = tmp_path / "my_drafter.py"
    file.write_text(code)
    _, folder = recorded("--tree-rows", "0")
    out = tmp_path / "out.csv"
    flags = ["--grid", "length=2,10", "--csv", str(out)]
    assert sweep(folder, *flags, methods=f"vanilla,{file}:Echo") == 0
    with out.open(newline="") as csv_file:
        nodes = [float(row["mean_nodes"]) for row in csv.DictReader(csv_file)]
    assert 1 == nodes[0] < nodes[1] < nodes[2]


def test_grids_multiply_what_each_method_has() -> None:
    grid = parse_grid(["max_ngram_size=2,3,3", "draft-tree-capacity=8"])
    found = configurations("logitspec,logitspec@16,vanilla", grid)
    assert [c.title for c in found] == [
        "logitspec max_ngram_size=2 draft_tree_capacity=8",
        "logitspec max_ngram_size=3 draft_tree_capacity=8",
        "logitspec@16 max_ngram_size=2",
        "logitspec@16 max_ngram_size=3",
        "vanilla",
    ]
    assert dict(found[2].options)["draft_tree_capacity"] == 16
    assert isinstance(found[0].drafter(), LogitSpecDrafter)
    assert isinstance(find_method("pld"), DrafterMethod) and "pld" in METHODS


def test_ranks_by_hand() -> None:
    # The logits that choose 1 have the token after it, 2, at rank 1 and the one after that at 2.
    turn = made_up([1, 2, 3], [[1, 2, 3], [2, 9, 3], [3, 8, 8], [4, 8, 8]])
    cost = StepCost((1, 2), (1, 2), ((1.0, 1.0), (1.0, 1.0)))
    recording = Recording(
        Path(), {"top_k": 3}, [], [RecordedQuestion(1, "qa", [turn])], {(0, False): cost},
        np.zeros((0, 1), np.int32),
    )  # fmt: skip
    assert analyses.ranks(recording, 1).counts.tolist() == [0, 1, 1, 0]
    assert analyses.ranks(recording, 2).counts.tolist() == [0, 0, 1, 0]
    assert analyses.ranks(recording, 1).shares.tolist() == [0.0, 0.5, 1.0]
    assert analyses.ranks(recording, 1, "math_reasoning").counts.sum() == 0


def test_the_analyses_are_a_page_with_pictures(
    recorded: Callable[..., tuple[int, Path]], tmp_path: Path
) -> None:
    _, folder = recorded("--tree-rows", "0")
    page = tmp_path / "page.md"
    assert analyse(["--recording", str(folder), "--output", str(page)]) == 0
    text = page.read_text()
    assert "| neither (one node) | 1.00 |" in text
    for name in ("ranks", "knobs"):
        assert f"(page/{name}.png)" in text and (tmp_path / "page" / f"{name}.png").is_file()
    assert analyse(["--recording", str(tmp_path / "no"), "--output", str(page)]) == 2
