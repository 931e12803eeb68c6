"""The cost of a step: its limits by hand, its outputs, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from benchmarks import machine, step_cost
from model.logitspec import LlamaKVForCausalLM
from model.logitspec.fastest import choose_kernels
from model.logitspec.sizing.measuring import wide_tree

from ..conftest import TINY

LAYERS, HEAD = 3 * (32 * (4 + 2 + 2) * 8 + 32 * 32 + 3 * 32 * 48), 32 * 97  # weights of TINY


def test_a_steps_work_by_hand(tiny: LlamaKVForCausalLM) -> None:
    work = machine.Work.of(tiny, context=10, nodes=3)
    assert work.bytes_read == 8 * (LAYERS + HEAD + 10 * 3 * 2 * 2 * 8)
    # a product and a sum for each weight, and for each query, key and dimension, twice
    assert work.flops == 2 * (3 * LAYERS + HEAD) + 3 * (4 * 3 * 4 * 8 * (10 + 3))
    stored = machine.Work.of(tiny, context=10, nodes=3, stored=0.5)  # the cache is as before
    assert work.bytes_read - stored.bytes_read == 7.5 * (LAYERS + HEAD)


def test_a_prompts_work_by_hand(tiny: LlamaKVForCausalLM) -> None:
    work = machine.Work.of_prompt(tiny, 5)
    assert work.bytes_read == 8 * (LAYERS + HEAD)
    assert work.flops == 2 * (5 * LAYERS + HEAD) + 4 * 3 * 4 * 8 * (1 + 2 + 3 + 4 + 5)


def test_bytes_of_a_weight_are_those_of_the_file(tmp_path: Path, tiny_path: str) -> None:
    file = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tensor("one", np.zeros((8, 64), dtype=np.float16))
    writer.add_tensor("other", np.zeros((8, 64), dtype=np.float32))
    writer.add_tensor("norm", np.zeros(9999, dtype=np.float32))
    for write in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{write}_to_file")()
    writer.close()
    assert machine.stored_bytes(str(file), LlamaConfig(**TINY)) == 3.0
    assert machine.stored_bytes(tiny_path, LlamaConfig(**TINY, dtype="bfloat16")) == 2.0


def test_the_limits_by_hand() -> None:
    work = machine.Work(bytes_read=3e6, flops=8e6)
    best = machine.Machine(1e9, 1e9).better(machine.Machine(5e8, 2e9))
    assert best == machine.Machine(1e9, 2e9)
    assert best.limits(work) == {"reading_ms": 3.0, "arithmetic_ms": 4.0}


def test_the_distance_is_to_the_nearer_limit(tiny: LlamaKVForCausalLM) -> None:
    best, rows = step_cost.measure({"plain": tiny}, context=10, nodes=[1, 3], rounds=1)
    assert [row["nodes"] for row in rows] == [1, 3]
    assert rows[1]["over_one"] == rows[1]["median"] / rows[0]["median"]
    for row in rows:
        nearer = max(best.limits(machine.Work.of(tiny, 10, row["nodes"])).values())
        assert row["over_limit"] == row["median"] / nearer


def test_the_tree_has_the_size_asked_for() -> None:
    tree = wide_tree(14)
    assert len(tree) == 14
    assert tree.parents == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3]


def test_every_tree_size_is_measured(
    tiny_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model-path", tiny_path, "--device", "cpu", "--context", "30", "40", "--rounds", "2"]
    files = ["--json", str(tmp_path / "c.json"), "--plot", str(tmp_path / "c.png")]
    assert step_cost.main([*argv, "--dtype", "float32", "float64", "--nodes", "7", *files]) == 0
    assert "x limit" in capsys.readouterr().out
    written = json.loads((tmp_path / "c.json").read_text())
    shown = [(row["dtype"], row["context"], row["nodes"]) for row in written["steps"]]
    assert shown == [(d, c, n) for d in ("float32", "float64") for c in (30, 40) for n in (1, 7)]
    assert all(row["low"] <= row["median"] <= row["high"] for row in written["steps"])
    made = [row["made"] for row in written["machine"]]
    assert made[2:] == ["plain kernels"] * 2  # one of each context
    assert made[0] == made[1] and made[0] in ("packed kernels", "plain kernels")  # what is faster
    assert written["machine"][0]["read_bytes_per_second"] > 1e8
    assert (tmp_path / "c.png").stat().st_size > 5000


def test_kernels_take_turns_and_read_prompts(
    tiny_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model-path", tiny_path, "--device", "cpu", "--context", "30", "--rounds", "3"]
    argv += ["--dtype", "float32", "--nodes", "2", "--cpu-kernels", "packed", "plain"]
    assert step_cost.main([*argv, "--prompt", "20", "--json", str(tmp_path / "c.json")]) == 0
    written = json.loads((tmp_path / "c.json").read_text())
    shown = [(row["kernels"], row["nodes"]) for row in written["steps"]]
    assert shown == [("packed", 1), ("plain", 1), ("packed", 2), ("plain", 2)]
    assert [(row["kernels"], row["tokens"]) for row in written["prompts"]] == [
        ("packed", 20), ("plain", 20),
    ]  # fmt: skip
    packed, plain = (row["median"] for row in written["steps"][2:])
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("30           2"))
    assert f"{packed:.2f}" in line and f"{packed / plain:.2f}" in line


def test_random_weights_need_no_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(step_cost.SHAPES, "tiny", LlamaConfig(**TINY, tie_word_embeddings=True))
    argv = ["--random-weights", "tiny", "--dtype", "bfloat16", "--device", "cpu"]
    assert step_cost.main([*argv, "--context", "8", "--nodes", "2", "--rounds", "1"]) == 0
    kernels = choose_kernels(LlamaConfig(**TINY), torch.bfloat16, "cpu").name
    assert f"tiny, bfloat16, cpu, {kernels} kernels" in capsys.readouterr().out
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
