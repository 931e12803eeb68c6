"""Rows of the whole vocabulary, read from the model, and a run that begins with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.run import main as run
from evaluation.vocabulary import main
from model.logitspec import LlamaKVForCausalLM, load
from model.logitspec.listed import rows_of, scored_of
from model.logitspec.prefill import last_logits
from model.logitspec.sampling import Sampling
from model.logitspec.states import read_state
from model.logitspec.vocabulary import rows_after

from ..conftest import question


@pytest.mark.parametrize("contexts", [[[7]], [[7, 8, 9]], [[7, 8, 9], [3]]])
def test_rows_are_what_the_model_says_after_each_token(
    tiny: LlamaKVForCausalLM, contexts: list[list[int]]
) -> None:
    tokens = [*range(20), 5]
    found = list(rows_after(tiny, contexts, tokens, best=4, nodes=8))
    assert [token for token, _ in found] == tokens
    for token, row in found:
        assert row == (mean_logits(tiny, contexts, token).topk(4).indices.tolist(), [])


def mean_logits(model: LlamaKVForCausalLM, contexts: list[list[int]], token: int) -> torch.Tensor:
    return torch.stack([last_logits(model, [*ids, token]) for ids in contexts]).mean(dim=0)


@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"min_p": 0.9}])
def test_rows_of_samples_have_the_log_probabilities_that_they_are_drawn_by(
    tiny: LlamaKVForCausalLM, filters: dict[str, Any]
) -> None:
    sampling = Sampling(0.7, **filters)
    contexts = [[7, 8], [9]]
    found = list(rows_after(tiny, contexts, range(20), 4, sampling, nodes=8))
    sizes = set()
    for token, (ids, logs) in found:
        logits = mean_logits(tiny, contexts, token)[None]
        kept = sampling.processors()(torch.tensor([[token]]), logits)[0].log_softmax(-1)
        count = min(4, int((kept > -torch.inf).sum()))
        assert ids == logits[0].topk(4).indices.tolist()
        if count < 4 or not filters:  # filters are followed as far as these tokens tell
            assert logs == pytest.approx(kept[ids].tolist(), abs=1e-5)
        sizes.add(count)
    wanted = {"top_k": sizes == {3}, "min_p": min(sizes) < 4}
    assert all(wanted[name] for name in filters) and (filters or sizes == {4})


def test_a_run_begins_with_them(
    chat_path: str, make_bench: Callable[..., Path], tmp_path: Path
) -> None:
    state, folder = tmp_path / "rows.npz", tmp_path / "answers"
    flags = ["--model-path", chat_path, "--dtype", "float32", "--device", "cpu"]
    assert main([*flags, "--output", str(state), "--tokens", "300"]) == 0
    rows = rows_of(read_state(state, "calibrated", None).arrays["greedy.rows"])
    assert [*rows] == [*range(300)]
    model = load(chat_path, dtype=torch.float32)
    contexts = [[198], [28], [357], [351]]  # of evaluation.vocabulary
    assert rows[9] == mean_logits(model, contexts, 9).topk(8).indices.tolist()
    make_bench(question(1, "Who?"))
    argv = [*flags, "--model-id", "x", "--bench-name", "mine", "--methods", "calibrated"]
    argv += ["--max-new-tokens", "8", "--answer-dir", str(folder)]
    assert run([*argv, "--evidence", str(state)]) == 0
    with np.load(folder / "x-calibrated.state.npz") as kept:
        assert {*range(300)} <= {*rows_of(kept["greedy.rows"])}


def test_a_run_of_samples_begins_with_theirs(
    chat_path: str, make_bench: Callable[..., Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    state, folder = tmp_path / "rows.npz", tmp_path / "answers"
    flags = ["--model-path", chat_path, "--dtype", "float32", "--device", "cpu"]
    sampling = ["--temperature", "0.9"]
    assert main([*flags, *sampling, "--output", str(state), "--tokens", "300"]) == 0
    arrays = read_state(state, "calibrated", None).arrays
    rows = scored_of(arrays["sampled.scored"], arrays["sampled.logs"])
    assert rows_of(arrays["sampled.rows"]) == rows_of(arrays["greedy.rows"])
    assert rows_of(arrays["greedy.rows"]) == {token: ids[:8] for token, (ids, _) in rows.items()}
    assert [*rows] == [*range(300)] and {len(ids) for ids, _ in rows.values()} == {64}
    make_bench(question(1, "Who?"))
    argv = [*flags, *sampling, "--model-id", "x", "--bench-name", "mine", "--methods", "calibrated"]
    argv += ["--max-new-tokens", "8", "--answer-dir", str(folder)]
    assert run([*argv, "--evidence", str(state)]) == 0
    with np.load(folder / "x-calibrated.state.npz") as kept:
        assert {*range(300)} <= {*scored_of(kept["sampled.scored"], kept["sampled.logs"])}
    other = [*argv, "--evidence", str(state), "--overwrite", "--top-p", "0.8"]
    assert run(other) == 2
    said = "rows.npz has rows for temperature 0.9, top_k 0, top_p 1.0, and samples are drawn with"
    assert f"{said} temperature 0.9, top_k 0, top_p 0.8; write" in capsys.readouterr().err
    assert main([*flags, "--output", str(state), "--tokens", "3"]) == 0
    assert run([*argv, "--evidence", str(state), "--overwrite"]) == 2
    assert "rows.npz has rows for greedy answers alone, and" in capsys.readouterr().err


def test_what_it_refuses(
    chat_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for output, said in [
        (tmp_path / "rows", "name it *.npz, by which --evidence knows a state"),
        (tmp_path / "nowhere" / "rows.npz", "cannot write"),
    ]:
        assert main(["--model-path", chat_path, "--output", str(output)]) == 2
        assert said in capsys.readouterr().err
    argv = ["--model-path", chat_path, "--output", str(tmp_path / "rows.npz"), "--top-k", "5"]
    assert main(argv) == 2
    assert "temperature 0 takes none" in capsys.readouterr().err


def test_a_tokenizer_that_drops_a_context(
    chat_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("evaluation.vocabulary.CONTEXTS", ("\n", ""))
    assert main(["--model-path", chat_path, "--output", str(tmp_path / "rows.npz")]) == 2
    assert "'' is no token" in capsys.readouterr().err
