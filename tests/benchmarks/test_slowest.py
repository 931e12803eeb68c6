"""The slowest questions against the one-node loop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import slowest
from evaluation.traces.comparing import Trace


def test_a_question_counts_as_the_median_of_its_rounds(
    chat_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model-path", chat_path, "--model-id", "m", "--answer-dir", str(tmp_path)]
    argv += ["--bench-name", "quick", "--question-end", "3", "--max-new-tokens", "6"]
    argv += ["--methods", "pld", "--rounds", "3", "--warmup", "0", "--dtype", "float32"]
    assert slowest.main([*argv, "--json", str(tmp_path / "s.json")]) == 0
    pld, again = json.loads((tmp_path / "s.json").read_text())["methods"]
    ratios = []
    for number in range(3):
        mine, its = (Trace.read(tmp_path / f"m-{number}-{n}.jsonl") for n in ("pld", "vanilla"))
        ratios.append(mine.speeds() / its.speeds())
    found = np.median(ratios, axis=0)
    assert len(found) == 3
    assert pld["ratios"] == pytest.approx(found.tolist(), abs=1e-3)
    assert pld["worst"] == pytest.approx(found.min())
    assert pld["slowest"] == pytest.approx(np.percentile(found, 5))
    assert (pld["method"], again["method"], again["mat"]) == ("pld", "vanilla, again", 1.0)
    assert (tmp_path / "m-2-vanilla,again.jsonl").exists()
    first = [json.loads((tmp_path / f"m-{i}-{n}.jsonl").read_text().splitlines()[0])["tstamp"]
             for i in range(3) for n in ("vanilla", "pld", "vanilla,again")]  # fmt: skip
    assert first == sorted(first)  # round by round
    assert slowest.main([*argv[:-6], "--rounds", "1", *argv[-4:], "--question-end", "2"]) == 2
    assert "slowest 5 %" in capsys.readouterr().out


def test_bad_input_is_one_sentence(
    chat_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model-path", chat_path, "--model-id", "m", "--answer-dir", str(tmp_path)]
    for methods, problem in ((",", "names none"), ("vanilla", "names vanilla twice")):
        assert slowest.main([*argv, "--bench-name", "quick", "--methods", methods]) == 2
        assert problem in capsys.readouterr().err
