"""Runs that go on with what their methods had learnt, and runs that begin with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.run import main
from evaluation.traces.comparing import read_comparison
from model.logitspec import InputError, TokenRecyclingDrafter
from model.logitspec.states import HEAD, read_state, write_state

from ..conftest import question

Run = Callable[..., int]
QUESTIONS = [question(i, text) for i, text in enumerate(("Who?", "Why?", "Who is it?", "And why?"))]


@pytest.fixture
def run(chat_path: str, make_bench: Callable[..., Path], tmp_path: Path) -> Run:
    """run(folder, *flags): of vanilla, recycling and calibrated over QUESTIONS."""
    make_bench(*QUESTIONS)

    def call(folder: str, *flags: str, methods: str = "vanilla,recycling,calibrated") -> int:
        argv = ["--model-path", chat_path, "--model-id", "x", "--bench-name", "mine"]
        argv += ["--max-new-tokens", "30", "--dtype", "float32", "--device", "cpu"]
        argv += ["--warmup", "1", "--methods", methods, "--answer-dir", str(tmp_path / folder)]
        return main([*argv, *flags])

    return call


def accept_lengths(trace: Path) -> list[Any]:
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    return [line["choices"][0]["accept_lengths"] for line in lines]


@pytest.mark.parametrize("flags", [[], ["--temperature", "1"]])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    run: Run, tmp_path: Path, flags: list[str]
) -> None:
    assert run("whole", *flags) == 0
    assert run("parts", *flags, "--question-end", "2") == 0
    traces = [tmp_path / "parts" / f"x-{name}.jsonl" for name in ("recycling", "calibrated")]
    states = [trace.with_suffix(".state.npz") for trace in traces]
    assert all(state.is_file() for state in states)
    assert run("parts", *flags) == 0
    for trace in traces:
        assert accept_lengths(trace) == accept_lengths(tmp_path / "whole" / trace.name)
        meta = json.loads(trace.with_suffix(".meta.json").read_text())
        assert (meta["starts"], meta["restored"]) == ([0, 2], [2])
    assert not (tmp_path / "parts" / "x-vanilla.state.npz").exists()
    said = read_comparison([tmp_path / "parts" / "x-vanilla.jsonl", *traces]).cautions()
    assert [sentence for sentence in said if "gone on with" in sentence] == [
        "vanilla was stopped and gone on with after 2 answers; what a method keeps across "
        "questions was then lost."
    ]


def test_without_what_was_learnt_a_run_goes_on_cold_and_says_so(run: Run, tmp_path: Path) -> None:
    assert run("parts", "--question-end", "2") == 0
    trace = tmp_path / "parts" / "x-calibrated.jsonl"
    trace.with_suffix(".state.npz").unlink()
    assert run("parts", "--question-end", "3") == 0
    meta = json.loads(trace.with_suffix(".meta.json").read_text())
    assert (meta["starts"], meta["restored"]) == ([0, 2], [])
    lines = trace.read_text().splitlines(keepends=True)
    trace.write_text("".join(lines[:2]))  # the state is of three answers now
    assert run("parts", "--question-end", "3") == 0
    meta = json.loads(trace.with_suffix(".meta.json").read_text())
    assert (meta["starts"], meta["restored"]) == ([0, 2, 2], [])
    assert run("parts", "--overwrite", "--question-end", "1") == 0
    assert trace.with_name("x-calibrated.state.npz.bak").is_file()


def test_a_torn_state_stops_the_run(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("parts", "--question-end", "2") == 0
    state = tmp_path / "parts" / "x-calibrated.state.npz"
    state.write_bytes(state.read_bytes()[:200])
    assert run("parts") == 2
    said = capsys.readouterr().err
    assert f"{state} is no state, or a torn one; delete {state} to go on without" in said
    state.unlink()
    assert run("parts") == 0


def test_evidence_is_begun_with(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A state, traces and texts; the warm-up does not take it away."""
    assert run("cold") == 0
    trace = tmp_path / "cold" / "x-calibrated.jsonl"
    state = trace.with_suffix(".state.npz")
    text = tmp_path / "words.txt"
    text.write_text(json.loads(trace.read_text().splitlines()[0])["choices"][0]["turns"][0])
    cold = sum(map(len, accept_lengths(trace)))
    only = {"methods": "calibrated"}
    for name, files in (("state", [state]), ("trace", [trace]), ("all", [text, state, trace])):
        assert run(name, "--evidence", *map(str, files), **only) == 0
        own = tmp_path / name / "x-calibrated.jsonl"
        assert sum(map(len, accept_lengths(own))) < cold
        settings = json.loads(own.with_suffix(".meta.json").read_text())["settings"]
        assert len(settings["evidence"]) == len(files)
    capsys.readouterr()
    assert run("state", "--evidence", str(text), **only) == 2  # other evidence
    assert "was made with evidence" in capsys.readouterr().err
    assert run("new", "--evidence", str(trace)) == 0
    assert "--evidence is ignored by vanilla, recycling" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "methods", "said"),
    [
        (["rows.npz", "rows2.npz"], "calibrated", "are two states; give one"),
        (["a.npz"], "calibrated", "is no file; give a state (*.npz), traces or texts"),
        (["torn.npz"], "calibrated", "torn.npz is no state, or a torn one"),
        (["grades.npz"], "calibrated", "makes no sense, it may be damaged; it is of --evidence"),
        (["none.txt"], "calibrated", "is no file; give a state (*.npz), traces or texts"),
        (["x/x-calibrated.jsonl"], "calibrated", "x-calibrated.jsonl is written by this run"),
        (["none.txt"], "vanilla,pld", "--evidence means nothing to vanilla, pld; leave it out"),
        (["rows.npz"], "calibrated", "is what the method recycling learnt, and this is calibrated"),
    ],
)
def test_evidence_that_is_none_is_refused(
    run: Run,
    tmp_path: Path,
    files: list[str],
    methods: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("rows.npz", "rows2.npz"):
        with (tmp_path / name).open("wb") as file:
            write_state(file, "recycling", {"rows": np.empty(0, np.int64)}, None)
    with (tmp_path / "grades.npz").open("wb") as file:
        write_state(file, "calibrated", {"greedy.grades": np.array([3])}, None)
    (tmp_path / "torn.npz").write_bytes((tmp_path / "rows.npz").read_bytes()[:100])
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "x-calibrated.jsonl").write_text("")
    paths = [str(tmp_path / name) for name in files]
    assert run("x", "--evidence", *paths, methods=methods) == 2
    assert said in capsys.readouterr().err


def test_a_state_file_of_another_make_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    drafter = TokenRecyclingDrafter()

    def written(head: bytes | None = None) -> Path:
        with path.open("wb") as file:
            write_state(file, "recycling", {"rows": np.arange(0)}, "mine", after="a")
        if head is not None:
            np.savez(path, **{HEAD: np.frombuffer(head, np.uint8)})
        return path

    for tokenizer in ("mine", None):
        saved = read_state(written(), drafter.name, tokenizer)
        assert saved.head["after"] == "a" and saved.arrays.keys() == {"rows"}
        drafter.restore(saved.arrays)
    with pytest.raises(InputError, match="is what the method recycling learnt"):
        read_state(written(), "calibrated", "mine")
    for head, said in (
        (b'{"format": "logitspec state 9"}', "is a 'logitspec state 9', not a"),
        (b"{", "is no state, or a torn one"),
        (b"[1]", "is no state, or a torn one"),
    ):
        with pytest.raises(InputError, match=said):
            read_state(written(head), drafter.name, "mine")
    with pytest.raises(InputError, match="was learnt with another tokenizer"):
        read_state(written(), drafter.name, "yours")
    np.savez(path, **{HEAD: np.array([{}], dtype=object)})  # a pickle
    with pytest.raises(InputError, match="is no state, or a torn one"):
        read_state(path, drafter.name, None)
