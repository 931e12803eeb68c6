"""The cost of a step: its limits by hand, its outputs, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from benchmarks import step_cost
from model.logitspec import LlamaKVForCausalLM

from .conftest import TINY

MATRICES = 3 * (32 * (4 + 2 + 2) * 8 + 32 * 32 + 3 * 32 * 48) + 32 * 97  # weights of TINY


def test_a_steps_work_by_hand(tiny: LlamaKVForCausalLM) -> None:
    work = step_cost.Work.of(tiny, context=10, nodes=3)
    assert work.bytes_read == 8 * (MATRICES + 10 * 3 * 2 * 2 * 8)
    # a product and a sum for each weight, and for each query, key and dimension, twice
    assert work.flops == 2 * 3 * MATRICES + 3 * (4 * 3 * 4 * 8 * (10 + 3))


def test_the_distance_is_to_the_nearer_limit() -> None:
    cost = step_cost.StepCost("float32", 10, 3, 6.0, (5.0, 7.0), 2.0, 3.0, None)
    assert cost.distance == 2.0


@pytest.mark.parametrize(
    ("values", "expected"), [([4.0], (4, 4, 4)), ([1.0, 2.0, 3.0, 4.0, 9.0], (2, 3, 4))]
)
def test_quartiles(values: list[float], expected: tuple[float, ...]) -> None:
    assert step_cost.quartiles(values) == expected


def test_the_tree_has_the_size_asked_for() -> None:
    tree = step_cost.bushy_tree(14)
    assert len(tree) == 14
    assert tree.parents == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3]


def test_every_tree_size_is_measured(
    tiny_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model-path", tiny_path, "--device", "cpu", "--context", "30", "40", "--rounds", "2"]
    files = ["--json", str(tmp_path / "new" / "c.json"), "--plot", str(tmp_path / "c.png")]
    assert step_cost.main([*argv, "--dtype", "float32", "float64", "--nodes", "7", *files]) == 0
    out = capsys.readouterr().out
    assert "x limit" in out
    written = json.loads((tmp_path / "new" / "c.json").read_text())
    shown = [(c["dtype"], c["context"], c["nodes"]) for c in written["costs"]]
    assert shown == [(d, c, n) for d in ("float32", "float64") for c in (30, 40) for n in (1, 7)]
    assert all(c["median"] > 0 and c["distance"] > 0 for c in written["costs"])
    assert written["machine"]["float32"]["read_bytes_per_second"] > 1e8
    assert (tmp_path / "c.png").stat().st_size > 5000


def test_random_weights_need_no_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(step_cost.SHAPES, "tiny", LlamaConfig(**TINY, tie_word_embeddings=True))
    argv = ["--random-weights", "tiny", "--dtype", "bfloat16", "--device", "cpu"]
    assert step_cost.main([*argv, "--context", "8", "--nodes", "2", "--rounds", "1"]) == 0
    assert capsys.readouterr().out.startswith("tiny, torch.bfloat16, cpu, packed")
    model = step_cost.random_model("tiny", torch.float32, "cpu", "plain", "auto")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.float32


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--context", "600"], "a context of 600 and 64 nodes exceed the model's 512 positions"),
        (["--random-weights", "gpt"], "no shape 'gpt' for --random-weights; give llama-7b or"),
        (["--dtype", "int8"], "dtype 'int8' is not known"),
        (["--cpu-kernels", "fast"], "CPU kernels 'fast' are not known"),
        (["--cuda-graphs", "on"], "CUDA graphs need the whole model on one GPU, it is on cpu"),
        (["--json", "/dev/null/x.json"], "cannot write /dev/null/x.json"),
    ],
)
def test_bad_input_is_one_sentence(
    tiny_path: str, capsys: pytest.CaptureFixture[str], flags: list[str], problem: str
) -> None:
    argv = ["--model-path", tiny_path, "--device", "cpu", "--rounds", "1", "--context", "20"]
    assert step_cost.main([*argv, *flags]) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1
