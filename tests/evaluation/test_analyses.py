"""Drafters in files, grids and analyses of recordings."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from evaluation.analyses import main as analyse
from evaluation.analysing.logitspec import PAPER, following, named
from evaluation.analysing.ranks import ranks
from evaluation.analysing.retrieval import coverage, outcomes
from evaluation.analysing.watching import right_nodes, watch
from evaluation.asking.methods import METHODS, DrafterMethod, find_method
from evaluation.recordings.format import RecordedQuestion, Recording, load_recording
from evaluation.recordings.sweeping import configurations, parse_grid
from evaluation.run import main as run
from model.logitspec import Drafter, DraftTree, LogitSpecDrafter, origins
from model.logitspec.sizing.step_cost import StepCost

from .test_replay import made_up, sweep
from .test_tables import write

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


def recording_of(output: list[int], rows: list[list[int]], category: str = "qa") -> Recording:
    cost = StepCost((1, 2), (1, 99), ((1.0, 1.0), (1.0, 1.0)))
    settings = {"top_k": len(rows[0]), "vocab_size": 100, "model": "m", "dtype": "d"}
    question = RecordedQuestion(1, category, [made_up(output, rows)])
    return Recording(Path(), settings, [], [question], {(0, False): cost})


def test_ranks_by_hand() -> None:
    # The logits that choose 1 have the token after it, 2, at rank 1 and the one after that at 2.
    recording = recording_of([1, 2, 3], [[1, 2, 3], [2, 9, 3], [3, 8, 8], [4, 8, 8]])
    assert ranks(recording, 1).counts.tolist() == [0, 1, 1, 0]
    assert ranks(recording, 2).counts.tolist() == [0, 0, 1, 0]
    assert ranks(recording, 1).shares.tolist() == [0.0, 0.5, 1.0]
    assert ranks(recording, 1, "math_reasoning").counts.sum() == 0


class Scripted(Drafter):
    """Drafts the branches it is given, one list of them a step; None among them: guessed."""

    capacity = 99

    def __init__(self, *steps: list[list[int]], guessed: int = 0) -> None:
        self.steps, self.guessed = iter(steps), guessed

    def reset(self, prompt_ids: Sequence[int], top_ids: Sequence[Sequence[int]] = ()) -> None:
        pass

    def draft(self, root: int, top_ids: Sequence[int]) -> DraftTree:
        tree = DraftTree(root, self.capacity)
        for branch in next(self.steps):
            tree.add_branch(branch)
        return tree

    def origins(self, tree: DraftTree) -> list[str]:
        known = [origins.NEXT, *[origins.RETRIEVED] * (len(tree) - 1)]
        return [origins.GUESSED if token == self.guessed else o
                for token, o in zip(tree.tokens, known, strict=True)]  # fmt: skip


ROWS = [[n + 1, 0, 0] for n in range(7)]  # of the answer 1 2 3 4 5 6


def test_right_nodes_are_those_whose_whole_path_is() -> None:
    tree = DraftTree.of([1, 9, 2, 3, 2, 3, 9], [0, 0, 0, 1, 0, 4, 4], 9)
    assert right_nodes(tree, [2, 3]) == {0, 2, 4, 5}
    assert right_nodes(tree, []) == {0}


def test_what_retrieval_finds_by_hand() -> None:
    recording = recording_of([1, 2, 3, 4, 5, 6], ROWS)
    # nothing; wrong; a guess alone is nothing; right
    steps = [[], [[9]], [[4]], [[6, 9]]]
    found = outcomes(recording, Scripted(*steps, guessed=4))
    assert found == {("qa", "nothing"): 2, ("qa", "wrong"): 1, ("qa", "right"): 1}
    # a right guess with a wrong token retrieved after it is wrong
    found = outcomes(recording, Scripted([[2, 9]], [[9, 4]], [], [], [], guessed=2))
    assert found == {("qa", "wrong"): 2, ("qa", "nothing"): 2}


def test_where_the_true_token_stands_by_hand() -> None:
    recording = recording_of([1, 2, 3, 4, 5, 6], ROWS)
    # third of the drafts below the root, where 9 is there twice; first; none, but deeper
    found = coverage(recording, Scripted([[9], [8], [9, 3], [2]], [[4], [8]], [[9, 6]], [[7]]))
    assert (found.places, found.steps) == ({3: 1, 1: 1}, 3)  # nothing follows the last step
    assert [found.share(place) for place in (1, 2, 3, None)] == [1 / 3, 1 / 3, 2 / 3, 2 / 3]


def test_rules_of_branch_length(recorded: Callable[..., tuple[int, Path]]) -> None:
    _, folder = recorded("--tree-rows", "0")
    recording = load_recording(folder)

    def trees(drafter: Drafter) -> list[list[int]]:
        found: list[list[int]] = []
        watch(recording, drafter, lambda _, tree, __: found.append(tree.parents))
        return found

    assert trees(following(PAPER)()) == trees(LogitSpecDrafter())
    assert trees(following(((4, 4),))()) != trees(LogitSpecDrafter())
    branches = [*following(())().branches(1, [1, 2, 3])]
    assert branches == [(None, []), (1, [2]), (2, [3])]
    assert named(PAPER) == "4 to rank 8, 3 to rank 32, then 1"
    assert named(()) == "1" and named(((10**6, 2),)) == "2"


def test_the_analyses_are_a_page_with_tables_and_pictures(
    recorded: Callable[..., tuple[int, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = recorded("--tree-rows", "0")
    page, notes = tmp_path / "page.md", tmp_path / "notes.md"
    notes.write_text("Read this first.")
    argv = ["--recording", str(folder), "--output", str(page), "--notes", str(notes)]
    assert analyse(argv) == 0
    text = page.read_text()
    assert "| neither (one node) | 1.00 |" in text and "Read this first." in text
    assert "| 4 to rank 8, 3 to rank 32, then 1 |" in text
    for name in ("ranks", "retrieval", "parts", "rules", "knobs", "coverage"):
        with (tmp_path / "page" / f"{name}.csv").open(newline="") as file:
            for row in csv.reader(file):
                assert f"| {' | '.join(row)} |" in text
    for name in ("ranks", "knobs", "coverage"):
        assert f"(page/{name}.png)" in text and (tmp_path / "page" / f"{name}.png").is_file()
    capsys.readouterr()
    for wrong, complaint in (
        (["--recording", str(tmp_path / "no")], "no"),
        ([], "nothing to analyse; give a --recording, --traces or both"),
        (["--recording", str(folder), "--methods", "nobody"], "no method 'nobody'"),
        (["--recording", str(folder), "--methods", "baseline"], "has no drafter"),
        (["--recording", str(folder), "--notes", str(page)], "--notes"),
        (["--traces", str(notes)], "is not JSON"),
    ):
        assert analyse([*wrong, "--output", str(page)]) == 2
        assert complaint in capsys.readouterr().err


def test_where_the_time_goes_is_read_from_traces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def trace(name: str, seconds: float, **phases: list[float]) -> str:
        path = write(tmp_path, name, name, seconds=seconds, step=3, count=1)
        record = json.loads(path.read_text())
        record["choices"][0] |= phases
        path.write_text(json.dumps(record) + "\n")
        return str(path)

    def split(verify: float) -> dict[str, list[float]]:
        phases = {key: [0.08] * 2 for key in ("prefill", "draft", "build", "accept", "commit")}
        phases |= {"verify": [verify, verify]}
        named = {f"{phase}_seconds": seconds for phase, seconds in phases.items()}
        return named | {"tree_sizes": [[1, 5, 5, 5], [1, 5, 5, 5]]}  # type: ignore[dict-item]

    page = tmp_path / "page.md"
    traces = [
        trace("baseline", 9.0),
        trace("vanilla", 1.0, **split(0.3)),
        trace("pld", 0.5, **split(0.1)),
    ]
    assert analyse(["--traces", *traces, "--output", str(page)]) == 0
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")][2:]
    # 8 steps of 3 tokens, in two turns of 0.5 and 1 s; 0.08 s of each is prefill
    assert (
        rows[0] == "| pld | 4.0 | 167.50 | 20.00 | 20.00 | 25.00 | 20.00 | 20.00 | 62.50 | 85.1 |"
    )
    assert rows[1].startswith("| vanilla | 4.0 | 355.00 |") and len(rows) == 2
    assert (tmp_path / "page" / "times.png").is_file()
    assert analyse(["--traces", traces[0], "--output", str(page)]) == 2
    assert "none splits its time into phases" in capsys.readouterr().err
