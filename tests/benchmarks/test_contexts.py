"""benchmarks.contexts on a small random model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import contexts, report

from ..conftest import question


@pytest.fixture
def run(chat_path: str, make_bench: Callable[..., Path]) -> Callable[..., int]:
    make_bench(*(question(i, "Sum this up. " + f"{i} and on, " * 20) for i in range(4)))

    def call(*flags: str) -> int:
        argv = ["--model-path", chat_path, "--dtype", "float32", "--device", "cpu"]
        return contexts.main([*argv, "--benches", "mine", "--questions", "2", *flags])

    return call


def test_methods_decode_behind_prompts_that_are_read_once(
    run: Callable[..., int], tmp_path: Path
) -> None:
    file = tmp_path / "results" / "contexts.json"
    file.parent.mkdir()
    methods = "vanilla,pld,calibrated@8"
    assert run("--methods", methods, "--max-new-tokens", "40", "--json", str(file)) == 0
    rows = json.loads(file.read_text())["contexts"]
    assert [row["method"] for row in rows] == methods.split(",")
    assert all(row["equal"] == row["answers"] == 2 for row in rows)
    loop, _, ours = rows
    assert loop["speed"] == loop["mat"] == loop["nodes"] == 1
    assert ours["mat"] > 1 and 1 < ours["nodes"] <= 8
    phases = sum(ours[f"{name}_ms"] for name in ("draft", "verify", "accept", "commit"))
    assert phases == pytest.approx(ours["step_ms"])
    assert loop["cached_tokens"] < 0.5 * ours["prompt_tokens"]  # what all prompts begin with
    assert ours["cached_tokens"] > ours["prompt_tokens"] - 2
    page = tmp_path / "page.md"
    assert report.main([str(file.parent), "--output", str(page)]) == 0
    assert f"| calibrated@8 | {ours['mat']:.2f} | {ours['nodes']:.1f} |" in page.read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--methods", "pld"), "the first has to be vanilla"),
        (("--methods", "vanilla,baseline"), "baseline is transformers' own loop; leave it out"),
        (("--benches", "no-such"), "no-such"),
    ],
)
def test_bad_flags_end_in_a_sentence(
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    said: str,
) -> None:
    assert run(*flags) == 2
    assert said in capsys.readouterr().err
