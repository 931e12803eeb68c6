"""The benchmark of each change: all its variants do the same work, its ratios by hand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from benchmarks import changes
from benchmarks.changes import Change, compare, main
from model.logitspec import LlamaKVForCausalLM, load
from model.logitspec.kernels import why_not
from model.logitspec.step_cost import wide_tree

from .conftest import TINY, save_tiny

# Runs on all kernels, with more than two whole segments of logits, and query heads that share keys
SIZES = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1,
         "intermediate_size": 64, "vocab_size": 2500}  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("wide") / "wide", LlamaConfig(**TINY | SIZES))


@pytest.fixture(scope="module")
def model(path: str) -> LlamaKVForCausalLM:
    return load(path, dtype=torch.float32, cpu_kernels="plain")


def test_the_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"old": [0.4, 0.8, 1.2], "new": [0.4, 0.4, 0.4], "newest": [0.1, 0.1, 0.1]}
    asked: list[tuple[Mapping[str, Any], int]] = []

    def interleaved(variants: Mapping[str, Any], rounds: int) -> dict[str, list[float]]:
        asked.append((variants, rounds))
        return seconds

    monkeypatch.setattr(changes, "interleaved", interleaved)
    change = Change("work", {name: lambda: None for name in seconds}, times=4)
    old, new, newest = compare(change, 3)
    assert asked == [(change.variants, 3)]
    assert old == {"work": "work", "variant": "old", "low": pytest.approx(150),
                   "median": pytest.approx(200), "high": pytest.approx(250),
                   "gain": 1, "gain_in_all": 1}  # fmt: skip
    assert (new["gain"], new["gain_in_all"]) == (pytest.approx(2), pytest.approx(2))
    assert (newest["gain"], newest["gain_in_all"]) == (pytest.approx(4), pytest.approx(8))


@pytest.mark.parametrize("rows", [1, 5])
def test_attention_is_the_same_in_every_variant(model: LlamaKVForCausalLM, rows: int) -> None:
    with torch.inference_mode():
        layer = model.layers[0].self_attn
        q = changes.noise(model, rows, layer.heads, layer.head_dim)
        keys, values = changes.noise(model, 2, layer.kv_heads, 9 + rows, layer.head_dim)
        mask = None
        if rows > 1:
            mask = model.additive_mask(torch.from_numpy(wide_tree(rows).ancestor_mask()), 9)
        done = [
            attend(layer, q, mask, keys, values)
            for attend in (changes.grouped, changes.folded, changes.multiplied)
        ]
    scores = torch.einsum("nhd,sd->hns", q, keys[0]) / layer.head_dim**0.5
    scores = scores if mask is None else scores + mask[:rows]
    expected = torch.einsum("hns,sd->nhd", scores.softmax(-1), values[0]).reshape(rows, -1)
    for out in done:
        torch.testing.assert_close(out, expected)


def test_products_are_the_same_and_leave_the_model_as_it_was(
    path: str, model: LlamaKVForCausalLM
) -> None:
    models = changes.load_models(path, torch.float32)
    with torch.inference_mode():
        change = changes.products({**models, "plain": model}, 3)
        separate = change.variants["separate"]()
        fused = change.variants["fused"]()
        head = changes.noise(model, 3, model.config.hidden_size)
        for lay_out in (changes.packed, changes.native):
            if lay_out.__name__ in models:
                assert lay_out.__name__ in change.variants
                torch.testing.assert_close(lay_out(model.head)(head), model.head(head))
    assert isinstance(separate, list)
    assert isinstance(fused, list)
    assert len(separate) == 3 * 7 + 1
    assert len(fused) == 3 * 4 + 1
    torch.testing.assert_close(torch.cat(separate[:3], dim=-1), fused[0])
    assert model.head.product is None


def test_every_change_is_measured(path: str, tmp_path: Path, capfd: Any) -> None:
    out = tmp_path / "out.json"
    argv = ["--model-path", path, "--dtypes", "float32", "--rows", "1", "4"]
    assert main([*argv, "--contexts", "30", "--rounds", "2", "--json", str(out)]) == 0
    content = json.loads(out.read_text())
    assert content["settings"]["rows"] == [1, 4]
    assert "torch" in content["environment"]["versions"]
    names = ("packed", "native")
    there = [n for n in names if not why_not(n, LlamaConfig(**TINY | SIZES), torch.float32)]
    expected = {
        "matrix products of a forward": ["separate", "fused", *there],
        "attention of a layer, context 30":
            ["SDPA, enable_gqa", "heads as rows, SDPA", "… matmuls"],
        "best token of each row": ["argmax", "max", *there[1:]],
        "best 8 of each row": ["topk", *there[1:]],
        "a whole step, context 256": ["plain", *there],
    }  # fmt: skip
    found = {
        key: [row["variant"] for row in rows]
        for key, rows in itertools.groupby(
            content["changes"], key=lambda row: (row["rows"], row["work"])
        )
    }
    assert found == {(n, work): v for n in (1, 4) for work, v in expected.items()}
    assert all(0 < row["low"] <= row["median"] <= row["high"] for row in content["changes"])
    assert {row["dtype"] for row in content["changes"]} == {"float32"}
    assert len(capfd.readouterr().out.splitlines()) >= 2 + len(content["changes"])


def test_kernels_that_do_not_run_are_named_and_left_out(
    tiny_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "native" not in changes.load_models(tiny_path, torch.float32)
    said = capsys.readouterr().out
    assert "left out, the native kernels: the hidden size 32 is no multiple of 64" in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--model-path", "/nowhere"], "no model directory '/nowhere'"),
        (["--dtypes", "float32", "float3"], "dtype 'float3' is not known"),
        (["--json", "/nowhere/x.json"], "cannot write /nowhere/x.json"),
        (["--contexts", "510"], "context of 510 and 16 rows"),
    ],
)
def test_bad_input_is_one_sentence(
    argv: list[str], said: str, path: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model-path", path, "--rows", "16", "--contexts", "30", *argv]) == 2
    error = capfd.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_no_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["--rounds", "0"])
    assert refused.value.code == 2
    assert "'0' is not a whole number of 1 or more" in capsys.readouterr().err
