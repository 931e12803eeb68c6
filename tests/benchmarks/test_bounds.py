"""benchmarks.bounds over recordings of a small random model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bounds
from evaluation import record
from evaluation.recordings.format import RecordedTurn
from evaluation.recordings.replaying import RecordedRows, replay_turn
from model.logitspec.drafters.calibrated.growth import PATIENCE

from ..conftest import question


@pytest.fixture
def recording(chat_path: str, make_bench: Callable[..., Path], tmp_path: Path) -> Path:
    make_bench(*(question(i, f"Say {i} and {i}.", "Again?") for i in range(4)))
    folder = tmp_path / "recording"
    argv = ["--model-path", chat_path, "--dtype", "float32", "--device", "cpu"]
    argv += ["--bench-name", "mine", "--max-new-tokens", "60", "--output", str(folder)]
    assert record.main(argv) == 0
    return folder


def test_knowing_more_is_worth_more(recording: Path, tmp_path: Path) -> None:
    file = tmp_path / "bounds.json"
    argv = ["--recording", str(recording), "--capacities", "12", "6", "--json", str(file)]
    assert bounds.main(argv) == 0
    content = json.loads(file.read_text())
    rows = content["bounds"]
    assert [row["capacity"] for row in rows] == [12, 6]
    for row in rows:
        assert 1 < row["as_it_is"] <= row["knows"] <= row["capacity"]
        assert 0.9 * row["as_it_is"] < row["learnt_before"] <= 1.05 * row["knows"]
    named = {row["source"]: row["named"] for row in content["sources"]}
    assert 0 < max(share for name, share in named.items() if name != "any") <= named["any"] <= 1
    assert all(row["alone"] <= row["named"] for row in content["sources"])
    (row,) = content["hindsight"]
    assert all(0.2 < row[name] < 2 for name in ("of_each", "of_best"))
    assert row["best_nodes"] in bounds.TRIED


def test_what_knows_the_answer_takes_the_candidates_that_are_right() -> None:
    """Over a text that its n-grams often name, among others."""
    chance = np.random.default_rng(0)
    prompt, output = (chance.integers(0, 6, n).astype(np.int32) for n in (200, 100))
    best = chance.permuted(np.tile(np.arange(40, dtype=np.int32), (300, 1)), axis=1)
    turn = RecordedTurn(prompt, output, best, np.zeros((300, 40), np.float16), 0.0, 100)
    steps, counts = {}, {}
    for make in (bounds.Watched, bounds.Knowing):
        drafter = make(8)
        drafter.watched.truth = output.tolist()
        done = replay_turn(turn, drafter, RecordedRows(turn, drafter.node_top_k))
        steps[make], counts[make] = len(done.accept_lengths), drafter.watched.counts
    assert steps[bounds.Knowing] < 0.7 * steps[bounds.Watched]
    assert counts[bounds.Watched]["sought"] == 99  # all but the first, which is certain
    assert 30 < counts[bounds.Watched]["n-grams"] <= counts[bounds.Watched]["any"]


def test_what_knows_the_answer_has_no_patience() -> None:
    assert bounds.Watched(8).watched.patience == PATIENCE
    assert bounds.Knowing(8).watched.patience == 1


def test_a_recording_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bounds.main(["--recording", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
