"""evaluation.run on a small random model: several methods, one model, a trace each."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation.asking.engines import HFEngine, KVEngine, Models, transformers_twin
from evaluation.asking.methods import METHODS
from evaluation.asking.questions import Question
from evaluation.asking.runs import list_assignments
from evaluation.asking.settings import AnswerSettings, TargetSettings
from evaluation.asking.target import Target
from evaluation.equal import main as equal
from evaluation.run import main
from model.logitspec import Drafter, DraftTree, load
from model.logitspec.drafters import TokenRecyclingDrafter

from ..conftest import PACKAGES, question

Make = Callable[..., Path]
HERE = [name for name in METHODS if name not in PACKAGES or find_spec(PACKAGES[name])]


@pytest.fixture
def run(chat_path: str) -> Callable[..., int]:
    """run(methods, *flags): its exit status, on benchmark `mine` with a short generation."""

    def call(methods: str, *flags: str) -> int:
        argv = ["--model-path", chat_path, "--model-id", "x", "--bench-name", "mine"]
        argv += ["--max-new-tokens", "12", "--dtype", "float32", "--device", "cpu"]
        try:
            return main([*argv, "--warmup", "1", "--methods", methods, *flags])
        except SystemExit as exit_:
            return int(exit_.code or 0)

    return call


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_method_answers_alike(
    run: Callable[..., int],
    make_bench: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    make_bench(question(1, "Who?", "Why?"), *(question(i, f"Question {i}?") for i in range(2, 5)))
    out = tmp_path / "out"
    store = ["--datastore", request.getfixturevalue("chat_store")] if "rest" in HERE else []
    assert run(",".join(HERE), "--answer-dir", str(out), *store) == 0
    for name in HERE:
        trace = out / f"x-{name}.jsonl"
        assert equal([str(trace), str(out / "x-baseline.jsonl"), "--strict"]) == 0, name
        assert {record["model_id"] for record in lines(trace)} == {f"x-{name}"}
        meta = json.loads((out / f"x-{name}.meta.json").read_text())
        assert meta["settings"]["method"] == name
    said = capsys.readouterr().out
    assert f"{4 * len(HERE)} of {4 * len(HERE)} answers to give, into {out}" in said
    racer = json.loads((out / "x-racer.meta.json").read_text())["settings"]
    assert (racer["draft_tree_capacity"], racer["trie_nodes"]) == (64, 10_000)


def test_methods_take_turns_and_who_begins_rotates(
    run: Callable[..., int], make_bench: Make
) -> None:
    folder = make_bench(*(question(i, f"Question {i}?") for i in range(3)))
    assert run("vanilla,pld,logitspec") == 0
    answers = [
        (record["tstamp"], record["question_id"], name)
        for name in ("vanilla", "pld", "logitspec")
        for record in lines(folder / "model_answer" / f"x-{name}.jsonl")
    ]
    order = [(asked, name) for _, asked, name in sorted(answers)]
    assert order == [
        (0, "vanilla"), (0, "pld"), (0, "logitspec"),
        (1, "pld"), (1, "logitspec"), (1, "vanilla"),
        (2, "logitspec"), (2, "vanilla"), (2, "pld"),
    ]  # fmt: skip


def test_a_rerun_does_what_each_trace_lacks(
    run: Callable[..., int], make_bench: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_bench(*(question(i, f"Question {i}?") for i in range(4)))
    assert run("vanilla", "--question-stride", "2") == 0
    before = (folder / "model_answer" / "x-vanilla.jsonl").read_text()
    assert [r["question_id"] for r in lines(folder / "model_answer" / "x-vanilla.jsonl")] == [0, 2]
    capsys.readouterr()
    assert run("vanilla,pld", "--question-stride", "2") == 0
    assert "2 of 4 answers to give" in capsys.readouterr().out
    assert (folder / "model_answer" / "x-vanilla.jsonl").read_text() == before
    jobs = list_assignments(
        [Question(i, "qa", ("?",)) for i in range(3)], {"a": {0}, "b": {0, 1}, "c": set()}
    )
    assert [(q.question_id, names) for q, names in jobs] == [
        (0, ["c"]), (1, ["c", "a"]), (2, ["c", "a", "b"])
    ]  # fmt: skip


def test_flags_reach_the_methods_that_know_them(
    run: Callable[..., int], make_bench: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_bench(question(1))
    assert run("vanilla,pld,logitspec,recycling", "--draft_tree_capacity", "9", "--merge") == 0
    said = capsys.readouterr().out
    assert said.count("--draft-tree-capacity is ignored by vanilla, pld\n") == 1
    assert said.count("--merge is ignored by vanilla, pld, recycling\n") == 1
    for name in ("logitspec", "recycling"):
        path = folder / "model_answer" / f"x-{name}.meta.json"
        assert json.loads(path.read_text())["settings"]["draft_tree_capacity"] == 9
        (record,) = lines(path.with_name(f"x-{name}.jsonl"))
        assert max(record["choices"][0]["tree_sizes"][0]) <= 9


def test_a_method_runs_beside_itself_at_other_capacities(
    run: Callable[..., int], make_bench: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_bench(question(1)) / "model_answer"
    methods = "recycling@3,recycling,calibrated@auto,calibrated"
    assert run(methods, "--draft-tree-capacity", "9") == 0
    for name, wanted, most in (
        ("recycling@3", 3, 3),
        ("recycling", 9, 9),
        ("calibrated@auto", "auto", 128),
        ("calibrated", 9, 9),
    ):
        settings = json.loads((folder / f"x-{name}.meta.json").read_text())["settings"]
        assert (settings["method"], settings["draft_tree_capacity"]) == (name, wanted)
        (record,) = lines(folder / f"x-{name}.jsonl")
        assert max(record["choices"][0]["tree_sizes"][0]) <= most
    capsys.readouterr()
    assert run("recycling,logitspec", "--draft-tree-capacity", "auto", "--overwrite") == 0
    assert "--draft-tree-capacity auto is ignored by recycling\n" in capsys.readouterr().out


def test_a_script_refuses_what_its_method_cannot_do(
    chat_path: str, make_bench: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    from evaluation import inference_racer

    make_bench(question(1))
    argv = ["--model-path", chat_path, "--model-id", "x", "--bench-name", "mine"]
    assert inference_racer.main([*argv, "--draft-tree-capacity", "auto"]) == 2
    assert "--draft-tree-capacity auto means nothing to racer" in capsys.readouterr().err


def test_the_list_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--list"])
    assert done.value.code == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(METHODS)
    assert all(len(line.split()) > 3 and line.endswith(".") for line in listed)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_script_with_its_flags(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        import_module(f"evaluation.inference_{name}").main(["--help"])
    assert done.value.code == 0
    said = capsys.readouterr().out
    for option in METHODS[name].options:
        assert option.flag in said


def test_a_script_takes_its_own_flags_only(
    chat_path: str, make_bench: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    from evaluation import inference_pld

    folder = make_bench(question(1))
    argv = ["--model-path", chat_path, "--model-id", "x", "--bench-name", "mine", "--warmup", "0",
            "--max-new-tokens", "5", "--dtype", "float32"]  # fmt: skip
    assert inference_pld.main([*argv, "--num_pred_tokens", "4"]) == 0
    settings = json.loads((folder / "model_answer" / "x.meta.json").read_text())["settings"]
    assert (settings["num_pred_tokens"], settings["max_ngram_size"]) == (4, 3)
    with pytest.raises(SystemExit):
        inference_pld.main([*argv, "--draft-tree-capacity", "4"])
    assert "unrecognized arguments: --draft-tree-capacity" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("methods", "flags", "message"),
    [
        ("vanilla,nonsense", [], "no method 'nonsense'; there are baseline, hf_pld, calibrated"),
        (",", [], "--methods ',' names none"),
        ("pld,pld", [], "--methods 'pld,pld' names pld twice"),
        ("vanilla", ["--breadth", "3"], "--breadth means nothing to vanilla"),
        ("racer", ["--trie-nodes", "50"], "trie_nodes is 50; with a trie_depth of 10 give 110"),
        ("suffix", ["--min-token-prob", "x"], "'x' is not a number from 0 to 4096"),
        ("suffix", ["--max-spec-factor", "1e30"], "'1e30' is not a number from 0 to 4096"),
        ("pld", ["--num-pred-tokens", "1000000000"], "is not a whole number from 1 to 4096"),
        ("pld", ["--question-stride", "0"], "'0' is not a whole number of 1 or more"),
        ("pld", ["--answer-dir", "/dev/null/x"], "or --answer-dir of evaluation.run)"),
        ("vanilla@4", [], "'vanilla@4': vanilla has no draft-tree capacity; leave @4 out"),
        ("racer@auto", [], "'racer@auto': racer cannot size its trees itself; give a number"),
        ("racer@no", [], "'racer@no': the capacity 'no' is not a whole number from 1 to 4096"),
        ("racer@0", [], "'racer@0': the capacity '0' is not a whole number"),
        ("racer", ["--draft-tree-capacity", "auto"], "--draft-tree-capacity auto means nothing to"),
        ("racer", ["--draft-tree-capacity", "many"], "'many' is not a whole number from 1 to 4096"),
        ("vanilla,rest", [], "the method rest drafts from a datastore and is given none; name one"),
        ("rest,pld", ["--datastore", "/no"], "no datastore /no: No such file or directory; `pyth"),
        ("rest", ["--datastore", "/tmp"], "/tmp is no datastore, or not a whole one (OSError"),
        ("pld", ["--datastore", "x"], "--datastore means nothing to pld"),
        ("rest", ["--max-hits", "0"], "'0' is not a whole number of 1 or more"),
        ("pld", ["--answer-file", "x"], "unrecognized arguments: --answer-file"),
    ],
)
def test_bad_input(
    methods: str,
    flags: list[str],
    message: str,
    run: Callable[..., int],
    make_bench: Make,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_bench(question(1))
    assert run(methods, *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    # the first test of a process also finds the fastest kernels, and says so
    assert len([line for line in error.splitlines() if not line.startswith("measuring ")]) == 1


def test_the_suffix_method_without_its_package_is_refused(
    run: Callable[..., int],
    make_bench: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = make_bench(question(1))
    monkeypatch.setitem(sys.modules, "arctic_inference.suffix_decoding", None)
    assert run("pld,suffix") == 2
    assert "pip install -e '.[suffix]'" in capsys.readouterr().err
    assert not (folder / "model_answer").exists()  # refused before anything was begun


def target(path: str) -> Target:
    return Target.resolve(TargetSettings(path, device="cpu", dtype="float32"))


def test_transformers_runs_on_our_tensors(default_model_path: str) -> None:
    """The real model, in bfloat16: the same storage and bit for bit the same answers."""
    ours = load(default_model_path, dtype=torch.bfloat16, keep_weights=True)
    twin = transformers_twin(ours)
    layer, own = twin.model.layers[3], ours.model.layers[3]
    assert layer.self_attn.k_proj.weight.data_ptr() == own.self_attn.k_proj.weight.data_ptr()
    assert twin.lm_head.weight.data_ptr() == ours.model.embed_tokens.weight.data_ptr()
    assert not any(parameter.is_meta for parameter in twin.parameters())
    models = [Models(target(default_model_path), shared=shared) for shared in (False, True)]
    models[1].kv = ours
    models[0].target.dtype = torch.bfloat16
    answers = [HFEngine(m).generate([*range(40, 90)], 12) for m in models]
    assert models[1].hf is not models[0].hf
    assert answers[0].tokens == answers[1].tokens
    ids = torch.tensor([[*range(40, 90)]])
    with torch.inference_mode():
        assert torch.equal(models[0].hf(ids).logits, models[1].hf(ids).logits)
    assert models[1].hf.config._attn_implementation == models[0].hf.config._attn_implementation


@pytest.mark.parametrize("core", ["native", "python"])
def test_the_sidecar_says_which_core_drafted(
    chat_path: str, tmp_path: Path, make_bench: Any, core: str
) -> None:
    make_bench(question(1))
    argv = ["--methods", "calibrated,pld", "--model-path", chat_path, "--model-id", "m"]
    argv += ["--bench-name", "mine", "--device", "cpu", "--max-new-tokens", "5", "--warmup", "0"]
    argv += [
        "--conv-template",
        "tokenizer",
        "--drafting-core",
        core,
        "--answer-dir",
        str(tmp_path),
    ]
    assert main(argv) == 0
    made = {
        name: json.loads((tmp_path / f"m-{name}.meta.json").read_text())["environments"][0]
        for name in ("calibrated", "pld")
    }
    assert made["calibrated"]["drafting_core"] == core
    assert "drafting_core" not in made["pld"]


def test_transformers_prompt_lookup_counts_its_steps(default_model_path: str) -> None:
    models = Models(target(default_model_path), shared=False)
    text = [*range(40, 60)] * 4
    plain = HFEngine(models).generate(text, 24)
    looked = HFEngine(models, prompt_lookup_num_tokens=5).generate(text, 24)
    assert looked.tokens == plain.tokens
    assert plain.accept_lengths == [1] * 24
    assert sum(looked.accept_lengths) == 24
    assert len(looked.step_seconds) == looked.steps < 12
    assert max(looked.accept_lengths) <= 6


def test_warming_up_teaches_a_method_nothing(chat_path: str, make_bench: Make) -> None:
    from evaluation.asking.answering import Answerer

    make_bench(question(1))
    resolved = target(chat_path)
    drafter = TokenRecyclingDrafter()
    settings = AnswerSettings(max_new_tokens=20)
    answerer = Answerer(resolved, KVEngine(Models(resolved, shared=False), drafter), "x", settings)
    answerer.warm_up(Question(1, "qa", ("Who?",)), times=2)
    assert not drafter._successors
    answerer.engine.generate([5, 6], 20)
    assert drafter._successors


def test_a_drafter_of_ones_own_is_a_method_with_flags() -> None:
    """What base.py promises: name, summary and flags are read off the class."""
    from evaluation.asking.methods import DrafterMethod

    class Mine(Drafter):
        """Drafts one number.

        And more to say.
        """

        name = "mine"
        options = {"number": "which one", "often": "how often"}  # noqa: RUF012

        def __init__(self, number: int = 7, often: float = 0.5, *, hidden: int = 1) -> None:
            self.number = number

        def reset(self, prompt_ids: Any, top_ids: Any = ()) -> None: ...

        def draft(self, root: int, top_ids: Any) -> DraftTree:
            return DraftTree(root, 1)

    method = DrafterMethod(Mine)
    assert (method.name, method.summary) == ("mine", "Drafts one number.")
    assert [(o.flag, o.default) for o in method.options] == [("--number", 7), ("--often", 0.5)]
    assert method.settings({"number": 3, "other": 1}) == {"number": 3, "often": 0.5}
