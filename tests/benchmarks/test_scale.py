"""The benchmark of growing contexts: its statistics by hand, each measurement on a tiny model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import drafting_cost, memory, scale
from benchmarks.drafting_cost import agreed
from benchmarks.measure import quartiles
from benchmarks.scale import attention_share, fitting, growth, main, windowed
from model.logitspec import DRAFTERS, DraftTree, InputError, LlamaKVForCausalLM, RacerDrafter, load
from model.logitspec.cpu.choice import KERNELS
from model.logitspec.cpu.layers import block_columns
from model.logitspec.kv_cache import CachePool
from model.logitspec.ledger import DecodingResult
from model.logitspec.sizing.measuring import interleaved

from ..conftest import PACKAGES, TINY, save_tiny

CPU = ["--dtype", "float32", "--device", "cpu"]


def run(out: Path, *argv: str) -> dict[str, Any]:
    assert main([*CPU, *argv, "--json", str(out)]) == 0
    content: dict[str, Any] = json.loads(out.read_text())
    return content


def test_quartiles() -> None:
    assert quartiles([4, 1, 2, 3, 5]) == {"low": 2, "median": 3, "high": 4}
    assert quartiles([1, 2], 1e3) == {"low": 1250, "median": 1500, "high": 1750}
    assert quartiles([7]) == {"low": 7, "median": 7, "high": 7}


def test_variants_take_turns_and_the_second_of_two_runs_is_measured() -> None:
    calls: list[str] = []
    variants: dict[str, Callable[[], object]] = {n: partial(calls.append, n) for n in "ab"}
    seconds = interleaved(variants, rounds=2)
    assert calls == ["a", "a", "b", "b"] * 2
    assert {name: len(measured) for name, measured in seconds.items()} == {"a": 2, "b": 2}


def test_windows_hold_the_steps_that_begin_in_them() -> None:
    result = DecodingResult(
        prompt_tokens=1,
        tokens=[0] * 9,
        accept_lengths=[1, 3, 1, 2, 1, 1],  # begin at 0, 1, 4, 5, 7, 8
        step_seconds=[0.010, 0.030, 0.050, 0.070, 0.060, 9.0],
    )
    found = windowed(result, 4)  # the last token begins a window that is not finished
    assert [(w["first"], w["steps"]) for w in found] == [(0, 2), (4, 3)]
    assert [w["median"] for w in found] == pytest.approx([20, 60])
    assert windowed(result, 100)[0]["steps"] == 6  # the only window is never left out


def test_growth_is_the_slope_of_a_line_through_the_windows() -> None:
    windows = [{"first": first, "median": ms} for first, ms in ((0, 1.0), (500, 2.0), (1000, 3.0))]
    assert growth(windows) == pytest.approx(2.0)  # milliseconds per 1000 tokens
    assert growth(windows[:1]) is None


def test_attention_is_what_a_step_costs_beyond_the_shortest_context() -> None:
    assert attention_share(40.0, 10.0) == 0.75
    assert attention_share(9.0, 10.0) == 0.0


def test_the_path_that_a_text_takes_through_a_tree() -> None:
    tree = DraftTree(5, 9)
    for token, parent in ((6, 0), (7, 0), (8, 1), (8, 2), (9, 4)):
        tree.add(token, parent)
    assert agreed(tree, [5, 7, 8, 9]) == [0, 2, 4, 5]
    assert agreed(tree, [5, 7, 8]) == [0, 2, 4]  # no further than the text
    assert agreed(tree, [5, 1, 8]) == [0]


def test_contexts_without_positions_are_named_and_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # a tree of 16 nodes reaches 2 deep: the last position behind 509 tokens is 511
    assert fitting([509, 100, 510, 8192], [1, 16], 512) == [100, 509]
    assert "left out, contexts of 510, 8192: the model has 512 positions" in capsys.readouterr().out
    with pytest.raises(InputError, match="no step of 3 positions fits behind a context of 600"):
        fitting([600], [16], 512)


def test_context(tiny_path: str, tmp_path: Path) -> None:
    content = run(
        tmp_path / "out.json", "--only", "context", "--model-path", tiny_path,
        "--contexts", "300", "20", "4000", "--nodes", "1", "7", "--rounds", "2",
    )  # fmt: skip
    assert content["settings"]["contexts"] == [300, 20, 4000]
    assert content["environment"]["versions"]["torch"] == torch.__version__
    rows = content["context"]
    assert [(r["context"], r["nodes"]) for r in rows] == [(20, 1), (20, 7), (300, 1), (300, 7)]
    assert all(0 < r["low"] <= r["median"] <= r["high"] for r in rows)
    assert [r["attention_share"] for r in rows[:2]] == [0, 0]
    first, last = rows[0]["median"], rows[2]["median"]
    assert rows[2]["attention_share"] == pytest.approx(max(0, 1 - first / last))
    # three layers, keys and values of two heads of 8 float32
    assert [r["cache_mib"] * 2**20 for r in rows] == [256 * 3 * 2 * 2 * 8 * 4] * 2 + [
        512 * 3 * 2 * 2 * 8 * 4
    ] * 2
    assert not {"output", "drafting"} & set(content)


def test_output(chat_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = run(
        tmp_path / "out.json", "--only", "output", "--model-path", chat_path,
        "--new-tokens", "90", "--window", "40", "--prompt", "Hello there",
    )  # fmt: skip
    vanilla, logitspec = content["output"]
    assert (vanilla["method"], logitspec["method"]) == ("vanilla", "logitspec")
    assert vanilla["new_tokens"] == vanilla["steps"] == logitspec["new_tokens"] == 90
    assert [(w["first"], w["steps"]) for w in vanilla["windows"]] == [(0, 40), (40, 40)]
    change = vanilla["windows"][1]["median"] - vanilla["windows"][0]["median"]
    assert vanilla["growth_ms_per_1000_tokens"] == pytest.approx(change * 25)
    for row in content["output"]:
        assert row["cache_capacity"] == 256
        assert not row["cache_reallocated"]
        explained = row["weights_mib"] + row["cache_mib"] + row["rest_mib"]
        assert row["held_mib"] == pytest.approx(explained)
        assert row["held_mib"] <= row["peak_mib"] + 1
    assert "the cache of 256 slots was not reallocated" in capsys.readouterr().out


def test_a_cache_that_moves_is_noticed(
    chat_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []

    def forgetful(model: LlamaKVForCausalLM, *args: Any, **options: Any) -> DecodingResult:
        kept.append(model.caches)  # keeps its addresses from being used again
        model.caches = CachePool()
        return decode(model, *args, **options)

    decode = scale.decode
    monkeypatch.setattr(scale, "decode", forgetful)
    content = run(
        tmp_path / "out.json", "--only", "output", "--model-path", chat_path, "--new-tokens", "3"
    )
    assert [row["cache_reallocated"] for row in content["output"]] == [True, True]


def test_what_is_measured_is_on_disk_when_the_next_measurement_fails(
    chat_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scale, "measure_context", interrupted)
    out = tmp_path / "out.json"
    argv = ["--only", "output,context", "--model-path", chat_path, "--new-tokens", "3"]
    assert main([*CPU, *argv, "--contexts", "9", "--json", str(out)]) == 130
    assert len(json.loads(out.read_text())["output"]) == 2


def test_drafting(tmp_path: Path) -> None:
    content = run(
        tmp_path / "out.json", "--only", "drafting", "--draft-contexts", "500", "50", "--steps", "9"
    )
    found = {(row["drafter"], row["context"]): row for row in content["drafting"]}
    assert {(name, c) for name in DRAFTERS if name not in PACKAGES for c in (50, 500)} <= set(found)
    for row in found.values():
        assert 0 < row["low"] <= row["median"] <= row["high"]
        assert 1 <= row["mean_accepted"] <= drafting_cost.MOST_ACCEPTED
    assert found["vanilla", 50]["mean_nodes"] == 1
    assert found["logitspec", 50]["mean_nodes"] == 64
    assert found["racer", 500]["mean_accepted"] > 1
    ratio = found["pld", 500]["median"] / found["pld", 50]["median"]
    assert found["pld", 500]["to_shortest"] == pytest.approx(ratio)
    assert found["pld", 50]["to_shortest"] == 1


def test_a_drafter_that_cannot_run_is_named_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "arctic_inference.suffix_decoding", None)
    content = run(
        tmp_path / "out.json", "--only", "drafting", "--draft-contexts", "20", "--steps", "2"
    )
    assert "suffix" not in {row["drafter"] for row in content["drafting"]}
    assert "left out: the method suffix needs arctic-inference" in capsys.readouterr().out


def test_the_made_up_text_repeats_itself_and_is_the_same_every_time() -> None:
    text = drafting_cost.BigramModel().text(2000)
    assert len(text) == 2000
    assert text == drafting_cost.BigramModel().text(2000)
    eights = [tuple(text[i : i + 8]) for i in range(len(text) - 7)]
    assert len(set(eights)) < 0.9 * len(eights)


def test_the_picture(tmp_path: Path, tiny_path: str) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out.png"
    argv = ["--only", "drafting,context", "--draft-contexts", "20", "40", "--steps", "2"]
    argv += ["--model-path", tiny_path, "--contexts", "9", "20", "--rounds", "1", "--nodes", "1"]
    assert main([*CPU, *argv, "--plot", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_picture_needs_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([*CPU, "--only", "drafting", "--plot", str(tmp_path / "x.png")]) == 2
    assert "plots need matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--only", "nothing"], "'nothing' is not some of context,output,drafting"),
        (["--contexts", "0"], "'0' is not a whole number of 1 or more"),
        (["--plot", "picture.jpg"], "'picture.jpg' is no FILE.png in a folder that exists"),
    ],
)
def test_bad_flags_are_refused(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(argv)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--model-path", "/nowhere"], "no model directory '/nowhere'"),
        (["--only", "drafting", "--json", "/nowhere/x.json"], "cannot write /nowhere/x.json"),
    ],
)
def test_bad_input_is_one_sentence(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*CPU, *argv]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_an_output_longer_than_the_model_is_refused(
    chat_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--only", "output", "--model-path", chat_path, "--new-tokens", "4000"]
    assert main([*CPU, *argv]) == 2
    assert "exceed the model's 512 positions" in capsys.readouterr().err


def wide_path(folder: Path) -> str:
    """A tiny model that all CPU kernels can run."""
    from transformers import LlamaConfig

    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    return save_tiny(folder, LlamaConfig(**TINY | sizes | {"intermediate_size": 64}))


@pytest.mark.parametrize("kernels", KERNELS)
def test_all_tensors_of_a_model_are_counted(kernels: str, tmp_path: Path) -> None:
    """Layers once, wherever the kernels put them; embedding and head apart, for they are not tied.

    The native kernels fill up rows to whole blocks: here the head's and the embedding's.
    """
    path = wide_path(tmp_path / "wide")
    try:
        model = load(path, dtype=torch.float32, cpu_kernels=kernels)
    except InputError as error:
        pytest.skip(str(error))
    layer = 128 * (128 + 2 * 64 + 128) + 3 * 128 * 64 + 2 * 128
    rows = 97
    if kernels == "native":
        rows = -(-97 // block_columns()) * block_columns()
    numbers = 3 * layer + 128 + 2 * rows * 128
    assert memory.weight_bytes(model) == 4 * numbers
    model.forward(
        torch.arange(5), torch.arange(5), model.new_cache(300), last_position=4
    )  # makes the rotary table, the native layers' workspace, the cache: none are weights
    assert memory.weight_bytes(model) == 4 * numbers


def test_what_the_process_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert memory.held("cpu") is memory.peak("cpu") is None
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t     300 kB\nVmRSS:\t     200 kB\n")
    assert (memory.held("cpu"), memory.peak("cpu")) == (200 << 10, 300 << 10)


@pytest.mark.skipif(not memory.STATUS.exists(), reason="needs /proc")
def test_the_peak_counts_from_where_it_was_reset() -> None:
    block = torch.ones(64 << 20, dtype=torch.uint8)
    high = memory.peak("cpu")
    del block
    memory.trim("cpu")
    if not memory.reset_peak("cpu"):
        pytest.skip("this system does not reset it")
    low = memory.peak("cpu")
    assert high is not None
    assert low is not None
    assert low < high - (48 << 20)


def test_racers_trie_remembers_no_more_in_a_longer_loop() -> None:
    """Drafting stays flat in memory as well: a text that only repeats itself adds nothing."""
    drafter = RacerDrafter()
    text = list(range(50)) * 40
    drafter.reset(text, [[0]] * len(text))
    trie = drafter._trie
    leaves = len(trie._leaves)
    trie.extend(text)
    assert len(trie._leaves) == leaves <= trie.size
