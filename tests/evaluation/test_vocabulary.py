"""Rows of the whole vocabulary, read from the model, and a run that begins with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.run import main as run
from evaluation.vocabulary import main
from model.logitspec import LlamaKVForCausalLM, load
from model.logitspec.listed import rows_of
from model.logitspec.prefill import last_logits
from model.logitspec.states import read_state
from model.logitspec.vocabulary import rows_after

from ..conftest import question


@pytest.mark.parametrize("before", [[7], [7, 8, 9]])
def test_rows_are_what_the_model_says_after_each_token(
    tiny: LlamaKVForCausalLM, before: list[int]
) -> None:
    tokens = [*range(20), 5]
    found = list(rows_after(tiny, before, tokens, best=4, nodes=8))
    assert [token for token, _ in found] == tokens
    for token, row in found:
        assert row == last_logits(tiny, [*before, token]).topk(4).indices.tolist()


def test_a_run_begins_with_them(
    chat_path: str, make_bench: Callable[..., Path], tmp_path: Path
) -> None:
    state, folder = tmp_path / "rows.npz", tmp_path / "answers"
    flags = ["--model-path", chat_path, "--dtype", "float32", "--device", "cpu"]
    assert main([*flags, "--output", str(state), "--tokens", "300"]) == 0
    rows = rows_of(read_state(state, "calibrated", None).arrays["greedy.rows"])
    assert [*rows] == [*range(300)]
    model = load(chat_path, dtype=torch.float32)
    newline = 198
    assert rows[9] == last_logits(model, [newline, 9]).topk(8).indices.tolist()
    make_bench(question(1, "Who?"))
    argv = [*flags, "--model-id", "x", "--bench-name", "mine", "--methods", "calibrated"]
    argv += ["--max-new-tokens", "8", "--answer-dir", str(folder)]
    assert run([*argv, "--evidence", str(state)]) == 0
    with np.load(folder / "x-calibrated.state.npz") as kept:
        assert {*range(300)} <= {*rows_of(kept["greedy.rows"])}


def test_what_it_refuses(
    chat_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for output, said in [
        (tmp_path / "rows", "name it *.npz, by which --evidence knows a state"),
        (tmp_path / "nowhere" / "rows.npz", "cannot write"),
    ]:
        assert main(["--model-path", chat_path, "--output", str(output)]) == 2
        assert said in capsys.readouterr().err


def test_a_tokenizer_without_line_breaks(
    chat_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("evaluation.vocabulary.BEFORE", "")
    assert main(["--model-path", chat_path, "--output", str(tmp_path / "rows.npz")]) == 2
    assert "a line break is no token" in capsys.readouterr().err
