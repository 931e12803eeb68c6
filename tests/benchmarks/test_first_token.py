"""Seconds to the first token, each in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import first_token


def test_every_method_is_clocked_in_a_new_process(
    tiny_path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model-path", tiny_path, "--dtype", "float32", "--cpu-kernels", "plain"]
    argv += ["--methods", "vanilla,pld", "--rounds", "1", "--prompt-tokens", "9"]
    assert first_token.main([*argv, "--json", str(tmp_path / "f.json")]) == 0
    content = json.loads((tmp_path / "f.json").read_text())
    vanilla, pld = content["methods"]
    assert (vanilla["method"], vanilla["more"], pld["method"]) == ("vanilla", 0.0, "pld")
    assert pld["more"] == pld["median"] - vanilla["median"]
    assert all(row["seconds"] > 0 and row["loading"] > 0 for row in content["runs"])
    assert len(content["runs"]) == 2
    assert "to the first token, s" in capsys.readouterr().out


def test_what_is_compiled_is_kept_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process finds the library of the first, and no measurement."""
    script = tmp_path / "python"
    script.write_text(
        '#!/bin/sh\nls "$XDG_CACHE_HOME/logitspec" | wc -l >&2\n'
        'touch "$XDG_CACHE_HOME/logitspec/a.so" "$XDG_CACHE_HOME/logitspec/step-cost-1.json"\n'
        'ls "$XDG_CACHE_HOME/logitspec" | wc -l | sed \'s/.*/{"files": &}/\'\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    args = first_token.argparse.Namespace(
        model_path="m", dtype="auto", cpu_kernels="auto", prompt_tokens=1
    )
    compiled = tmp_path / "compiled"
    compiled.mkdir()
    assert first_token.clock(args, "pld", compiled, keep=True) == {"files": 2}
    assert [path.name for path in compiled.iterdir()] == ["a.so"]


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--methods", "baseline"], "'baseline' is transformers' own loop and has no drafter"),
        (["--model-path", "./nowhere"], "no model directory './nowhere'"),
        (["--cpu-kernels", "fast"], "CPU kernels 'fast' are not known"),
    ],
)
def test_bad_input_is_one_sentence(
    tiny_path: str, capsys: pytest.CaptureFixture[str], flags: list[str], problem: str
) -> None:
    assert first_token.main(["--model-path", tiny_path, "--rounds", "1", *flags]) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1
