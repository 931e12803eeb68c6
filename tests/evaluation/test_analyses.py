"""Drafters in files, grids and analyses of recordings."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation import analyses
from evaluation.analyses import main as analyse
from evaluation.asking.methods import METHODS, DrafterMethod, find_method
from evaluation.recordings.format import (
    RecordedQuestion,
    Recording,
)
from evaluation.recordings.sweeping import configurations, parse_grid
from evaluation.run import main as run
from model.logitspec import (
    LogitSpecDrafter,
)
from model.logitspec.sizing.step_cost import StepCost

from .test_replay import made_up, sweep

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
    page = Path(__file__).parents[2] / "docs" / "write-a-drafter.md"
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
