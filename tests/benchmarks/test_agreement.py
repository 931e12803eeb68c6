"""Answers beside those of the same methods made otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import agreement
from evaluation import run
from evaluation.traces.comparing import Trace


@pytest.fixture(scope="module")
def traces(chat_path: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Of vanilla and pld, by dtype."""
    folder = tmp_path_factory.mktemp("traces")
    found = {}
    for dtype in ("float64", "bfloat16"):
        argv = ["--model-path", chat_path, "--model-id", dtype, "--methods", "vanilla,pld"]
        argv += ["--bench-name", "quick", "--question-end", "3", "--max-new-tokens", "24"]
        argv += ["--answer-dir", str(folder), "--dtype", dtype, "--warmup", "0"]
        assert run.main(argv) == 0
        found[dtype] = [str(folder / f"{dtype}-{method}.jsonl") for method in ("vanilla", "pld")]
    return found


def ids(path: str) -> list[list[int]]:
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [turn for line in lines for turn in line["choices"][0]["output_ids"]]


def test_turns_that_part(traces: dict[str, list[str]], tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    argv = [*traces["bfloat16"], "--reference", *traces["float64"], "--json", str(file)]
    assert agreement.main(argv) == 0
    content = json.loads(file.read_text())
    assert content["reference"]["dtype"] == "float64"
    assert [row["method"] for row in content["traces"]] == ["vanilla", "pld"]
    for row, ours, theirs in zip(
        content["traces"], traces["bfloat16"], traces["float64"], strict=True
    ):
        pairs = list(zip(ids(ours), ids(theirs), strict=True))
        parted = [
            next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
            for a, b in pairs
            if a != b
        ]
        assert parted  # else the test shows nothing
        assert row["turns"] == len(pairs)
        assert row["equal"] == len(pairs) - len(parted)
        assert row["parts"] == pytest.approx(np.median(parted))
        assert row["dtype"] == "bfloat16"
        assert row["mat"] == Trace.read(Path(ours)).mat
        assert row["reference_mat"] == Trace.read(Path(theirs)).mat


def test_the_same_traces_agree(traces: dict[str, list[str]], tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    argv = [traces["float64"][1], "--reference", *traces["float64"], "--json", str(file)]
    assert agreement.main(argv) == 0
    (row,) = json.loads(file.read_text())["traces"]
    assert row["equal"] == row["turns"]
    assert row["same_lengths"] == row["questions"] == 3
    assert row["parts"] is None


def test_bad_input_is_one_sentence(
    traces: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vanilla, pld = traces["float64"]
    bare = tmp_path / "bare.jsonl"
    bare.write_bytes(Path(pld).read_bytes())
    for argv, problem in (
        ([pld, "--reference", vanilla], "no trace of pld"),
        ([pld, "--reference", vanilla, vanilla], "two traces of vanilla"),
        ([str(bare), "--reference", pld], "no sidecar that names its method"),
        ([pld, "--reference", str(bare), pld], "no sidecar that names its method"),
        ([pld, "--reference", pld, traces["bfloat16"][0]], "dtype is"),
        ([str(tmp_path / "none.jsonl"), "--reference", pld], "none.jsonl"),
    ):
        assert agreement.main(argv) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert problem in line
