"""The method rest in commands: replayed, refused without its datastore or with another's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data import datastore
from evaluation.demo import main as demo
from evaluation.replay import main as replay
from evaluation.run import main as run

from ..conftest import question

pytest.importorskip("pydivsufsort")


def test_a_demo_cannot_be_given_a_datastore(
    chat_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo(["--model-path", chat_path, "--method", "rest", "--prompt", "Hi"]) == 2
    assert "the method rest drafts from a datastore and is given none" in capsys.readouterr().err


def test_another_tokenizers_datastore_is_refused(
    chat_path: str,
    chat_store: str,
    tmp_path: Path,
    make_bench: Callable[..., Path],
    recorded: Callable[..., tuple[int, Path]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, folder = recorded()
    assert status == 0
    sweep = ["--recording", str(folder), "--methods", "rest", "--processes", "1"]
    assert replay([*sweep, "--grid", f"datastore={chat_store}"]) == 0
    assert "rest datastore=" in capsys.readouterr().out
    assert replay(sweep) == 2
    assert "--grid datastore=FILE of evaluation.replay" in capsys.readouterr().err

    monkeypatch.setattr(datastore, "tokenizer_fingerprint", lambda tokenizer: "another")
    other = str(tmp_path / "other.store")
    text = tmp_path / "a.txt"
    text.write_text("a b c")
    assert datastore.main([str(text), "--output", other, "--model-path", chat_path]) == 0
    argv = ["--model-path", chat_path, "--model-id", "x", "--bench-name", "mine", "--warmup", "0"]
    argv += ["--max-new-tokens", "9", "--dtype", "float32"]
    assert run([*argv, "--methods", "vanilla,rest", "--datastore", other]) == 2
    wanted = "was built with another tokenizer than the model's; build it anew"
    assert wanted in capsys.readouterr().err
    assert replay([*sweep, "--grid", f"datastore={other}"]) == 2
    assert wanted in capsys.readouterr().err


def test_a_trace_is_not_gone_on_with_another_datastore(
    chat_path: str,
    tmp_path: Path,
    make_bench: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_bench(question(1, "Hi"))
    store, text = tmp_path / "a.store", tmp_path / "a.txt"
    argv = ["--model-path", chat_path, "--model-id", "x", "--bench-name", "mine", "--warmup", "0"]
    argv += ["--max-new-tokens", "5", "--dtype", "float32", "--answer-dir", str(tmp_path)]
    argv += ["--methods", "rest", "--datastore", str(store), "--question-end", "1"]
    for content, status in (("a b c", 0), ("d e f", 2)):
        text.write_text(content)
        built = [str(text), "--output", str(store), "--model-path", chat_path]
        assert datastore.main(built) == 0
        assert run(argv) == status
    assert "drafts_from" in capsys.readouterr().err
