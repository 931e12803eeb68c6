"""Recordings: what is refused of them, and what is measured in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation.recordings.costs import KINDS, load_step_costs
from evaluation.recordings.format import (
    RecordedQuestion,
    load_question,
    load_recording,
    question_file,
    save_question,
)
from model.logitspec import (
    InputError,
)

from .test_replay import made_up, sweep


def test_rows_wider_than_recorded_are_refused(
    recorded: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = recorded("--question-stride", "3")
    assert load_recording(folder).node_width == 16
    wider = ["--grid", "row_width=17"]
    assert sweep(folder, *wider, methods="calibrated") == 2
    assert "holds 16 of nodes off the answer" in capsys.readouterr().err


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
    assert content["rounds"] == 2  # before the first question, and when all were recorded
    path.write_text(json.dumps(content | {"rounds": 3}))
    before = path.read_text()
    (folder / "3.npz").unlink()
    assert recorded("--tree-rows", "0")[0] == 0
    assert path.read_text() == before  # three rounds are not replaced by two
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


def test_what_an_earlier_version_recorded_beside_the_questions_is_not_used(
    recorded: Callable[..., tuple[int, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = recorded("--question-stride", "3")
    assert sweep(folder, methods="calibrated") == 0
    assert "earlier version" not in capsys.readouterr().out
    np.savez_compressed(folder / "successors.npz", rows=np.zeros((60, 16), np.int32))
    assert sweep(folder, methods="calibrated,calibrated@auto") == 0
    said = capsys.readouterr().out
    assert said.count("successors.npz was recorded by an earlier version") == 1
